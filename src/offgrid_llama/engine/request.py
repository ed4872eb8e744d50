"""Request: what somebody wants generated, and how far it is (data only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["FinishReason", "Request"]


class FinishReason(str, Enum):
    """Why a request has ended."""

    STOP = "stop"
    """The model ended the text, or a stop string did."""
    LENGTH = "length"
    """``max_tokens`` were generated, or the sequence is full."""
    CANCELLED = "cancelled"
    ERROR = "error"


@dataclass(eq=False)
class Request:
    """One sequence to generate.

    Attributes:
        prompt: its token ids.
        max_tokens: most tokens to generate.
        priority: requests of a larger one begin first, those of the same one in the order in which they came.
        tokens: token ids generated so far, without the one that ends the text.
        finish_reason: None while it waits or runs.
        seq: its sequence id while it runs.
        n_cached: how many tokens of the prompt were computed already when it began.
    """

    prompt: Sequence[int]
    max_tokens: int
    priority: int = 0
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    seq: int | None = None
    n_cached: int = 0
