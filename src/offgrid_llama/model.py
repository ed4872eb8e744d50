"""Model: the weights of one GGUF file (``llama_model``)."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ._callbacks import Progress, forget_log
from ._capi import ffi, lib
from ._check import not_null, string_of, text_of
from ._handle import Handle, Owner
from .backend import has_gpu, start
from .errors import BackendError, LoadCancelled, ModelLoadError
from .gguf import GGUF
from .params import LoadMode, ModelParams, RopeType, SplitMode, member
from .vocab import Vocab

__all__ = ["Model"]


class Model(Owner):
    """A loaded model. Any number of contexts can share it, in any number of threads.

    Args:
        model: a path to a GGUF file (the first one of a split model), or a name that ``offgrid_llama.store`` knows.
        n_gpu_layers: layers to keep in device memory; -1 is all, "auto" is all where a GPU backend was built and else 0.
        split_mode: how to spread over several GPUs: "none", "layer", "row" or "tensor".
        main_gpu: the GPU for the whole model when ``split_mode`` is "none".
        load_mode: "auto", "mmap", "none" (read into memory), "mlock", "mmap_mlock" or "direct_io".
        vocab_only: load the tokenizer and the metadata without the weights.
        check_tensors: look for NaN and the like in all weights while loading.
        use_extra_bufts: let backends repack weights for their kernels; faster, but repacked weights are a copy.
        progress: called with 0.0 to 1.0 while loading, on this thread; return False to stop the load.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownModelError: there is neither such a file nor such a name.
        GGUFError: the file is no GGUF, is cut off, or has impossible values.
        ModelLoadError: llama.cpp refused the model; the error carries its log.
        LoadCancelled: ``progress`` returned False.
        BackendError: GPU layers were asked for and no GPU backend was built.

    Attributes:
        path: the file.
        vocab: the Vocab, borrowed.
        metadata: the file's scalar keys and their values, as str.
        n_ctx_train: positions that the model was trained for. n_embd: width of the embeddings.
        n_embd_out: width of the embeddings that come out. n_cls_out: scores of a classifier, such as a reranker's.
        n_layer, n_head, n_head_kv, n_swa: layers, attention heads, KV heads, sliding window (0: none).
        n_params: number of weights. size: bytes of all tensors.
        description: for instance ``llama 135M Q4_1``. ftype: the quantization, for instance ``Q4_1``.
        has_encoder, has_decoder, is_recurrent, is_hybrid, is_diffusion: what kind of model it is.
        decoder_start_token: the first token of an encoder-decoder model's decoder, or None.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        n_gpu_layers: int | Literal["auto"] = "auto",
        split_mode: SplitMode | str = SplitMode.LAYER,
        main_gpu: int = 0,
        load_mode: LoadMode | str = LoadMode.AUTO,
        vocab_only: bool = False,
        check_tensors: bool = False,
        use_extra_bufts: bool = True,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        start()
        self.path = _file(model)
        gpu = has_gpu()
        self.params = ModelParams(
            n_gpu_layers=(-1 if gpu else 0) if n_gpu_layers == "auto" else n_gpu_layers,
            split_mode=member("split_mode", split_mode, SplitMode),
            main_gpu=main_gpu,
            load_mode=member("load_mode", load_mode, LoadMode),
            vocab_only=vocab_only,
            check_tensors=check_tensors,
            use_extra_bufts=use_extra_bufts,
        )
        if self.params.n_gpu_layers and not gpu:
            raise BackendError(
                f"n_gpu_layers={n_gpu_layers}, but this build has no GPU backend. Build one in, for instance with "
                "pip install . --config-settings=cmake.define.GGML_CUDA=ON, or use n_gpu_layers=0"
            )
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable, not {type(progress).__name__}")
        self._identity = _identity(self.path)
        self._fingerprint: str | None = None
        with GGUF(self.path) as header:
            header.check()
            self._architecture = header.architecture
            self._kv_heads = sum(header.kv_heads())
            self._learned_positions = header.has_tensor("position_embd.weight")

        c_params = self.params.to_c()
        load = Progress(progress)  # llama.cpp calls it until llama_model_load_from_file returns
        c_params.progress_callback = lib.og_on_progress
        c_params.progress_callback_user_data = load.user_data
        forget_log()
        ptr = lib.llama_model_load_from_file(os.fsencode(self.path), c_params)

        def failure(log: tuple[str, ...]) -> ModelLoadError:
            if load.cancelled:
                return LoadCancelled(f"loading {self.path} was cancelled by progress")
            return ModelLoadError(f"{self.path} could not be loaded", log=log)

        ptr = not_null(ptr, failure)
        self._own(Handle(f"Model {self.path.name}", ptr, lib.llama_model_free))
        self.vocab = Vocab(self)
        self._describe(ptr)

    def _describe(self, ptr: Any) -> None:
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(ptr)
        self.n_embd: int = lib.llama_model_n_embd(ptr)
        self.n_embd_out: int = lib.llama_model_n_embd_out(ptr)
        self.n_cls_out: int = lib.llama_model_n_cls_out(ptr)
        self.n_layer: int = lib.llama_model_n_layer(ptr)
        self.n_head: int = lib.llama_model_n_head(ptr) if not self.params.vocab_only else 0
        self.n_head_kv: int = lib.llama_model_n_head_kv(ptr) if not self.params.vocab_only else 0
        self.n_swa: int = lib.llama_model_n_swa(ptr)
        self.n_params: int = lib.llama_model_n_params(ptr)
        self.size: int = lib.llama_model_size(ptr)
        self.ftype = text_of(lib.llama_ftype_name(lib.llama_model_ftype(ptr)))
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
        """Return a digest of the file, 32 hexadecimal digits: the same for the same weights under any name.

        It is of the header and of 12 KiB of each tensor, read once, when it is first asked for.
        Raises ModelLoadError if the file is not the one any more that was loaded.
        """
        self._handle.check_open()
        if self._fingerprint is None:
            with GGUF(self.path) as header:
                fingerprint = header.fingerprint()
            if _identity(self.path) != self._identity:
                raise ModelLoadError(f"{self.path} has changed since the model was loaded: nothing can be said of it")
            self._fingerprint = fingerprint
        return self._fingerprint

    def chat_template(self, name: str | None = None) -> str | None:
        """Return the chat template's Jinja source, or None (``llama_model_chat_template``).

        ``name`` picks one of several that the file may have, such as ``tool_use``; None is the default one.
        """
        with self._handle as ptr:
            source = lib.llama_model_chat_template(ptr, ffi.NULL if name is None else name.encode("utf-8"))
            return text_of(source) if source else None


def _file(model: str | os.PathLike[str]) -> Path:
    path = Path(model)
    if path.is_file():
        return path
    if isinstance(model, str):
        from . import store

        return store.resolve(model)
    raise FileNotFoundError(f"there is no file {path}")


def _identity(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
