"""Model: the weights of one GGUF file, or of the splits of one (``llama_model``)."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

from . import rpc, saving
from ._callbacks import Progress, whole_log
from ._capi import ffi, lib
from ._check import not_null, number, string_of, text_of
from ._handle import Handle, Owner
from .backend import Device, start
from .errors import LoadCancelled, ModelLoadError
from .gguf import GGUF, c_file, is_open_file
from .overrides import Override, buft_array, checked, kv_array, unused
from .params import LazyMode, LoadMode, ModelParams, RopeType, SplitMode, member
from .placement import MARGIN, choose, place
from .splits import File, digest, opened_all
from .vocab import Vocab

__all__ = ["Model"]

TENSOR_ALIGNMENT = 32  # of the CPU backend


class Model(Owner):
    """A loaded model. Any number of contexts can share it, in any number of threads.

    Args:
        model: a path to a GGUF file; the first one of a split model, which finds the others by llama.cpp's names, or the
            list of all, whatever they are called; a name that ``offgrid_llama.store`` knows; or a file that is open for
            reading in binary mode, read from its position, so that the GGUF may be inside of a larger file. An open file
            may be closed afterwards.
        n_gpu_layers: layers to keep in device memory, from the last one down; -1 is all, "auto" is as many as fit (0 without
            a GPU), with room for a context of 4,096 positions and ``fit_margin`` left.
        devices: the GPUs to use, in this order: Devices, their names, or "host:port" of RPC servers (see ``rpc``). None is
            all of this machine; [] is none.
        split_mode: how to spread over several GPUs: "none", "layer", "row" or "tensor".
        tensor_split: the share of each device, in any unit; None is by free memory.
        main_gpu: the GPU for the whole model when ``split_mode`` is "none".
        fit_margin: bytes of each device that "auto" leaves free.
        load_mode: "auto", "mmap", "none" (read into memory), "mlock", "mmap_mlock" or "direct_io".
        lazy_mode: "auto", "off" or "on": read rows of very large tables of embeddings when they are needed.
        kv_overrides: metadata to take instead of the file's, by key; an int, float, bool or str as the file has.
            ``metadata`` goes on saying what the file says.
        tensor_buft_overrides: where to keep tensors: from a regular expression (ECMAScript, searched for in the name, the
            first that is found counts) to the name of a device's buffer type, such as "CPU". A pattern is the program's
            own, never a stranger's: one like ``(a*)*b`` takes for ever.
        vocab_only: load the tokenizer and the metadata without the weights.
        check_tensors: look for NaN and the like in all weights while loading.
        use_extra_bufts: let backends repack weights for their kernels; faster, but repacked weights are a copy.
        no_host: keep no weights in a GPU's host memory, so that they can be repacked instead.
        load_mtp: load the layers for multi-token prediction too, where the model has any.
        progress: called with 0.0 to 1.0 while loading, on this thread; return False to stop the load.

    Raises:
        FileNotFoundError: there is no such file.
        UnknownModelError: there is neither such a file nor such a name.
        GGUFError: the file is no GGUF, is cut off, or has impossible values.
        ModelLoadError: llama.cpp refused the model; the error carries its log. Or it has no use for an override.
        LoadCancelled: ``progress`` returned False.
        BackendError: GPU layers were asked for and no GPU backend was built, or a device is not there.

    Attributes:
        path: the file, or the first of its splits; what an open file calls itself.
        vocab: the Vocab, borrowed.
        metadata: the file's scalar keys and their values, as str.
        n_ctx_train: positions that the model was trained for. n_embd: width of the embeddings.
        n_embd_inp, n_embd_out: widths of the embeddings that go in and come out, where they differ.
        n_cls_out: scores of a classifier, such as a reranker's. cls_labels: their names, None for one without.
        n_layer, n_head, n_head_kv, n_swa: layers, attention heads, KV heads, sliding window (0: none).
        n_layer_nextn: layers for multi-token prediction. rope_freq_scale_train: RoPE's frequency scale of the training.
        n_params: number of weights. size: bytes of all tensors.
        description: for instance ``llama 135M Q4_1``. ftype: the quantization, for instance ``Q4_1``.
        has_encoder, has_decoder, is_recurrent, is_hybrid, is_diffusion: what kind of model it is.
        decoder_start_token: the first token of an encoder-decoder model's decoder, or None.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | BinaryIO,
        *,
        n_gpu_layers: int | Literal["auto"] = "auto",
        devices: Sequence[Device | str] | None = None,
        split_mode: SplitMode | str = SplitMode.LAYER,
        tensor_split: Sequence[float] | None = None,
        main_gpu: int = 0,
        fit_margin: int = MARGIN,
        load_mode: LoadMode | str = LoadMode.AUTO,
        lazy_mode: LazyMode | str = LazyMode.AUTO,
        kv_overrides: Mapping[str, Override] | None = None,
        tensor_buft_overrides: Mapping[str, str] | None = None,
        vocab_only: bool = False,
        check_tensors: bool = False,
        use_extra_bufts: bool = True,
        no_host: bool = False,
        load_mtp: bool = False,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        start()
        self._files = _files(model)
        params = ModelParams(
            devices=choose(devices),
            split_mode=member("split_mode", split_mode, SplitMode),
            tensor_split=None if tensor_split is None else tuple(tensor_split),
            main_gpu=main_gpu,
            load_mode=member("load_mode", load_mode, LoadMode),
            lazy_mode=member("lazy_mode", lazy_mode, LazyMode),
            vocab_only=vocab_only,
            check_tensors=check_tensors,
            use_extra_bufts=use_extra_bufts,
            no_host=no_host,
            load_mtp=load_mtp,
        )
        margin = number("fit_margin", fit_margin, 0, 2**63 - 1)
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable, not {type(progress).__name__}")
        load = Progress(progress)  # llama.cpp calls it until the load returns
        bufts, _keep = buft_array(tensor_buft_overrides or {})

        def failure(log: tuple[str, ...]) -> ModelLoadError:
            if load.cancelled:
                return LoadCancelled(f"loading {self.path} was cancelled by progress")
            return ModelLoadError(f"{self.path} could not be loaded", log=log)

        with opened_all(self._files) as headers:
            self.path = headers[0].path
            self.kv_overrides = checked(kv_overrides, headers[0])
            overrides = kv_array(self.kv_overrides)
            for header in headers:
                header.check(self.kv_overrides)
            self._architecture = headers[0].architecture
            self._kv_heads = sum(headers[0].kv_heads())
            self._identities = [header.identity for header in headers]
            self._tensors = {tensor.name: tensor for header in headers for tensor in header.tensors()}
            # An open file need not be open any more when somebody asks.
            self._fingerprint = None if isinstance(self._files[0], Path) else digest(headers, self.kv_overrides)

            def load_with(c_params: Any) -> Any:
                c_params.kv_overrides, c_params.tensor_buft_overrides = overrides, bufts
                return _load(headers, c_params)

            sizes = {name: tensor.n_bytes for name, tensor in self._tensors.items()}
            layers = 0 if vocab_only and n_gpu_layers == "auto" else n_gpu_layers
            self.params = place(load_with, sizes, params, layers, margin)
            self._check_alignment(headers)
            c_params = self.params.to_c()
            c_params.progress_callback = lib.og_on_progress
            c_params.progress_callback_user_data = load.user_data
            with whole_log() as lines:
                ptr = not_null(load_with(c_params), failure, lib.llama_model_free)
                try:
                    unused(self.kv_overrides, (line for _, line in lines))
                except ModelLoadError:
                    lib.llama_model_free(ptr)
                    raise
        self._own(Handle(f"Model {self.path.name}", ptr, lib.llama_model_free))
        rpc.hold(self._handle, params.devices or ())
        self._learned_positions = "position_embd.weight" in self._tensors
        self._n_positions = self._rows("position_embd.weight")  # 0: any position can be computed
        self._n_scores = self._rows("cls.output.weight") or self._rows("cls.weight")
        self._describe(ptr)
        self.vocab = Vocab(self)

    def _rows(self, tensor: str) -> int:
        """Return how many rows a tensor has, 0 if it is not there."""
        if tensor not in self._tensors:
            return 0
        _, *rows = self._tensors[tensor].shape
        return rows[0] if rows else 1

    def _check_alignment(self, headers: Sequence[GGUF]) -> None:
        """Refuse to map tensors to addresses that their kernels cannot read from."""
        if self.params.load_mode is LoadMode.NONE and self.params.lazy_mode is LazyMode.OFF:
            return
        for header in headers:
            if header.n_tensors and header.data_offset % TENSOR_ALIGNMENT:
                raise ModelLoadError(
                    f"{header.path}: its tensors begin at byte {header.data_offset}, no multiple of {TENSOR_ALIGNMENT}, and "
                    'cannot be mapped: use load_mode="none", lazy_mode="off"'
                )

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

        It is of the header and of 12 KiB of each tensor, read once, when it is first asked for.
        Raises ModelLoadError if the file is not the one any more that was loaded.
        """
        self._handle.check_open()
        if self._fingerprint is None:
            with opened_all(self._files) as headers:
                if [header.identity for header in headers] != self._identities:
                    raise ModelLoadError(
                        f"{self.path} has changed since the model was loaded: nothing can be said of it"
                    )
                self._fingerprint = digest(headers, self.kv_overrides)
        return self._fingerprint

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one GGUF file (``llama_model_save_to_file``): splits become one, overrides the file's own.

        The metadata that llama.cpp does not write itself, such as the chat template, are copied from the model's file.
        Under its name the file is whole, or what was there before.

        Raises:
            ModelSaveError: the model was loaded without weights, or with ``use_extra_bufts=True``, which may have repacked
                them; llama.cpp cannot save its architecture or tokenizer, or saves it in part only; its file has changed.
            OSError: from writing, or because the model's file is not there any more.
        """
        saving.save(self, Path(path))

    def chat_template(self, name: str | None = None) -> str | None:
        """Return the chat template's Jinja source, or None (``llama_model_chat_template``).

        ``name`` picks one of several that the file may have, such as ``tool_use``; None is the default one.
        """
        with self._handle as ptr:
            source = lib.llama_model_chat_template(ptr, ffi.NULL if name is None else name.encode("utf-8"))
            return text_of(source) if source else None


def _load(headers: Sequence[GGUF], c_params: Any) -> Any:
    paths = [ffi.new("char[]", os.fsencode(header.path)) for header in headers]
    if len(paths) > 1:
        return lib.llama_model_load_from_splits(ffi.new("char *[]", paths), len(paths), c_params)
    if headers[0].is_path:
        return lib.llama_model_load_from_file(paths[0], c_params)
    with headers[0].opened() as file, c_file(file, headers[0].begin) as stream:
        return lib.llama_model_load_from_file_ptr(stream, c_params)


def _files(model: Any) -> list[File]:
    if is_open_file(model):
        return [model]
    if isinstance(model, (list, tuple)):
        if not model:
            raise ValueError("model must have at least one path")
        return [_file(path) for path in model]
    return [_file(model)]


def _file(model: Any) -> Path:
    path = Path(model)
    if path.is_file():
        return path
    if isinstance(model, str):
        from . import store

        return store.resolve(model)
    raise FileNotFoundError(f"there is no file {path}")
