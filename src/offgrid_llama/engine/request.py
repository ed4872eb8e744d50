"""Request: one sequence to generate, and how far it is (data only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from .budget import Budget
from .guessing import Acceptance, Lookup

__all__ = ["FinishReason", "Request"]


class FinishReason(str, Enum):
    """Why a request has ended."""

    STOP = "stop"
    """The model ended the text, or a stop string did."""
    LENGTH = "length"
    """``max_tokens`` were generated, or the sequence is full."""
    CANCELLED = "cancelled"
    """By whoever has submitted it, or by the engine's ``close()``."""
    TOOL_CALLS = "tool_calls"
    """Of a message of a chat: it has ended with calls of tools."""
    ERROR = "error"


@dataclass(eq=False, slots=True)
class Request:
    """One sequence to generate.

    Attributes:
        prompt: its token ids.
        max_tokens: most tokens to generate.
        n_keep: where its sequence is full it goes on with the first so many tokens and the later half of the others; None
            where it ends there.
        priority: requests of a larger one begin first, those of the same one in the order in which they came.
        sampler: how its tokens are chosen; only the runner looks at it.
        salt: only requests of the same one begin with what another has computed.
        processors: what is done to its logits before; only the runner looks at them.
        guesser: guesses its next tokens by what was said before; None where nothing is guessed so.
        budget: how long it may think; None is as long as it likes.
        guided: whether a grammar chooses with the sampler, token by token.
        acceptance: how often a draft model is right; None where it is not asked.
        answer: who gets the text; only the engine looks at it.
        tokens: token ids generated so far, without the one that ends the text.
        finish_reason: None while it waits or runs.
        seq: its sequence id while it runs.
        n_cached: how many tokens of the prompt were computed already when it began.
        n_guessed, n_right: how many tokens were guessed and checked, and how many of them were right.
    """

    prompt: Sequence[int]
    max_tokens: int
    priority: int = 0
    sampler: Any = None
    salt: str = ""
    processors: Sequence[Any] = ()
    guesser: Lookup | None = None
    budget: Budget | None = None
    guided: bool = False
    acceptance: Acceptance | None = None
    n_keep: int | None = None
    answer: Any = None
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    seq: int | None = None
    n_cached: int = 0
    n_guessed: int = 0
    n_right: int = 0
