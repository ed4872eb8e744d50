"""Plan: what one step computes, and the outcome that the scheduler takes back (data only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from .media_tokens import Chunk
from .operations import Operation
from .request import Request

__all__ = ["Outcome", "Plan", "R", "Rows"]

R = TypeVar("R", bound=Request)
"""The class of the requests, which the engine extends."""

NOTHING_SCORED = range(0)


@dataclass(slots=True)
class Rows(Generic[R]):
    """Tokens of one request that a step computes.

    Attributes:
        request: the request. seq: its sequence id.
        tokens: the tokens, with those that are guessed.
        pos: the position of the first.
        sample: whether the step samples the next tokens from the last of them.
        room: most tokens to sample.
        n_guessed: how many of the last tokens are guesses of the tokens sampled from the rows before them.
        n_draft: how many more the draft model guesses.
        chunk: the chunk that the tokens are of; then they are all that the step computes. None for text.
        scored: which of the tokens tell how probable the next one of the prompt is, by their indexes.
    """

    request: R
    seq: int
    tokens: Sequence[int]
    pos: int
    sample: bool
    room: int
    n_guessed: int = 0
    n_draft: int = 0
    chunk: Chunk | None = None
    scored: range = NOTHING_SCORED


@dataclass(slots=True)
class Plan(Generic[R]):
    """One step: first the operations, in their order, then all rows in one decode, by their sequences.

    Without rows it is no step: it tells of ``admitted`` requests that wait for their pictures.

    Attributes:
        operations: changes of the memory.
        rows: the rows of each request.
        admitted: requests that have a slot from this step on.
        n_generating: requests that generate; each has one token of its own.
        n_guessed: tokens that these have besides: guesses, and tokens that a grammar has forced.
        n_prompt: tokens of prompts.
        n_draft: tokens that the draft model guesses for each of the rows with an ``n_draft``.
        steady: whether the next steps will be like this one: all requests generate, and none has a guess.
        pads: sequences that no request has, each with its length, for throw-away rows that fill up the step.
    """

    operations: list[Operation]
    rows: list[Rows[R]]
    admitted: list[R]
    n_generating: int
    n_guessed: int
    n_prompt: int
    n_draft: int = 0
    steady: bool = False
    pads: Sequence[tuple[int, int]] = ()


class Outcome(Protocol):
    """The result of sampling in a step, for the rows of one request."""

    @property
    def tokens(self) -> Sequence[int]:
        """The next tokens; none where sampling has failed."""

    @property
    def n_forced(self) -> int:
        """How many of the last tokens must follow the others, and are not yet computed."""

    @property
    def n_verified(self) -> int:
        """How many guesses the step has computed."""
