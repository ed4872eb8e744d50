"""Embedder: texts to vectors, many in one decode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from offgrid_llama.context.preflight import resolved_pooling
from offgrid_llama.errors import ContextLengthError
from offgrid_llama.model.model import Model, check_model
from offgrid_llama.native.check import number
from offgrid_llama.native.enums import PoolingName, PoolingType, member
from offgrid_llama.native.kinds import listed, text_of_argument

from .pooled import Pooled, joined

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.adapter import LoRA

__all__ = ["Embedder", "normalized"]


class Embedder(Pooled):
    """Texts to vectors, with a model that was trained for it. Many texts share one decode.

    Args:
        model: the Model; several Embedders can share it.
        pooling_type: how the vectors of a text's tokens become one: "mean", "cls", "last", or "unspecified", which is the
            model's own. "none" pools nothing.
        n_batch: the most tokens of one decode. None is 512, or the model's training length if that is less.
        n_threads: see Context.
        loras: adapters of the model to use, as ``Context.set_loras`` takes them.

    Raises ContextError if llama.cpp refuses, for instance a pooling type for which the model has no weights.

    Attributes:
        n_embd: length of the vectors.
        n_batch: the most tokens of one decode. n_ctx: of one text; ``n_batch``, or the model's positions if these are fewer.
        pooling_type: the PoolingType in use.
    """

    def __init__(
        self,
        model: Model,
        *,
        pooling_type: PoolingType | PoolingName = PoolingType.UNSPECIFIED,
        n_batch: int | None = None,
        n_threads: int | None = None,
        loras: Mapping[LoRA, float] | Iterable[LoRA] = (),
    ) -> None:
        check_model(model)
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
        one = isinstance(texts, (str, bytes))
        many: Sequence[str | bytes | Sequence[int]] = [texts] if isinstance(texts, (str, bytes)) else texts
        vectors = joined(self.batches(many, normalize=normalize, truncate=truncate), self.n_embd)
        return vectors[0] if one else vectors

    def batches(
        self, texts: Sequence[str | bytes | Sequence[int]], *, normalize: bool = True, truncate: bool = False
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Do what ``embed`` does, one decode at a time: each yields float32[k, n_embd], the vectors of the next k texts.

        All texts are checked before the first decode. Between two decodes others may use this Embedder.
        """
        if self.pooling_type is PoolingType.NONE:
            raise ValueError('pooling_type="none": there is no vector for a text; use embed_tokens()')
        found = self._vectors(
            [self._tokens(i, text, truncate) for i, text in enumerate(listed("texts", texts, "texts"))], self.n_embd
        )
        return map(normalized, found) if normalize else found

    def embed_tokens(
        self, texts: Sequence[str | bytes | Sequence[int]], *, normalize: bool = True, truncate: bool = False
    ) -> list[npt.NDArray[np.float32]]:
        """Return the vectors of each text's tokens, float32[n_tokens, n_embd]; for ``pooling_type="none"``."""
        import numpy as np

        if self.pooling_type is not PoolingType.NONE:
            raise ValueError(
                f"pooling_type={self.pooling_type.name.lower()!r}: there is one vector a text; use embed()"
            )
        rows = [self._tokens(i, text, truncate) for i, text in enumerate(listed("texts", texts, "texts"))]

        def read(seqs: list[int]) -> list[npt.NDArray[np.float32]]:
            found, begin = [], 0
            for i in seqs:
                vectors = np.stack([self._context.embeddings(begin + k) for k in range(len(rows[i]))])
                found.append(normalized(vectors) if normalize else vectors)
                begin += len(rows[i])
            return found

        return [vectors for found in self._decoded(rows, read) for vectors in found]

    def __repr__(self) -> str:
        pooling = self.pooling_type.name.lower()
        return f"<Embedder of {self.model.handle.name}: {self.n_embd} values, pooling {pooling}>"

    def _tokens(self, i: int, text: str | bytes | Sequence[int], truncate: bool) -> list[int]:
        vocab, limit = self.model.vocab, self.n_ctx
        if isinstance(text, (str, bytes)):
            with text_of_argument(f"texts[{i}]"):
                tokens = vocab.tokenize(text)
        else:
            ids = listed(f"texts[{i}]", text, "token ids, or a text")
            tokens = [number(f"texts[{i}][{k}]", token, 0, vocab.n_tokens - 1) for k, token in enumerate(ids)]
        if not tokens:
            raise ValueError(f"texts[{i}] gives no tokens")
        if len(tokens) > limit:
            if not truncate:
                raise ContextLengthError(
                    f"texts[{i}] has {len(tokens)} tokens, over {limit}: shorten it, or use truncate=True",
                    n_tokens=len(tokens), n_ctx=limit, argument=f"texts[{i}]",
                )  # fmt: skip
            return self.shortened(tokens)
        return tokens

    def shortened(self, tokens: list[int]) -> list[int]:
        """Return as many of a text's tokens as fit, with the one that ends it."""
        last = tokens[-1:] if tokens[-1] in (self.model.vocab.eos, self.model.vocab.sep) else []
        return tokens[: self.n_ctx - len(last)] + last


def normalized(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return vectors scaled to length 1; those of zeros stay."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    result: npt.NDArray[np.float32] = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return result
