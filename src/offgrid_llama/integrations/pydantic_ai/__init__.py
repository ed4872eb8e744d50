"""Pydantic AI on Engines of this process: a model for agents, and one for embeddings."""

from .model import OffgridLlamaModel
from .options import OffgridLlamaModelSettings
from .vectors import OffgridLlamaEmbeddingModel

__all__ = ["OffgridLlamaEmbeddingModel", "OffgridLlamaModel", "OffgridLlamaModelSettings"]
