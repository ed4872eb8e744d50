"""LlamaIndex's embeddings and node postprocessors on models of this process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, ClassVar

import llama_index.core.instrumentation as instrument
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
from pydantic import Field, model_validator

from offgrid_llama.integrations.asking import embedder_of, name_of, reranker_of
from offgrid_llama.tasks.embedding import Embedder
from offgrid_llama.tasks.reranking import Reranker

from .component import OfModel

__all__ = ["OffgridLlamaEmbedding", "OffgridLlamaRerank"]

_N_CHUNK = 1536
"""Tokens of LlamaIndex's longest chunks, which have 1,024 as another tokenizer counts them, and their metadata."""

_dispatcher = instrument.get_dispatcher(__name__)


class OffgridLlamaEmbedding(OfModel, BaseEmbedding):  # type: ignore[misc]  # LlamaIndex is not there for mypy
    """Embeddings of LlamaIndex: vectors of length 1, many texts in one decode.

    All objects with one model and the same options share it.

    Attributes:
        model: the name or path of a model, or an Embedder. Texts are pooled as the model says, or by the mean.
        model_name: the name that events and caches have; by default that of the model.
        truncate: shorten texts that are too long, rather than raise ContextLengthError.
        text_prefix, query_prefix: put before each text, for models that were trained with one, such as "query: ".
        embed_batch_size: how many texts LlamaIndex hands over at a time.
        embedder_options: further arguments of Embedder. A text may have 1,536 tokens, or as many as the model has
            positions; ``{"n_batch": 8192}`` is room for longer ones.
    """

    model_name: str = ""
    truncate: bool = False
    text_prefix: str = ""
    query_prefix: str = ""
    embed_batch_size: int = Field(256, gt=0, le=2048)
    embedder_options: dict[str, Any] = Field(default_factory=dict)

    _kind: ClassVar[type] = Embedder

    @model_validator(mode="after")
    def _name_it(self) -> OffgridLlamaEmbedding:
        if not self.model_name:
            self.model_name = name_of(self.model)
        return self

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vectors([self.query_prefix + query])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._vectors([self.text_prefix + text for text in texts])

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    def _vectors(self, texts: list[str]) -> list[list[float]]:
        embedder = embedder_of(self.model, {"n_text": _N_CHUNK, **self.embedder_options})
        found: list[list[float]] = embedder.embed(texts, truncate=self.truncate).tolist()
        return found


class OffgridLlamaRerank(OfModel, BaseNodePostprocessor):  # type: ignore[misc]
    """A node postprocessor of LlamaIndex that keeps the nodes which answer a query best, the best one first.

    Attributes:
        model: the name or path of a reranker's model, or a Reranker.
        top_n: the most nodes that are kept; None is all.
        truncate: shorten nodes that are too long, rather than raise ContextLengthError.
        reranker_options: further arguments of Reranker. A query and a node may have 1,536 tokens, or as many as the model
            has positions; ``{"n_batch": 8192}`` is room for longer ones.
    """

    top_n: int | None = Field(3, ge=1)
    truncate: bool = False
    reranker_options: dict[str, Any] = Field(default_factory=dict)

    _kind: ClassVar[type] = Reranker

    def _postprocess_nodes(
        self, nodes: Sequence[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        """Return the best nodes with their scores; those that are given keep theirs. Raises ValueError without a query."""
        if query_bundle is None:
            raise ValueError("query_bundle, or query_str, is missing: nodes are ranked by a query")
        if not nodes:
            return []
        top_n, query, name = self.top_n or len(nodes), query_bundle.query_str, name_of(self.model)
        _dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=[*nodes], top_n=top_n, model_name=name))
        asked = {
            EventPayload.NODES: nodes, EventPayload.MODEL_NAME: name, EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }  # fmt: skip
        with self.callback_manager.event(CBEventType.RERANKING, payload=asked) as event:
            kept = self._ranked(query, nodes, top_n)
            event.on_end(payload={EventPayload.NODES: kept})
        _dispatcher.event(ReRankEndEvent(nodes=kept))
        return kept

    def _ranked(self, query: str, nodes: Sequence[NodeWithScore], top_n: int) -> list[NodeWithScore]:
        reranker = reranker_of(self.model, {"n_text": _N_CHUNK, **self.reranker_options})
        texts = [each.node.get_content(metadata_mode=MetadataMode.EMBED) for each in nodes]
        found = reranker.rank(query, texts, top_n=top_n, truncate=self.truncate)
        return [NodeWithScore(node=nodes[place].node, score=score) for place, score in found]
