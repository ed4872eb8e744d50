"""Haystack on Engines of this process: a chat generator, embedders, and a ranker."""

from .documents import OffgridLlamaDocumentEmbedder, OffgridLlamaRanker, OffgridLlamaTextEmbedder
from .generator import OffgridLlamaChatGenerator

__all__ = [
    "OffgridLlamaChatGenerator",
    "OffgridLlamaDocumentEmbedder",
    "OffgridLlamaRanker",
    "OffgridLlamaTextEmbedder",
]
