"""Saving: a loaded model written to a file again (``llama_model_save_to_file``).

llama.cpp writes the tensors, the tokenizer and the hyperparameters that it reads, but no chat template and no licence. It
ends the process over a model that it cannot save, and says nothing about a tensor that it leaves out, or about a full disk.
So such a model is refused before the call, and the file is read afterwards, checked and completed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from offgrid_llama._capi import lib
from offgrid_llama.errors import GGUFError, ModelSaveError
from offgrid_llama.files.architecture import CANNOT_BE_SAVED
from offgrid_llama.files.atomic import replacing
from offgrid_llama.files.gguf import GGUF
from offgrid_llama.files.model_files import ModelFiles
from offgrid_llama.files.overrides import Override
from offgrid_llama.native.callbacks import forget_log, raise_pending, recent_log
from offgrid_llama.native.check import raise_caught
from offgrid_llama.native.handle import Handle

from .params import ModelParams

__all__ = ["save"]

_CHARSMAP_KEY = "tokenizer.ggml.precompiled_charsmap"  # of type char, which llama.cpp's writer aborts on


def save(
    handle: Handle, files: ModelFiles, params: ModelParams, kv_overrides: Mapping[str, Override], path: Path
) -> None:
    """Write a model, given by its handle, its files and how it was loaded, to ``path``. Raises as ``Model.save``."""
    with handle as ptr:
        for name in ("vocab_only", "use_extra_bufts"):
            if getattr(params, name):
                raise ModelSaveError(f"{files.path} was loaded with {name}=True: load it with {name}=False to save it")
        with files.opened() as headers, replacing(path) as unfinished:
            first = headers[0]
            if not files.unchanged(headers):
                raise ModelSaveError(f"{files.path} has changed since the model was loaded")
            architecture = str(kv_overrides.get("general.architecture", first.architecture))
            if architecture in CANNOT_BE_SAVED or _CHARSMAP_KEY in first:
                raise ModelSaveError(f"llama.cpp cannot save {files.path}: its architecture, or its kind of tokenizer")
            raw = unfinished.with_name(".raw")
            forget_log()
            lib.llama_model_save_to_file(ptr, os.fsencode(raw))
            raise_pending()
            raise_caught()
            try:
                written = GGUF(raw)
            except (FileNotFoundError, GGUFError):
                raise ModelSaveError(f"{path} could not be written", log=recent_log()) from None
            with written:
                _check_tensors(written, files)
                written.copy_with(unfinished, first, _missing_keys(written, first, architecture))
            raw.unlink()


def _check_tensors(written: GGUF, files: ModelFiles) -> None:
    """Raise ModelSaveError where llama.cpp left out a tensor, or wrote it in another type or shape."""
    tensors = {tensor.name: (tensor.type, tensor.shape) for tensor in written.tensors()}
    for tensor in files.tensors.values():
        if tensors.get(tensor.name) != (tensor.type, tensor.shape):
            raise ModelSaveError(f"llama.cpp cannot save {files.path}: it leaves out {tensor.name}")


def _missing_keys(written: GGUF, source: GGUF, architecture: str) -> list[str]:
    """Return the keys that llama.cpp did not write. Those of the architecture it wrote, perhaps under another name."""
    own = (f"{architecture}.", "split.", "general.alignment")
    return [key for key in source if key not in written and not key.startswith(own)]
