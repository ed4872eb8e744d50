"""Haystack's embedders and rankers on models of this process."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from haystack import Document, component, default_to_dict

from offgrid_llama.integrations.asking import checked, embedder_of, name_of, reranker_of
from offgrid_llama.tasks.embedding import Embedder
from offgrid_llama.tasks.reranking import Reranker

__all__ = ["OffgridLlamaDocumentEmbedder", "OffgridLlamaRanker", "OffgridLlamaTextEmbedder"]

# Annotations are not put off in this module: some versions of Haystack read those of ``run`` as they are.


class _Embedding:
    """What both embedders have.

    Args:
        model: the name or path of a model, or an Embedder. Texts are pooled as the model says, or by the mean.
        prefix, suffix: put around each text, for models that were trained with one, such as "query: ".
        truncate: shorten texts that are too long, rather than raise ContextLengthError.
        embedder_options: further arguments of Embedder, such as ``{"n_batch": 2048}`` for texts of more than 512 tokens.
    """

    def __init__(
        self,
        model: Any,
        prefix: str = "",
        suffix: str = "",
        truncate: bool = False,
        embedder_options: dict[str, Any] | None = None,
    ) -> None:
        self.model = checked(model, Embedder)
        self.prefix = prefix
        self.suffix = suffix
        self.truncate = truncate
        self.embedder_options = embedder_options or {}

    def warm_up(self) -> None:
        """Load the model."""
        self._embedder()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` takes; an Embedder becomes the path of its model."""
        return _written(self)

    def _embedder(self) -> Embedder:
        return embedder_of(self.model, self.embedder_options)

    def _vectors(self, texts: Sequence[str]) -> list[list[float]]:
        given = [self.prefix + text + self.suffix for text in texts]
        found: list[list[float]] = self._embedder().embed(given, truncate=self.truncate).tolist() if given else []
        return found

    def _meta(self) -> dict[str, Any]:
        return {"model": name_of(self.model)}


@component
class OffgridLlamaTextEmbedder(_Embedding):
    """A text embedder of Haystack: the vector of a query, of length 1.

    Args:
        model: the name or path of a model, or an Embedder. Texts are pooled as the model says, or by the mean.
        prefix, suffix: put around each text, for models that were trained with one, such as "query: ".
        truncate: shorten texts that are too long, rather than raise ContextLengthError.
        embedder_options: further arguments of Embedder, such as ``{"n_batch": 2048}`` for texts of more than 512 tokens.
    """

    @component.output_types(embedding=list[float], meta=dict[str, Any])  # type: ignore[untyped-decorator]
    def run(self, text: str) -> dict[str, Any]:
        """Return the vector of a text, and the model. Raises TypeError for what is no text."""
        if not isinstance(text, str):
            raise TypeError(
                f"text must be a str, not {type(text).__name__}; documents have OffgridLlamaDocumentEmbedder"
            )
        return {"embedding": self._vectors([text])[0], "meta": self._meta()}

    @component.output_types(embedding=list[float], meta=dict[str, Any])  # type: ignore[untyped-decorator]
    async def run_async(self, text: str) -> dict[str, Any]:
        """Do what ``run`` does, in a thread."""
        found: dict[str, Any] = await asyncio.to_thread(self.run, text)
        return found


class _OfDocuments:
    """The texts of documents, as a model reads them."""

    meta_fields_to_embed: list[str]
    embedding_separator: str

    def _texts(self, documents: Sequence[Document]) -> list[str]:
        """Return the text of each document, with those fields of its metadata that it has."""
        if isinstance(documents, str) or not all(isinstance(each, Document) for each in documents):
            raise TypeError("documents must be a list of Haystack's Documents")
        return [self.embedding_separator.join(self._parts(document)) for document in documents]

    def _parts(self, document: Document) -> list[str]:
        told: Mapping[str, Any] = document.meta or {}
        fields = [str(told[name]) for name in self.meta_fields_to_embed if told.get(name) is not None]
        return [*fields, document.content or ""]


