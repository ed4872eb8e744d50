"""Pydantic AI's embedding models on models of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic_ai.embeddings import EmbeddingModel, EmbeddingResult
from pydantic_ai.exceptions import UserError
from pydantic_ai.usage import RequestUsage

from offgrid_llama.integrations.asking import checked, embedder_of, name_of
from offgrid_llama.tasks.embedding import Embedder, normalized

from .errors import engine_errors
from .messages import SYSTEM

__all__ = ["OffgridLlamaEmbeddingModel"]


@dataclass(init=False)
class OffgridLlamaEmbeddingModel(EmbeddingModel):  # type: ignore[misc]  # Pydantic AI is not there for mypy
    """An embedding model of Pydantic AI: vectors of length 1, many texts in one decode.

    All objects with one model and the same options share it. It knows two settings: ``truncate`` shortens texts that are
    too long, rather than raise an error; ``dimensions`` keeps the first values of each vector and scales it to length 1,
    for models that were trained for that.

    Args:
        model: the name or path of a model, or an Embedder. Texts are pooled as the model says, or by the mean.
        document_prefix, query_prefix: put before each text, for models that were trained with one, such as "query: ".
        embedder_options: further arguments of Embedder, such as ``{"n_batch": 2048}`` for texts of more than 512 tokens.
        settings: EmbeddingSettings that apply where a call has none.

    Attributes:
        model, document_prefix, query_prefix, embedder_options: as given.

    Raises ValueError for a ``model`` of another type.
    """

    model: Any = field(repr=False)
    document_prefix: str
    query_prefix: str
    embedder_options: dict[str, Any]

    def __init__(
        self,
        model: Any,
        *,
        document_prefix: str = "",
        query_prefix: str = "",
        embedder_options: Mapping[str, Any] | None = None,
        settings: Any = None,
    ) -> None:
        self.model = checked(model, Embedder)
        self.document_prefix = document_prefix
        self.query_prefix = query_prefix
        self.embedder_options = dict(embedder_options or {})
        super().__init__(settings=settings)

    @property
    def model_name(self) -> str:
        """The name or path of the model."""
        return name_of(self.model)

    @property
    def system(self) -> str:
        """The provider, for tracers: "offgrid-llama"."""
        return SYSTEM

    def _embedder(self) -> Embedder:
        """Return the Embedder; the first call loads its model."""
        return embedder_of(self.model, self.embedder_options)

    async def embed(self, inputs: str | Sequence[str], *, input_type: str, settings: Any = None) -> EmbeddingResult:
        """Return the vectors of texts, in a thread.

        Args:
            inputs: a text, or several.
            input_type: "query" or "document", which decides on the prefix.
            settings: EmbeddingSettings.

        Raises UserError for ``dimensions`` that the vectors do not have, ModelContextWindowExceededError for a text that is
        too long, and ValueError for one without tokens.
        """
        texts, settings = self.prepare_embed(inputs, settings)
        prefix = self.query_prefix if input_type == "query" else self.document_prefix
        with engine_errors(self.model_name):
            vectors, n_tokens = await asyncio.to_thread(self._embed, [prefix + text for text in texts], settings)
        return EmbeddingResult(
            embeddings=vectors,
            inputs=texts,
            input_type=input_type,
            model_name=self.model_name,
            provider_name=self.system,
            usage=RequestUsage(input_tokens=n_tokens),
        )

    def _embed(self, texts: list[str], settings: Mapping[str, Any]) -> tuple[list[list[float]], int]:
        """Return the vectors of texts, and the number of their tokens."""
        embedder = self._embedder()
        dimensions = settings.get("dimensions", embedder.n_embd)
        if not 0 < dimensions <= embedder.n_embd:
            raise UserError(f"dimensions must be 1 to {embedder.n_embd}, not {dimensions}")
        vectors = embedder.embed(texts, truncate=bool(settings.get("truncate", False)))
        if dimensions < embedder.n_embd:
            vectors = normalized(vectors[:, :dimensions])
        lengths = (len(embedder.model.vocab.tokenize(text)) for text in texts)
        return vectors.tolist(), sum(min(length, embedder.n_ctx) for length in lengths)

    async def max_input_tokens(self) -> int:
        """Return the most tokens of one text."""
        return (await asyncio.to_thread(self._embedder)).n_ctx

    async def count_tokens(self, text: str) -> int:
        """Return the number of a text's tokens, with those that begin and end it, and without a prefix."""
        embedder = await asyncio.to_thread(self._embedder)
        return len(embedder.model.vocab.tokenize(text))
