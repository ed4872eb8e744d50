"""FinishReason: why a generated text ended (standard library only)."""

from __future__ import annotations

from enum import Enum

__all__ = ["FinishReason"]


class FinishReason(str, Enum):
    """Why a text ended. Each member equals its value, a str: ``FinishReason.STOP == "stop"``."""

    STOP = "stop"
    """The model ended the text, or a stop string did."""
    LENGTH = "length"
    """The text reached ``max_tokens``, or its sequence is full."""
    CANCELLED = "cancelled"
    """The caller cancelled the request, or the engine was closed."""
    TOOL_CALLS = "tool_calls"
    """A message of a chat ended with tool calls."""
    ERROR = "error"
    """The request failed."""

    __str__ = str.__str__
