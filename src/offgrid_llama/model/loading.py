"""Loading: the steps from a model's files to llama.h's model (``llama_model_load_from_file`` and its like)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import LoadCancelled, ModelLoadError
from offgrid_llama.files.architecture import Traits
from offgrid_llama.files.gguf import GGUF
from offgrid_llama.files.model_files import ModelFiles
from offgrid_llama.files.open_file import c_file
from offgrid_llama.files.overrides import Override, buft_array, checked, kv_array, unused
from offgrid_llama.native.callbacks import LoadProgress, whole_log
from offgrid_llama.native.check import callback, not_null, number
from offgrid_llama.native.enums import LazyMode, LoadMode
from offgrid_llama.native.kinds import mapping

from .params import ModelParams
from .placement import choose, place

__all__ = ["LoadedModel", "call_loader", "load"]

TENSOR_ALIGNMENT = 32
"""Bytes that the addresses of mapped tensors are multiples of, for the kernels of the CPU backend."""


class LoadedModel(NamedTuple):
    """A model of llama.h, and how it was loaded.

    Attributes:
        ptr: the ``llama_model *``; the caller owns it.
        params: with the number of layers that were placed on devices.
        kv_overrides: checked.
        traits: the facts that llama.h does not tell.
    """

    ptr: Any
    params: ModelParams
    kv_overrides: dict[str, Override]
    traits: Traits


def load(files: ModelFiles, options: Mapping[str, Any]) -> LoadedModel:
    """Load a model with the options of Model (see ModelOptions), and raise as Model does."""
    wanted = ModelParams.of(choose(options["devices"]), options)
    margin_bytes = number("fit_margin", options["fit_margin"], 0, 2**63 - 1)
    progress = _checked_progress(options["progress"])
    bufts, _keep = buft_array(mapping("tensor_buft_overrides", options["tensor_buft_overrides"] or {}))
    with files.opened() as headers:
        kv_overrides = checked(mapping("kv_overrides", options["kv_overrides"] or {}), headers[0])
        overrides = kv_array(kv_overrides)
        for header in headers:
            header.check(kv_overrides)
        files.keep_fingerprint(headers, kv_overrides)

        def load_with(c_params: Any) -> Any:
            c_params.kv_overrides, c_params.tensor_buft_overrides = overrides, bufts
            return call_loader(headers, c_params)

        n_gpu_layers = options["n_gpu_layers"]
        if wanted.vocab_only and n_gpu_layers == "auto":
            n_gpu_layers = 0
        params = place(load_with, files.sizes(), wanted, n_gpu_layers, margin_bytes)
        _check_alignment(headers, params)
        c_params = params.to_c()
        c_params.progress_callback = lib.og_on_progress
        c_params.progress_callback_user_data = progress.user_data
        ptr = _loaded(files.path, partial(load_with, c_params), progress, kv_overrides)
        return LoadedModel(ptr, params, kv_overrides, Traits.of(headers[0], files.tensors))


def call_loader(headers: Sequence[GGUF], c_params: Any) -> Any:
    """Return the ``llama_model *`` of a model's files, or NULL."""
    paths = [ffi.new("char[]", os.fsencode(header.path)) for header in headers]
    if len(paths) > 1:
        return lib.llama_model_load_from_splits(ffi.new("char *[]", paths), len(paths), c_params)
    if headers[0].is_path:
        return lib.llama_model_load_from_file(paths[0], c_params)
    with headers[0].opened() as file, c_file(file, headers[0].begin) as stream:
        return lib.llama_model_load_from_file_ptr(stream, c_params)


def _loaded(path: Path, call: Callable[[], Any], progress: LoadProgress, kv_overrides: Mapping[str, Override]) -> Any:
    """Return the ``llama_model *`` that ``call`` returns. Raises ModelLoadError for NULL, and for unused overrides."""

    def failure(log: tuple[str, ...]) -> ModelLoadError:
        if progress.cancelled:
            return LoadCancelled(f"loading {path} was cancelled by progress")
        return ModelLoadError(f"{path} could not be loaded", log=log)

    with whole_log() as lines:
        ptr = not_null(call(), failure, lib.llama_model_free)
        try:
            unused(kv_overrides, (line for _, line in lines))
        except ModelLoadError:
            lib.llama_model_free(ptr)
            raise
    return ptr


def _checked_progress(function: Any) -> LoadProgress:
    return LoadProgress(None if function is None else callback("progress", function))


def _check_alignment(headers: Iterable[GGUF], params: ModelParams) -> None:
    """Raise ModelLoadError for tensors that would be mapped to addresses that their kernels cannot read from."""
    if params.load_mode is LoadMode.NONE and params.lazy_mode is LazyMode.OFF:
        return
    for header in headers:
        if header.n_tensors and header.data_offset % TENSOR_ALIGNMENT:
            raise ModelLoadError(
                f"{header.path}: its tensors begin at byte {header.data_offset}, no multiple of {TENSOR_ALIGNMENT}, and "
                'cannot be mapped: use load_mode="none", lazy_mode="off"'
            )
