"""Embedder: texts to vectors, many in one decode; and Pooled, which it shares with Reranker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._check import number
from .batch import Batch
from .context import Context
from .errors import ContextLengthError
from .feasibility import resolved_pooling
from .params import PoolingType, member

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

    from .adapter import LoRA
    from .model import Model

__all__ = ["Embedder", "Pooled"]

_MAX_SEQUENCES = 256


class Pooled:
    """A context for many short texts in one decode, each of which gives one row of numbers.

    Args:
        model: the Model.
        pooling_type: how the vectors of a text's tokens become one.
        n_batch: most tokens of one decode. None is 512, or what the model was trained for if that is less.
        n_threads: see Context.
        loras: adapters of the model to use, as ``Context.set_loras`` takes them.

    Raises ContextError where llama.cpp refuses, for instance for a pooling type that the model has no weights for.
    """

    def __init__(
        self,
        model: Model,
        pooling_type: PoolingType,
        n_batch: int | None,
        n_threads: int | None,
        loras: Mapping[LoRA, float] | Iterable[LoRA],
    ) -> None:
        model._handle.check_open()
        if n_batch is None:
            n_batch = min(512, model.n_ctx_train or 512)
        n_batch = number("n_batch", n_batch, 1)
        n_seq_max = min(n_batch, _MAX_SEQUENCES)
        room = -(-n_batch // n_seq_max) * n_seq_max
        # A text's tokens must be in one micro-batch to be pooled; one buffer for all lets a text have as much as it needs.
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
        self.n_ctx = min(n_batch, model._n_positions or n_batch)
        self.pooling_type = self._context.pooling_type
        self._batch = Batch(room)

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

    def _pooled(self, rows: Sequence[Sequence[int]], size: int) -> npt.NDArray[np.float32]:
        """Return float32[len(rows), size]: what the tokens of each row give."""
        import numpy as np

        vectors = np.empty((len(rows), size), dtype=np.float32)
        for seqs in self._decoded(rows):
            for seq_id, i in enumerate(seqs):
                vectors[i] = self._context.sequence_embedding(seq_id)
        return vectors

    def _decoded(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Compute all rows, as many at once as there is room for; yield the indices of those that can be read now."""
        context, batch = self._context, self._batch
        for seqs in _packed(map(len, rows), context.n_batch, context.n_seq_max):
            batch.clear()
            for seq_id, i in enumerate(seqs):
                batch.add_sequence(rows[i], seq_id=seq_id, logits="all")
            if context.model.has_encoder:
                context.encode(batch)
            else:
                if context.memory._ptr:
                    context.memory.clear(data=False)
                context.decode(batch)
            yield seqs


