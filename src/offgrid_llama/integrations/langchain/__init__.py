"""LangChain on Engines of this process: a chat model, embeddings, and a reranker."""

from .chat_model import ChatOffgridLlama
from .vectors import OffgridLlamaEmbeddings, OffgridLlamaReranker

__all__ = ["ChatOffgridLlama", "OffgridLlamaEmbeddings", "OffgridLlamaReranker"]
