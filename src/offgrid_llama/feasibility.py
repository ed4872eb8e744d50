"""Feasibility: contexts that llama.cpp would abort on, compute wrongly, or be killed for are refused before it is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import rpc
from ._capi import lib
from .backend import devices
from .errors import ContextError
from .memory import head_sizes
from .params import KV_TYPES, ContextParams, PoolingType

if TYPE_CHECKING:
    from .model import Model

__all__ = ["check_context", "resolved_pooling"]

_QUANT_BLOCK = 32  # all quantized KV types have blocks of 32


def check_context(model: Model, params: ContextParams) -> None:
    """Raise ContextError for a context that cannot be made of this model."""
    if params.embeddings and model._architecture in ("deepseek4", "qwen4exp"):  # it takes them for wider than they are
        raise ContextError(f"{model._handle.name}: llama.cpp aborts on the embeddings of {model._architecture}")
    _refuse_sequences(model, params)
    _refuse_kv_cache(model, params)
    _refuse_scores(model, params)


def resolved_pooling(model: Model, pooling_type: PoolingType) -> PoolingType:
    """Return ``pooling_type``, or the model's own where it is unspecified."""
    if pooling_type is not PoolingType.UNSPECIFIED:
        return pooling_type
    arch = model.metadata.get("general.architecture", "")
    own = int(model.metadata.get(f"{arch}.pooling_type", PoolingType.NONE))
    return PoolingType(own) if own <= PoolingType.RANK else PoolingType.NONE  # -1, unspecified, is saved as a uint32


def _refuse_sequences(model: Model, params: ContextParams) -> None:
    """Raise for several sequences where llama.cpp aborts on them, or mixes them."""
    if params.n_seq_max == 1:
        return
    if model.has_encoder and model.has_decoder and not params.kv_unified:
        raise ContextError(f"{model._handle.name}: several sequences of an encoder-decoder model need kv_unified=True")
    if model._architecture == "plamo2":
        raise ContextError(
            f"{model._handle.name}: llama.cpp mixes the sequences of a batch for plamo2: use n_seq_max=1"
        )


def _refuse_kv_cache(model: Model, params: ContextParams) -> None:
    """Raise for a KV cache that llama.cpp would abort on, or that the system would kill the process for."""
    per_cell = 0.0
    for name, type_name, part in (("type_k", params.type_k, "key"), ("type_v", params.type_v, "value")):
        ggml_type, sizes = KV_TYPES[type_name], head_sizes(model, f"attention.{part}_length")
        if lib.ggml_is_quantized(ggml_type) and any(size % _QUANT_BLOCK for size in sizes):
            raise ContextError(f"{name}={type_name!r} needs heads of a multiple of {_QUANT_BLOCK} values, not {sizes}")
        per_cell += model._kv_heads * max(sizes) * lib.ggml_type_size(ggml_type) / lib.ggml_blck_size(ggml_type)
    if model.is_recurrent:
        return
    full = 1 if params.swa_full or not model.n_swa else 8
    needed = int(per_cell * params.n_ctx) // full
    remote = [device for device in model.params.devices or () if device.backend == rpc.BACKEND]
    there = sum(device.memory_total for device in (*devices(), *remote))
    if needed > there:
        raise ContextError(
            f"n_ctx={params.n_ctx} takes a KV cache of {needed / 2**30:,.1f} GiB; this machine has "
            f"{there / 2**30:,.1f} GiB. Make n_ctx smaller, or type_k and type_v"
        )


def _refuse_scores(model: Model, params: ContextParams) -> None:
    """Raise for scores that the model has no classifier for: llama.cpp gives other numbers, or aborts."""
    if not params.embeddings or resolved_pooling(model, params.pooling_type) is not PoolingType.RANK:
        return
    in_another_file = int(model.metadata.get("split.count", 1)) > 1
    if model._n_scores != model.n_cls_out and not in_another_file:
        raise ContextError(
            f"{model._handle.name} is no reranker: it needs a classifier (cls.output or cls) of {model.n_cls_out} values, "
            f"and has one of {model._n_scores}"
        )
