"""The engine: many requests on one context."""

from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.tasks.request_options import LogitsProcessor, RequestArguments, RequestOptions

from .chat_completion import ChatCompletion, Delta
from .chat_options import ChatArguments, ChatOptions, TurnArguments
from .completion import Answer, Completion, Piece, Timings, TokenLogprobs, Usage
from .conversation import Chat
from .engine import Engine
from .runner import StepView
from .scoring import Score, ScoreArguments
from .stats import EngineStats

__all__ = [
    "Answer", "Chat", "ChatArguments", "ChatCompletion", "ChatOptions", "Completion", "Delta", "Engine", "EngineStats",
    "FinishReason", "LogitsProcessor", "Piece", "RequestArguments", "RequestOptions", "Score", "ScoreArguments",
    "StepView", "Timings", "TokenLogprobs", "TurnArguments", "Usage",
]  # fmt: skip
