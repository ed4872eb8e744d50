"""The engine: many requests on one context."""

from .chat import Chat, ChatCompletion, Delta
from .completion import Answer, Completion, Piece, Timings, Usage
from .engine import Engine
from .loop import EngineStats
from .options import LogitsProcessor, RequestOptions
from .request import FinishReason
from .runner import StepView

__all__ = [
    "Answer", "Chat", "ChatCompletion", "Completion", "Delta", "Engine", "EngineStats", "FinishReason", "LogitsProcessor",
    "Piece", "RequestOptions", "StepView", "Timings", "Usage",
]  # fmt: skip
