"""Model: the weights of one GGUF file, or of the splits of one (``llama_model``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from offgrid_llama._capi import ffi, lib
from offgrid_llama.files.model_files import ModelFiles
from offgrid_llama.files.overrides import Override
from offgrid_llama.native import rpc
from offgrid_llama.native.backend import Device, start
from offgrid_llama.native.check import string_of, text_of
from offgrid_llama.native.enums import (
    LazyMode,
    LazyModeName,
    LoadMode,
    LoadModeName,
    RopeType,
    SplitMode,
    SplitModeName,
)
from offgrid_llama.native.handle import Handle, Owner
from offgrid_llama.native.kinds import instance
from offgrid_llama.store.consent import Download

from .loading import load
from .placement import DEFAULT_FIT_MARGIN_BYTES
from .saving import save
from .vocab import Vocab

__all__ = ["Model", "check_model"]

_NO_JINJA = "mistral-v7-tekken"
"""The template that llama.cpp gives for a model of Mistral's without one: the name of C++ code."""


def check_model(model: object) -> None:
    """Raise TypeError for what should be a Model and is none, such as the path of one; ClosedError for a closed one."""
    hint = "Model(...) loads one" if isinstance(model, (str, os.PathLike)) else ""
    instance("model", model, Model, hint).handle.check_open()