class Embedder(Pooled):
    """Texts to vectors, with a model that was trained for it. Many texts share one decode.

    Args:
        model: the Model; several Embedders can share it.
        pooling_type: how the vectors of a text's tokens become one: "mean", "cls", "last", or "unspecified", which is the
            model's own. "none" pools nothing.
        n_batch: most tokens of one decode. None is 512, or what the model was trained for if that is less.
        n_threads: see Context.
        loras: adapters of the model to use, as ``Context.set_loras`` takes them.

    Raises ContextError where llama.cpp refuses, for instance for a pooling type that the model has no weights for.

    Attributes:
        n_embd: length of the vectors.
        n_batch: most tokens of one decode. n_ctx: of one text; ``n_batch``, or the model's positions if these are fewer.
        pooling_type: the PoolingType in use.
    """

    def __init__(
        self,
        model: Model,
        *,
        pooling_type: PoolingType | str = PoolingType.UNSPECIFIED,
        n_batch: int | None = None,
        n_threads: int | None = None,
        loras: Mapping[LoRA, float] | Iterable[LoRA] = (),
    ) -> None:
        pooling = member("pooling_type", pooling_type, PoolingType)
        if resolved_pooling(model, pooling) is PoolingType.RANK:
            raise ValueError('pooling_type="rank" gives scores, no vectors: use Reranker, or another pooling_type')
        super().__init__(model, pooling, n_batch, n_threads, loras)
        self.n_embd = model.n_embd_out

    def embed(
        self,
        texts: str | bytes | Sequence[str | bytes | Sequence[int]],
        *,
        normalize: bool = True,
        truncate: bool = False,
    ) -> npt.NDArray[np.float32]:
        """Return the vectors of ``texts``: float32[len(texts), n_embd], or float32[n_embd] for one str or bytes.

        Args:
            texts: str, bytes of UTF-8, or token ids as they are.
            normalize: scale each vector to length 1, so that the dot product of two is their cosine similarity.
            truncate: shorten a text that is longer than ``n_ctx`` tokens, instead of raising.

        Raises:
            ContextLengthError: a text has more tokens than ``n_ctx``, without ``truncate``.
            ValueError: a text has no tokens, or the embedder pools nothing.
        """
        if self.pooling_type is PoolingType.NONE:
            raise ValueError('pooling_type="none": there is no vector for a text; use embed_tokens()')
        one = isinstance(texts, (str, bytes))
        many: Sequence[str | bytes | Sequence[int]] = [texts] if isinstance(texts, (str, bytes)) else texts
        vectors = self._pooled([self._tokens(i, text, truncate) for i, text in enumerate(many)], self.n_embd)
        if normalize:
            vectors = _normalized(vectors)
        return vectors[0] if one else vectors

    def embed_tokens(
        self, texts: Sequence[str | bytes | Sequence[int]], *, normalize: bool = True, truncate: bool = False
    ) -> list[npt.NDArray[np.float32]]:
        """Return the vectors of each text's tokens, float32[n_tokens, n_embd]; for ``pooling_type="none"``."""
        import numpy as np

        if self.pooling_type is not PoolingType.NONE:
            raise ValueError(
                f"pooling_type={self.pooling_type.name.lower()!r}: there is one vector a text; use embed()"
            )
        rows = [self._tokens(i, text, truncate) for i, text in enumerate(texts)]
        found: list[Any] = [None] * len(rows)
        for seqs in self._decoded(rows):
            begin = 0
            for i in seqs:
                vectors = np.stack([self._context.embeddings(begin + k) for k in range(len(rows[i]))])
                found[i] = _normalized(vectors) if normalize else vectors
                begin += len(rows[i])
        return found

    def __repr__(self) -> str:
        pooling = self.pooling_type.name.lower()
        return f"<Embedder of {self.model._handle.name}: {self.n_embd} values, pooling {pooling}>"

    def _tokens(self, i: int, text: str | bytes | Sequence[int], truncate: bool) -> list[int]:
        vocab, limit = self.model.vocab, self.n_ctx
        if isinstance(text, (str, bytes)):
            tokens = vocab.tokenize(text)
        else:
            tokens = [number(f"texts[{i}][{k}]", token, 0, vocab.n_tokens - 1) for k, token in enumerate(text)]
        if not tokens:
            raise ValueError(f"texts[{i}] gives no tokens")
        if len(tokens) > limit:
            if not truncate:
                raise ContextLengthError(
                    f"texts[{i}] has {len(tokens)} tokens, over {limit}: shorten it, or use truncate=True",
                    n_tokens=len(tokens), n_ctx=limit,
                )  # fmt: skip
            last = tokens[-1:] if tokens[-1] in (vocab.eos, vocab.sep) else []
            tokens = tokens[: limit - len(last)] + last
        return tokens


def _packed(lengths: Iterable[int], n_tokens: int, n_seqs: int) -> Iterator[list[int]]:
    """Cut 0, 1, 2, ... into runs of at most ``n_tokens`` in the sum of lengths and ``n_seqs`` in number."""
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


def _normalized(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: npt.NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return result
