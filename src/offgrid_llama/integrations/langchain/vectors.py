"""LangChain's embeddings and document compressors on models of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, field_validator

from offgrid_llama.integrations.asking import checked, embedder_of, reranker_of
from offgrid_llama.tasks.embedding import Embedder
from offgrid_llama.tasks.reranking import Reranker

__all__ = ["OffgridLlamaEmbeddings", "OffgridLlamaReranker"]


class OffgridLlamaEmbeddings(BaseModel, Embeddings):  # type: ignore[misc]  # LangChain is not there for mypy
    """Embeddings of LangChain: vectors of length 1, many texts in one decode.

    All objects with one model and the same options share it.

    Attributes:
        model: the name or path of a model, or an Embedder. Texts are pooled as the model says, or by the mean.
        truncate: shorten texts that are too long, rather than raise ContextLengthError.
        document_prefix, query_prefix: put before each text, for models that were trained with one, such as "query: ".
        embedder_options: further arguments of Embedder, such as ``{"n_batch": 2048}`` for texts of more than 512 tokens.
    """

    model: Any
    truncate: bool = False
    document_prefix: str = ""
    query_prefix: str = ""
    embedder_options: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: Any) -> Any:
        return checked(model, Embedder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return the vectors of texts."""
        return self._vectors([self.document_prefix + text for text in texts])

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query."""
        return self._vectors([self.query_prefix + text])[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Do what ``embed_documents`` does, in a thread."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """Do what ``embed_query`` does, in a thread."""
        return await asyncio.to_thread(self.embed_query, text)

    def _vectors(self, texts: list[str]) -> list[list[float]]:
        embedder = embedder_of(self.model, self.embedder_options)
        found: list[list[float]] = embedder.embed(texts, truncate=self.truncate).tolist()
        return found


class OffgridLlamaReranker(BaseDocumentCompressor):  # type: ignore[misc]
    """A document compressor of LangChain that keeps the documents which answer a query best, the best one first.

    Each document that it keeps is a copy, with its score as ``metadata["relevance_score"]``.

    Attributes:
        model: the name or path of a reranker's model, or a Reranker.
        top_n: the most documents that are kept; None is all.
        truncate: shorten documents that are too long, rather than raise ContextLengthError.
        reranker_options: further arguments of Reranker, such as ``{"n_batch": 2048}``.
    """

    model: Any
    top_n: int | None = Field(3, ge=1)
    truncate: bool = False
    reranker_options: dict[str, Any] = Field(default_factory=dict)

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    @field_validator("model")
    @classmethod
    def _check_model(cls, model: Any) -> Any:
        return checked(model, Reranker)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        """Return the best documents."""
        del callbacks
        if not documents:
            return []
        reranker = reranker_of(self.model, self.reranker_options)
        texts = [document.page_content for document in documents]
        kept = []
        for place, score in reranker.rank(query, texts, top_n=self.top_n, truncate=self.truncate):
            metadata = {**documents[place].metadata, "relevance_score": score}
            kept.append(documents[place].model_copy(update={"metadata": metadata}))
        return kept

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Any = None
    ) -> Sequence[Document]:
        """Do what ``compress_documents`` does, in a thread."""
        return await asyncio.to_thread(self.compress_documents, documents, query, callbacks)
