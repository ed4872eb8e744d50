"""LlamaIndex on Engines of this process: a model, embeddings, and a reranker."""

from .llm import OffgridLlamaLLM
from .vectors import OffgridLlamaEmbedding, OffgridLlamaRerank

__all__ = ["OffgridLlamaEmbedding", "OffgridLlamaLLM", "OffgridLlamaRerank"]