@component
class OffgridLlamaDocumentEmbedder(_Embedding, _OfDocuments):
    """A document embedder of Haystack: vectors of length 1, many documents in one decode.

    Args:
        model: the name or path of a model, or an Embedder. Texts are pooled as the model says, or by the mean.
        prefix, suffix: put around each text, for models that were trained with one, such as "passage: ".
        truncate: shorten texts that are too long, rather than raise ContextLengthError.
        embedder_options: further arguments of Embedder, such as ``{"n_batch": 2048}`` for texts of more than 512 tokens.
        meta_fields_to_embed: fields of a document's metadata that come before its content.
        embedding_separator: between these.
    """

    def __init__(
        self,
        model: Any,
        prefix: str = "",
        suffix: str = "",
        truncate: bool = False,
        embedder_options: dict[str, Any] | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
    ) -> None:
        _Embedding.__init__(self, model, prefix, suffix, truncate, embedder_options)  # Haystack remakes this class
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator

    @component.output_types(documents=list[Document], meta=dict[str, Any])  # type: ignore[untyped-decorator]
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """Return copies of documents with their vectors, and the model. Raises TypeError for what are no documents."""
        vectors = self._vectors(self._texts(documents))
        found = [replace(document, embedding=vector) for document, vector in zip(documents, vectors, strict=True)]
        return {"documents": found, "meta": self._meta()}

    @component.output_types(documents=list[Document], meta=dict[str, Any])  # type: ignore[untyped-decorator]
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """Do what ``run`` does, in a thread."""
        found: dict[str, Any] = await asyncio.to_thread(self.run, documents)
        return found


@component
class OffgridLlamaRanker(_OfDocuments):
    """A ranker of Haystack: the documents that answer a query best, the best one first, with their scores.

    Args:
        model: the name or path of a reranker's model, or a Reranker.
        top_k: the most documents that are kept; None is all.
        score_threshold: leave out documents with a lower score; None keeps them.
        meta_fields_to_embed: fields of a document's metadata that come before its content.
        embedding_separator: between these.
        truncate: shorten documents that are too long, rather than raise ContextLengthError.
        reranker_options: further arguments of Reranker, such as ``{"n_batch": 2048}``.

    Raises ValueError for a model of another kind, and for a ``top_k`` below 1.
    """

    def __init__(
        self,
        model: Any,
        top_k: int | None = 10,
        score_threshold: float | None = None,
        meta_fields_to_embed: list[str] | None = None,
        embedding_separator: str = "\n",
        truncate: bool = False,
        reranker_options: dict[str, Any] | None = None,
    ) -> None:
        self.model = checked(model, Reranker)
        self.top_k = _positive(top_k)
        self.score_threshold = score_threshold
        self.meta_fields_to_embed = meta_fields_to_embed or []
        self.embedding_separator = embedding_separator
        self.truncate = truncate
        self.reranker_options = reranker_options or {}

    def warm_up(self) -> None:
        """Load the model."""
        self._reranker()

    def to_dict(self) -> dict[str, Any]:
        """Return what ``from_dict`` takes; a Reranker becomes the path of its model."""
        return _written(self)

    def _reranker(self) -> Reranker:
        return reranker_of(self.model, self.reranker_options)

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    def run(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """Return copies of the best documents. ``top_k`` and ``score_threshold`` are in place of the component's."""
        texts = self._texts(documents)
        if not documents:
            return {"documents": []}
        most = self.top_k if top_k is None else _positive(top_k)
        least = self.score_threshold if score_threshold is None else score_threshold
        ranked = self._reranker().rank(query, texts, top_n=most, truncate=self.truncate)
        kept = [(place, score) for place, score in ranked if least is None or score >= least]
        return {"documents": [replace(documents[place], score=score) for place, score in kept]}

    @component.output_types(documents=list[Document])  # type: ignore[untyped-decorator]
    async def run_async(
        self,
        query: str,
        documents: list[Document],
        top_k: int | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, list[Document]]:
        """Do what ``run`` does, in a thread."""
        found: dict[str, list[Document]] = await asyncio.to_thread(self.run, query, documents, top_k, score_threshold)
        return found


def _written(written: Any) -> dict[str, Any]:
    """Return a component as a dict: its attributes are its arguments, but for what Haystack adds to it."""
    own = {name: value for name, value in vars(written).items() if not name.startswith("_")}
    found: dict[str, Any] = default_to_dict(written, **{**own, "model": name_of(written.model)})
    return found


def _positive(top_k: int | None) -> int | None:
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, or None for all, not {top_k}")
    return top_k
