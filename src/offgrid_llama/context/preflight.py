"""Preflight: contexts and batches that llama.cpp would abort on or compute wrongly, refused before it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import ContextError
from offgrid_llama.files.architecture import ABORTS_ON_EMBEDDINGS, MIXES_SEQUENCES, head_sizes, own_pooling
from offgrid_llama.model.params import ContextParams
from offgrid_llama.native import rpc
from offgrid_llama.native.backend import devices
from offgrid_llama.native.check import number, sequence
from offgrid_llama.native.enums import KV_TYPES, KVType, PoolingType, RopeType

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model
    from offgrid_llama.native.threadpool import ThreadPool

    from .batch import Rows

__all__ = ["BatchLimits", "check_context", "check_encoded", "check_threads", "resolved_pooling"]

_BLOCK_VALUES = 32
"""Values of a block of all quantized KV types."""

_WINDOW_SHARE = 8
"""A KV cache with a sliding window, and without ``swa_full``, takes at least 1/8 of a full one."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchLimits:
    """The batches that a context can decode.

    Attributes:
        n_batch: most tokens of a batch.
        n_ubatch: most tokens of a batch that must be one micro-batch, beside ``n_batch``.
        n_vocab: tokens of the vocabulary.
        n_embd: width of embeddings that take the place of tokens.
        n_sections: positions of each of these: 4 with M-RoPE, else 1.
        n_positions: positions that the model has an embedding for; 0 is any number.
        n_seq_max: sequences of the context.
        shared_rows: whether a row can be in several sequences.
        all_rows: whether each row is an output, as embeddings are.
        n_outputs_max: most rows with outputs.
    """

    n_batch: int
    n_ubatch: int
    n_vocab: int
    n_embd: int
    n_sections: int
    n_positions: int
    n_seq_max: int
    shared_rows: bool
    all_rows: bool
    n_outputs_max: int

    @classmethod
    def of(cls, model: Model, params: ContextParams, n_batch: int, n_ubatch: int) -> BatchLimits:
        """Return the limits of a context, whose sizes llama.cpp has set to these."""
        return cls(
            n_batch=n_batch, n_ubatch=n_ubatch, n_vocab=model.vocab.n_tokens, n_embd=model.n_embd_inp,
            n_sections=4 if model.rope_type in (RopeType.MROPE, RopeType.IMROPE) else 1,
            n_positions=model.traits.n_positions, n_seq_max=params.n_seq_max, shared_rows=params.kv_unified,
            all_rows=params.embeddings, n_outputs_max=params.n_outputs_max or n_batch,
        )  # fmt: skip

    def check(self, batch: Rows, one_micro_batch: bool) -> None:
        """Raise ValueError for a batch that llama.h aborts on, or reads beyond the end of an array for."""
        n = len(batch)
        if (
            0 < n <= self.n_batch and batch.max_token < self.n_vocab and batch.max_seq_id < self.n_seq_max
            and not (one_micro_batch or self.n_positions or self.all_rows or batch.shared_rows or batch.n_embd)
            and len(batch.logit_rows) <= self.n_outputs_max
        ):  # fmt: skip
            return  # each step of each stream comes through here
        self._check_size(n, one_micro_batch)
        self._check_rows(batch, n)

    def _check_size(self, n: int, one_micro_batch: bool) -> None:
        limit = min(self.n_batch, self.n_ubatch) if one_micro_batch else self.n_batch
        if not n:
            raise ValueError("batch is empty")
        if n > limit:
            name = "n_ubatch" if one_micro_batch and limit == self.n_ubatch else "n_batch"
            raise ValueError(f"batch has {n} tokens, over {name}={limit}: decode it in pieces, or make {name} larger")

    def _check_rows(self, batch: Rows, n: int) -> None:
        if batch.n_embd and (batch.n_embd, batch.n_sections) != (self.n_embd, self.n_sections):
            shape = f"[4, {n}]" if self.n_sections == 4 else f"[{n}]"
            raise ValueError(
                f"batch has embeddings of {batch.n_embd} values; the model takes {self.n_embd}, with positions of the shape "
                f"{shape}"
            )
        if batch.max_token >= self.n_vocab:
            raise ValueError(f"batch has token {batch.max_token}; the model has 0 to {self.n_vocab - 1}")
        if self.n_positions and max(ffi.unpack(batch.c.pos, n)) >= self.n_positions:
            last = self.n_positions - 1
            raise ValueError(f"batch has a position over {last}, the last that the model has an embedding for")
        if batch.max_seq_id >= self.n_seq_max:
            sequence("batch's seq_ids", batch.max_seq_id, self.n_seq_max)
        if batch.shared_rows and not self.shared_rows:
            row = min(batch.shared_rows)
            raise ValueError(f"row {row} of batch is in several sequences: that needs a context with kv_unified=True")
        rows = n if self.all_rows else len(batch.logit_rows)
        if rows > self.n_outputs_max:
            raise ValueError(f"batch asks for logits of {rows} rows, more than n_outputs_max={self.n_outputs_max}")