class Model(Owner):
    """A loaded model. Any number of contexts can share it, in any number of threads.

    Args:
        model: a path to a GGUF file; of a split model the first file, if the others have llama.cpp's names, or the list of
            all; a name that ``offgrid_llama.store`` knows; or a file that is open for reading in binary mode. An open file
            is read from its position, so that the GGUF may be inside of a larger file, and may be closed afterwards.
        n_gpu_layers: layers to keep in device memory, from the last one down; -1 is all, "auto" is as many as fit (0 without
            a GPU), beside a context of 4,096 positions and ``fit_margin``.
        devices: the GPUs to use, in this order: Devices, their names, or "host:port" of RPC servers (see ``rpc``). None is
            all of this machine; [] is none.
        split_mode: how to spread the model over several GPUs: "none", "layer", "row" or "tensor".
        tensor_split: the share of each device, in any unit; None is by free memory.
        main_gpu: the GPU for the whole model when ``split_mode`` is "none".
        fit_margin: bytes of each device that "auto" leaves free.
        load_mode: "auto", "mmap", "none" (read into memory), "mlock", "mmap_mlock" or "direct_io".
        lazy_mode: "auto", "off" or "on": read rows of very large tables of embeddings when they are needed.
        kv_overrides: metadata to use instead of the file's, by key: an int, float, bool or str, as in the file.
            ``metadata`` keeps the file's values.
        tensor_buft_overrides: where to keep tensors: names of a device's buffer type, such as "CPU", by regular expression
            (ECMAScript). The first expression that is found in a tensor's name counts. Never take one from a client: one
            like ``(a*)*b`` runs forever.
        vocab_only: load the tokenizer and the metadata without the weights.
        check_tensors: look for NaN and the like in all weights while loading.
        use_extra_bufts: let backends repack weights for their kernels; faster, but repacked weights are a copy.
        no_host: keep no weights in a GPU's host memory, so that they can be repacked instead.
        load_mtp: load the layers for multi-token prediction, too, if the model has any.
        progress: called with 0.0 to 1.0 while loading, on this thread; return False to stop the load.
        download: what happens to a name that is not on this machine yet. "auto" downloads the model, with a warning in the
            log that tells its size, place and licence, and a progress bar where stderr is a terminal. "never" raises
            StoreError. A function downloads it, too, and is called with (done, total) in bytes.

    Raises:
        FileNotFoundError: the path has no file.
        UnknownModelError: ``model`` is neither a file nor a name that the store knows.
        StoreError: the model could not be downloaded, or ``download`` is "never".
        GGUFError: the file is no GGUF, is cut off, or has impossible values.
        ModelLoadError: llama.cpp refused the model, and the error carries its log; or it does not use an override.
        LoadCancelled: ``progress`` returned False.
        BackendError: the build has no GPU backend for the layers, or the machine lacks a device.

    Attributes:
        path: the file, or the first of its splits; the name of an open file.
        vocab: the Vocab, borrowed.
        metadata: the file's scalar keys and their values, as str.
        n_ctx_train: positions that the model was trained for. n_embd: width of the embeddings.
        n_embd_inp, n_embd_out: widths of the embeddings that go in and come out, where they differ.
        n_cls_out: scores of a classifier, such as a reranker's. cls_labels: their names; None for a score without a name.
        n_layer, n_head, n_head_kv, n_swa: layers, attention heads, KV heads, sliding window (0: none).
        n_layer_nextn: layers for multi-token prediction. rope_freq_scale_train: RoPE's frequency scale in training.
        n_params: number of weights. size: bytes of all tensors.
        description: for instance ``llama 135M Q4_1``. ftype: the quantization, for instance ``Q4_1``.
        has_encoder, has_decoder, is_recurrent, is_hybrid, is_diffusion: the kind of model.
        decoder_start_token: the first token of an encoder-decoder model's decoder, or None.
        files, traits: internal. The ModelFiles, and the facts that llama.h does not tell.
    """

    _instead = "hand on its path, and load it in the other process; threads and contexts can share one"

    def __init__(
        self,
        model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | BinaryIO,
        *,
        n_gpu_layers: int | Literal["auto"] = "auto",
        devices: Sequence[Device | str] | None = None,
        split_mode: SplitMode | SplitModeName = SplitMode.LAYER,
        tensor_split: Sequence[float] | None = None,
        main_gpu: int = 0,
        fit_margin: int = DEFAULT_FIT_MARGIN_BYTES,
        load_mode: LoadMode | LoadModeName = LoadMode.AUTO,
        lazy_mode: LazyMode | LazyModeName = LazyMode.AUTO,
        kv_overrides: Mapping[str, Override] | None = None,
        tensor_buft_overrides: Mapping[str, str] | None = None,
        vocab_only: bool = False,
        check_tensors: bool = False,
        use_extra_bufts: bool = True,
        no_host: bool = False,
        load_mtp: bool = False,
        progress: Callable[[float], object] | None = None,
        download: Download = "auto",
    ) -> None:
        options = {**locals()}  # each argument by its name
        start()
        self.files = ModelFiles(model, download)
        ptr, self.params, self.kv_overrides, self.traits = load(self.files, options)
        self.path = self.files.path
        self._own(Handle(f"Model {self.path.name}", ptr, lib.llama_model_free))
        rpc.hold(self.handle, self.params.devices or ())
        self._describe(ptr)
        self.vocab = Vocab(self, {**self.metadata, **self.kv_overrides})

    def _describe(self, ptr: Any) -> None:
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(ptr)
        self.n_embd: int = lib.llama_model_n_embd(ptr)
        self.n_embd_inp: int = lib.llama_model_n_embd_inp(ptr)
        self.n_embd_out: int = lib.llama_model_n_embd_out(ptr)
        self.n_cls_out: int = lib.llama_model_n_cls_out(ptr)
        labels = [lib.llama_model_cls_label(ptr, i) for i in range(self.n_cls_out)]
        self.cls_labels = tuple(text_of(label) if label else None for label in labels)
        self.n_layer: int = lib.llama_model_n_layer(ptr)
        self.n_layer_nextn: int = lib.llama_model_n_layer_nextn(ptr)
        self.n_head: int = lib.llama_model_n_head(ptr) if not self.params.vocab_only else 0
        self.n_head_kv: int = lib.llama_model_n_head_kv(ptr) if not self.params.vocab_only else 0
        self.n_swa: int = lib.llama_model_n_swa(ptr)
        self.n_params: int = lib.llama_model_n_params(ptr)
        self.size: int = lib.llama_model_size(ptr)
        self.ftype = text_of(lib.llama_ftype_name(lib.llama_model_ftype(ptr)))
        self.rope_freq_scale_train: float = lib.llama_model_rope_freq_scale_train(ptr)
        self.rope_type = RopeType(lib.llama_model_rope_type(ptr))
        self.has_encoder: bool = lib.llama_model_has_encoder(ptr)
        self.has_decoder: bool = lib.llama_model_has_decoder(ptr)
        self.is_recurrent: bool = lib.llama_model_is_recurrent(ptr)
        self.is_hybrid: bool = lib.llama_model_is_hybrid(ptr)
        self.is_diffusion: bool = lib.llama_model_is_diffusion(ptr)
        start_token = lib.llama_model_decoder_start_token(ptr)
        self.decoder_start_token = None if start_token == lib.LLAMA_TOKEN_NULL else int(start_token)
        self.description = string_of(partial(lib.llama_model_desc, ptr))
        self.metadata = {
            string_of(partial(lib.llama_model_meta_key_by_index, ptr, i)): string_of(
                partial(lib.llama_model_meta_val_str_by_index, ptr, i)
            )
            for i in range(lib.llama_model_meta_count(ptr))
        }

    def fingerprint(self) -> str:
        """Return a digest of the file and of ``kv_overrides``, 32 hexadecimal digits: the same for the same weights.

        It covers the header and 12 KiB of each tensor. The first call reads them.
        Raises ModelLoadError if the file has changed since the load.
        """
        self.handle.check_open()
        return self.files.fingerprint(self.kv_overrides)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one GGUF file (``llama_model_save_to_file``), with the overrides as the file's own values.

        Metadata that llama.cpp does not write, such as the chat template, are copied from the model's file. The new file
        gets its name when it is complete; until then, and after a failure, a file of that name stays as it was.

        Raises:
            ModelSaveError: the model was loaded without weights, or with ``use_extra_bufts=True``, which may have repacked
                them; llama.cpp cannot save its architecture or tokenizer, or saves a part only; its file has changed.
            OSError: from writing, or because the model's file is gone.
        """
        save(self.handle, self.files, self.params, self.kv_overrides, Path(path))

    def chat_template(self, name: str | None = None) -> str | None:
        """Return the chat template's Jinja source, or None (``llama_model_chat_template``).

        A file may have several: ``name`` picks one, such as ``tool_use``; None is the default.
        """
        with self.handle as ptr:
            source = lib.llama_model_chat_template(ptr, ffi.NULL if name is None else name.encode("utf-8"))
            text = text_of(source) if source else None
        return None if text == _NO_JINJA else text
