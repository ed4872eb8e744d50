"""Shortening: a conversation that is too long for its model, without its oldest messages (pure)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["Messages", "shortened"]

Messages = Sequence[Mapping[str, Any]]


def shortened(messages: Messages, n_tokens: Callable[[Messages], int], limit: int) -> Messages | None:
    """Return a conversation with as many of its newest messages as fit, or None where even the last ones do not.

    System messages stay. The rest begins with a message of the user, as many templates want. Where the last turn
    alone is too long, its question stays, and the oldest calls behind it go. No result of a tool is without its call.

    Args:
        messages: the conversation.
        n_tokens: returns the length of the prompt of a conversation.
        limit: tokens of a prompt, at most.
    """
    questions = _places(messages, "user")
    if not questions:
        return None
    last = questions[-1]
    begins = [*questions, *(at for at in _places(messages, "assistant") if at > last + 1)]
    first = bisect_left(begins, True, key=lambda at: n_tokens(_from(messages, at, last)) <= limit)
    return None if first == len(begins) else _from(messages, begins[first], last)


def _places(messages: Messages, role: str) -> list[int]:
    return [at for at, message in enumerate(messages) if message.get("role") == role]


def _from(messages: Messages, begin: int, question: int) -> Messages:
    """Return the messages from one on, with the question that they are about, and those of the system before them."""
    return [
        message
        for at, message in enumerate(messages)
        if at >= begin or at == question or message.get("role") in ("system", "developer")
    ]
