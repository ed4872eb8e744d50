"""LiteLLM on Engines of this process: a provider."""

from .provider import PROVIDER, OffgridLlamaProvider, register

__all__ = ["PROVIDER", "OffgridLlamaProvider", "register"]
