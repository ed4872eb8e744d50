"""A loaded model, written to a file again (``llama_model_save_to_file``).

llama.cpp writes the tensors, the tokenizer and what it knows of the architecture, no more: no chat template, no licence. It
ends the process over what it cannot save, and says nothing about a tensor that it leaves out or a disk that is full. So
what it cannot save is refused before, and what it wrote is read again and completed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ._callbacks import forget_log, raise_pending, recent_log
from ._capi import lib
from ._check import raise_caught
from .errors import GGUFError, ModelSaveError
from .gguf import GGUF
from .replacing import replacing
from .splits import opened_all

if TYPE_CHECKING:
    from .model import Model

__all__ = ["save"]

UNSUPPORTED = frozenset({"gemma3n", "bitnet", "t5", "apertus", "step35"})
"""Architectures that llama.cpp aborts on (llama_model_saver_supports_arch)."""
_CHARSMAP = "tokenizer.ggml.precompiled_charsmap"  # of type char, which its writer aborts on


def save(model: Model, path: Path) -> None:
    """Do what ``model.save`` says."""
    with model._handle as ptr:
        for name in ("vocab_only", "use_extra_bufts"):
            if getattr(model.params, name):
                raise ModelSaveError(f"{model.path} was loaded with {name}=True: load it with {name}=False to save it")
        with opened_all(model._files) as headers, replacing(path) as unfinished:
            first = headers[0]
            if [header.identity for header in headers] != model._identities:
                raise ModelSaveError(f"{model.path} has changed since the model was loaded")
            architecture = model.kv_overrides.get("general.architecture", first.architecture)
            if architecture in UNSUPPORTED or _CHARSMAP in first:
                raise ModelSaveError(f"llama.cpp cannot save {model.path}: its architecture, or its kind of tokenizer")
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
                tensors = {tensor.name: (tensor.type, tensor.shape) for tensor in written.tensors()}
                for tensor in model._tensors.values():
                    if tensors.get(tensor.name) != (tensor.type, tensor.shape):
                        raise ModelSaveError(f"llama.cpp cannot save {model.path}: it leaves out {tensor.name}")
                written.copy_with(unfinished, first, _lacking(written, first, str(architecture)))
            raw.unlink()


def _lacking(written: GGUF, source: GGUF, architecture: str) -> list[str]:
    """Return the keys that llama.cpp has not written; those of the architecture it has, perhaps under another name."""
    own = (f"{architecture}.", "split.", "general.alignment")
    return [key for key in source if key not in written and not key.startswith(own)]