def check_context(model: Model, params: ContextParams) -> None:
    """Raise ContextError for a context that llama.cpp cannot make of this model."""
    if model.params.vocab_only:
        raise ContextError(f"{model.handle.name} has no weights to compute with: vocab_only=True")
    if params.embeddings and model.traits.architecture in ABORTS_ON_EMBEDDINGS:
        raise ContextError(f"{model.handle.name}: llama.cpp aborts on the embeddings of {model.traits.architecture}")
    _refuse_sequences(model, params)
    _refuse_kv_cache(model, params)
    _refuse_scores(model, params)


def check_threads(params: ContextParams, threadpool: ThreadPool | None) -> None:
    """Raise ValueError for more threads than the thread pool has: ggml reads beyond its end."""
    if threadpool is not None:
        for name in ("n_threads", "n_threads_batch"):
            number(name, getattr(params, name), 1, threadpool.n_threads)


def check_encoded(model: Model, name: str, batch: Rows, encoded: frozenset[int]) -> None:
    """Raise ContextError where the decoder of a model with an encoder has nothing to read.

    Args:
        model: the context's.
        name: the context's.
        batch: for the decoder.
        encoded: the sequences whose text the encoder has read.
    """
    if not model.has_decoder:
        raise ContextError(f"{name}: the model has no decoder; use encode()")
    if unread := batch.seq_ids() - encoded:
        raise ContextError(
            f"{name}: the decoder of sequence {min(unread)} has nothing to read; call encode() first, with its text in "
            "that sequence"
        )


def resolved_pooling(model: Model, pooling_type: PoolingType) -> PoolingType:
    """Return ``pooling_type``, or the model's own if it is unspecified."""
    if pooling_type is not PoolingType.UNSPECIFIED:
        return pooling_type
    return own_pooling(model.metadata)


def _refuse_sequences(model: Model, params: ContextParams) -> None:
    """Raise ContextError for several sequences where llama.cpp aborts on them, or mixes them."""
    if params.n_seq_max == 1:
        return
    if model.has_encoder and model.has_decoder and not params.kv_unified:
        raise ContextError(f"{model.handle.name}: several sequences of an encoder-decoder model need kv_unified=True")
    if model.traits.architecture in MIXES_SEQUENCES:
        raise ContextError(f"{model.handle.name}: llama.cpp mixes the sequences of a batch for plamo2: use n_seq_max=1")


def _refuse_kv_cache(model: Model, params: ContextParams) -> None:
    """Raise ContextError for a KV cache that llama.cpp aborts on, or that is larger than the memory of all devices."""
    cell_bytes = _cell_bytes(model, "type_k", params.type_k, "key") + _cell_bytes(
        model, "type_v", params.type_v, "value"
    )
    if model.is_recurrent:
        return
    shares = 1 if params.swa_full or not model.n_swa else _WINDOW_SHARE
    cache_bytes = int(cell_bytes * params.n_ctx) // shares
    remote = [device for device in model.params.devices or () if device.backend == rpc.BACKEND]
    memory_bytes = sum(device.memory_total for device in (*devices(), *remote))
    if cache_bytes > memory_bytes:
        raise ContextError(
            f"n_ctx={params.n_ctx} takes a KV cache of {cache_bytes / 2**30:,.1f} GiB; this machine has "
            f"{memory_bytes / 2**30:,.1f} GiB. Make n_ctx smaller, or type_k and type_v"
        )


def _cell_bytes(model: Model, name: str, type_name: KVType, part: str) -> float:
    """Return the bytes of one position's keys or values in all layers. Raises ContextError where heads do not fit."""
    kind = KV_TYPES[type_name]
    sizes = head_sizes(model.metadata, model.n_embd // max(model.n_head, 1), f"attention.{part}_length")
    if lib.ggml_is_quantized(kind) and any(size % _BLOCK_VALUES for size in sizes):
        raise ContextError(f"{name}={type_name!r} needs heads of a multiple of {_BLOCK_VALUES} values, not {sizes}")
    return float(model.traits.n_kv_heads * max(sizes) * lib.ggml_type_size(kind) / lib.ggml_blck_size(kind))


def _refuse_scores(model: Model, params: ContextParams) -> None:
    """Raise ContextError for scores of a model without a classifier: llama.cpp returns other numbers, or aborts."""
    if not params.embeddings or resolved_pooling(model, params.pooling_type) is not PoolingType.RANK:
        return
    in_another_file = int(model.metadata.get("split.count", 1)) > 1
    if model.traits.n_scores != model.n_cls_out and not in_another_file:
        raise ContextError(
            f"{model.handle.name} is no reranker: it needs a classifier (cls.output or cls) of {model.n_cls_out} values, "
            f"and has one of {model.traits.n_scores}"
        )
