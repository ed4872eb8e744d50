"""Pooled: a context for many short texts in one decode, which Embedder and Reranker share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

from offgrid_llama.context.batch import Batch
from offgrid_llama.context.context import Context
from offgrid_llama.errors import ClosedError
from offgrid_llama.model.model import Model, check_model
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.check import number
from offgrid_llama.native.enums import PoolingType

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from offgrid_llama.model.adapter import LoRA

__all__ = ["Pooled", "joined", "packed"]

_MAX_SEQUENCES = 256
_T = TypeVar("_T")


class Pooled(Bound):
    """A context for many short texts in one decode; each text gives one row of numbers.

    Several threads may use one: they take turns, decode by decode.

    Args:
        model: the Model.
        pooling_type: how the vectors of a text's tokens become one.
        n_batch: the most tokens of one decode. None is 512, or the model's training length if that is less.
        n_threads: see Context.
        loras: adapters of the model to use, as ``Context.set_loras`` takes them.

    Raises ContextError if llama.cpp refuses, for instance a pooling type for which the model has no weights.
    """

    _instead = "make another one of the same model"

    def __init__(
        self,
        model: Model,
        pooling_type: PoolingType,
        n_batch: int | None,
        n_threads: int | None,
        loras: Mapping[LoRA, float] | Iterable[LoRA],
    ) -> None:
        check_model(model)
        if n_batch is None:
            n_batch = min(512, model.n_ctx_train or 512)
        n_batch = number("n_batch", n_batch, 1)
        n_seq_max = min(n_batch, _MAX_SEQUENCES)
        room = -(-n_batch // n_seq_max) * n_seq_max
        # A text is pooled in one micro-batch; with one buffer for all, a text may use as much of it as it needs.
        self._context = Context(
            model, n_ctx=room, n_batch=room, n_ubatch=room, n_seq_max=n_seq_max,
            kv_unified=True, embeddings=True, pooling_type=pooling_type, n_threads=n_threads,
        )  # fmt: skip
        try:
            self._context.set_loras(loras)
        except BaseException:
            self._context.close()
            raise
        self.model = model
        self.n_batch = n_batch
        self.n_ctx = min(n_batch, model.traits.n_positions or n_batch)
        self.pooling_type = self._context.pooling_type
        self._batch = Batch(room)
        self._turn = threading.Lock()  # held from a decode until its rows are read

    def set_n_threads(self, n_threads: int) -> None:
        """Compute with ``n_threads`` threads from the next batch on (``llama_set_n_threads``)."""
        self._context.set_n_threads(n_threads)

    def close(self) -> None:
        """Free the context. May be called twice."""
        self._context.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed, by itself or with its model."""
        return self._context.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _vectors(self, rows: Sequence[Sequence[int]], size: int) -> Iterator[npt.NDArray[np.float32]]:
        """Yield float32[k, size] for the next k rows of tokens: the pooled vectors of one decode."""
        import numpy as np

        def read(seqs: list[int]) -> npt.NDArray[np.float32]:
            return np.stack([self._context.sequence_embedding(seq_id)[:size] for seq_id in range(len(seqs))])

        return self._decoded(rows, read)

    def _decoded(self, rows: Sequence[Sequence[int]], read: Callable[[list[int]], _T]) -> Iterator[_T]:
        """Compute all rows, as many at once as fit; yield what ``read`` returns for the indices of those of each decode."""
        context = self._context
        try:
            for seqs in packed(map(len, rows), context.n_batch, context.n_seq_max):
                with self._turn:
                    self._decode([rows[i] for i in seqs])
                    found = read(seqs)
                yield found
        finally:  # idle threads of one context slow down those of all others in this process
            with suppress(ClosedError):
                context.release_threads()

    def _decode(self, rows: Sequence[Sequence[int]]) -> None:
        """Compute rows, each as a sequence with its index as id."""
        context, batch = self._context, self._batch
        batch.clear()
        for seq_id, row in enumerate(rows):
            batch.add_sequence(row, seq_id=seq_id, logits="all")
        if context.model.has_encoder:
            context.encode(batch)
        else:
            if context.memory.ptr:
                context.memory.clear(data=False)
            context.decode(batch)


def joined(batches: Iterable[npt.NDArray[np.float32]], size: int) -> npt.NDArray[np.float32]:
    """Return the vectors of all batches: float32[n, size]."""
    import numpy as np

    return np.concatenate([np.empty((0, size), dtype=np.float32), *batches])


def packed(lengths: Iterable[int], n_tokens: int, n_seqs: int) -> Iterator[list[int]]:
    """Cut 0, 1, 2, ... into runs of up to ``n_seqs`` indices, whose lengths add up to ``n_tokens`` at most."""
    run: list[int] = []
    room = n_tokens
    for i, length in enumerate(lengths):
        if run and (length > room or len(run) == n_seqs):
            yield run
            run, room = [], n_tokens
        run.append(i)
        room -= length
    if run:
        yield run
