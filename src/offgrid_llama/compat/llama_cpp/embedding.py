"""TextEmbedding: ``embed`` and ``create_embedding`` of a Llama, on an Embedder."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from offgrid_llama.native.enums import PoolingType
from offgrid_llama.tasks.embedding import Embedder

if TYPE_CHECKING:
    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model

__all__ = ["TextEmbedding"]


class TextEmbedding:
    """The part of a Llama that makes vectors."""

    n_batch: int
    model_path: str
    _given: dict[str, Any]
    _loras: dict[LoRA, float]
    _weights: Model

    @cached_property
    def _embedder(self) -> Embedder:
        if not self._given["embedding"]:
            raise RuntimeError("Llama model must be created with embedding=True to call this method")
        return Embedder(
            self._weights, pooling_type=PoolingType(self._given["pooling_type"]), n_batch=self.n_batch,
            n_threads=self._given["n_threads"] or None, loras=self._loras,
        )  # fmt: skip

    def embed(
        self,
        input: str | list[str],  # noqa: A002 - its name there
        normalize: bool = False,
        truncate: bool = True,
        return_count: bool = False,
    ) -> Any:
        """Return the vector of a text, or a list of those of several; of each token where the model pools nothing.

        Args:
            input: the text, or texts. normalize: scale vectors to length 1.
            truncate: shorten a text of more than ``n_batch`` tokens; otherwise it raises ValueError.
            return_count: return (vectors, number of tokens) instead.

        Raises RuntimeError for a Llama without ``embedding=True``.
        """
        embedder = self._embedder
        texts = [input] if isinstance(input, str) else input
        rows = [self._weights.vocab.tokenize(text) for text in texts]
        for row in rows:
            if len(row) > embedder.n_ctx and not truncate:
                raise ValueError(f"Requested tokens ({len(row)}) exceed batch size of {embedder.n_ctx}")
        rows = [embedder.shortened(row) if len(row) > embedder.n_ctx else row for row in rows]
        compute = embedder.embed_tokens if embedder.pooling_type is PoolingType.NONE else embedder.embed
        vectors: Any = [each.tolist() for each in compute(rows, normalize=normalize)]
        found = vectors[0] if isinstance(input, str) else vectors
        return (found, sum(map(len, rows))) if return_count else found

    def create_embedding(self, input: str | list[str], model: str | None = None) -> dict[str, Any]:  # noqa: A002
        """Return the vectors of ``embed`` as OpenAI's response; ``model`` is the name that it tells."""
        vectors, n_tokens = self.embed(input if isinstance(input, list) else [input], return_count=True)
        data = [{"object": "embedding", "embedding": vector, "index": i} for i, vector in enumerate(vectors)]
        return {
            "object": "list", "data": data, "model": self.model_path if model is None else model,
            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens},
        }  # fmt: skip
