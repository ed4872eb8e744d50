"""Running: a request that has a slot, with its text, and the rows of such requests (pure)."""

from __future__ import annotations

from typing import Generic

from .media_tokens import Chunk
from .plan import R, Rows

__all__ = ["MAX_FORCED_TOKENS", "Running", "are_steady", "count_guesses"]

MAX_FORCED_TOKENS = 32
"""Forced tokens that a request which generates computes at once, at most; with more of them it counts as a prompt."""


class Running(Generic[R]):
    """A request that has a slot.

    Attributes:
        request: the request. seq: its slot.
        todo: tokens that are not computed yet.
        order: its place among all that have been given slots.
        late_pos: the position of the first token with its late adapters; 0 without any.
        prompt, generated: the text of the slot: ``generated`` is all that was sampled, what comes after a stop string
            included, without the tokens that a shift has removed.
    """

    __slots__ = ("generated", "late_pos", "order", "prompt", "request", "seq", "todo")

    def __init__(self, request: R, seq: int, todo: list[int], order: int = 0) -> None:
        self.request = request
        self.prompt = request.prompt
        self.seq = seq
        self.todo = todo
        self.order = order
        self.late_pos = 0 if request.late is None else request.late.pos
        self.generated: list[int] = []

    def text(self) -> list[int]:
        """Return the text of the slot."""
        return [*self.prompt, *self.generated]

    def n_usable(self) -> int:
        """Return with how many of its tokens the text can go on, if memory has them: not those whose logits are needed."""
        scored = self.request.scored
        return len(self.text()) - 1 if scored is None or scored >= len(self.prompt) else scored - 1

    def n_alike(self, pos: int) -> int:
        """Return how many tokens from a place on one decode can compute, at most: of the same adapters, and of one chunk."""
        n = self.late_pos - pos if pos < self.late_pos else len(self.todo)
        chunk = self.request.chunk_at(pos)
        return n if chunk is None else min(n, (chunk.begin if pos < chunk.begin else chunk.end) - pos)

    def chunk(self, pos: int) -> Chunk | None:
        """Return the chunk that the token at a place is in; None for a token of text."""
        chunk = self.request.chunk_at(pos)
        return chunk if chunk is not None and chunk.begin <= pos else None

    def remove(self, begin: int, end: int) -> None:
        """Remove the tokens [begin, end) from the text; what is left counts as generated."""
        text = self.text()
        self.prompt, self.generated = (), text[:begin] + text[end:]
        self.late_pos -= max(min(self.late_pos, end) - begin, 0)


def are_steady(rows: list[Rows[R]]) -> bool:
    """Return whether no request has anything to guess from, and none must be seen after each token."""
    for row in rows:
        request = row.request
        if request.guided or request.budget is not None or request.acceptance is not None:
            return False
        if request.guesser is not None and request.guesser.follows:
            return False
    return True


def count_guesses(rows: Rows[R], n_verified: int, n_right: int) -> None:
    """Count the guesses of a request, of which the first ``n_right`` were right."""
    request = rows.request
    n_right = min(n_right, n_verified)
    request.n_guessed += n_verified
    request.n_right += n_right
    if rows.n_draft and request.acceptance is not None:
        request.acceptance.learn(n_verified, n_right)
