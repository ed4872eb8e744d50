"""Outputs: what the last decode of a context left to read, and in which rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.model.params import ContextParams
from offgrid_llama.native.check import number, raise_caught
from offgrid_llama.native.enums import PoolingType
from offgrid_llama.native.handle import Owner

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.model import Model

__all__ = ["Outputs"]


class Outputs:
    """The results of a context's last decode. Each decode counts as a step, and overwrites the results of the one before.

    Attributes:
        owner: the Context, which lives as long as anything that reads its results.
        handle: its Handle. Results are read inside of ``with handle``, which is the context's lock.
        n_vocab: logits of one row.
        embeddings: whether the context computes embeddings: then all rows of a batch can be read.
        pooling_type: how embeddings are pooled, resolved.
        step: the number of steps so far, failed ones included.
        rows: the rows of the batch that llama.h may be asked for; llama.h aborts for any other.
    """

    __slots__ = (
        "_embedding_size", "_pooled_size", "embeddings", "handle", "n_vocab", "owner", "pooling_type", "rows", "step",
    )  # fmt: skip

    def __init__(self, owner: Owner, model: Model, params: ContextParams, pooling_type: PoolingType) -> None:
        self.owner = owner
        self.handle = owner.handle
        self.n_vocab = model.vocab.n_tokens
        self.embeddings = params.embeddings
        self.pooling_type = pooling_type
        self._embedding_size = model.n_embd_out
        self._pooled_size = model.n_cls_out if pooling_type is PoolingType.RANK else model.n_embd_out
        self.step = 0
        self.rows: frozenset[int] = frozenset()

    def replaced(self, row: int) -> None:
        """Note that C code has decoded by itself, and that ``row`` can be read."""
        self.step += 1
        self.rows = frozenset([row])

    def readable(self, row: int) -> int:
        """Return ``row`` of the last batch, from 0, if it can be read. A negative row counts from the end.

        Raises ValueError for a row without results, ClosedError after the context's end.
        """
        if type(row) is int and row in self.rows:
            return row
        self.handle.check_open()
        row = number("row", row, -(2**31))
        if row in self.rows:
            return row
        if row < 0 and -row <= len(self.rows):
            return sorted(self.rows)[row]
        rows = ", ".join(map(str, sorted(self.rows)[:8])) or "none"
        raise ValueError(
            f"row {row} has no logits. The last successful decode has {len(self.rows)} rows with logits ({rows}); "
            "ask for them with batch.add(..., logits=True)"
        )

    def embedding(self, row: int) -> npt.NDArray[np.float32]:
        """Return a copy of one row's embedding (``llama_get_embeddings_ith``). Raises ValueError where there is none."""
        with self.handle as ptr:
            row = self.readable(row)
            # Where sequences are pooled llama.h returns a buffer that is not filled.
            there = self.embeddings and self.pooling_type is PoolingType.NONE
            values = lib.llama_get_embeddings_ith(ptr, row) if there else ffi.NULL
            return self._vector(values, f"row {row}", self._embedding_size)

    def sequence_embedding(self, seq_id: int) -> npt.NDArray[np.float32]:
        """Return a copy of a sequence's pooled embedding (``llama_get_embeddings_seq``), or ValueError without one."""
        with self.handle as ptr:
            there = self.embeddings and bool(self.rows)
            values = lib.llama_get_embeddings_seq(ptr, seq_id) if there else ffi.NULL
            return self._vector(values, f"sequence {seq_id}", self._pooled_size)

    def _vector(self, values: Any, what: str, size: int) -> npt.NDArray[np.float32]:
        import numpy as np

        if not values:
            raise_caught()
            raise ValueError(
                f"{what} has no embedding: the context has embeddings={self.embeddings}, "
                f"pooling_type={self.pooling_type.name.lower()!r}, and the last batch {len(self.rows)} rows"
            )
        vector: npt.NDArray[np.float32] = np.frombuffer(ffi.buffer(values, 4 * size), dtype=np.float32).copy()
        return vector
