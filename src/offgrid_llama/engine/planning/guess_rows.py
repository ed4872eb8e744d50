"""The guessed tokens of a step: those of prompt lookup, and those that the draft model is asked for (pure)."""

from __future__ import annotations

from typing import Any

from .estimates import Estimates
from .limits import Limits
from .plan import Rows

__all__ = ["add_drafts", "add_guesses"]


def add_guesses(rows: list[Rows[Any]], limits: Limits, estimates: Estimates, n_more: int) -> int:
    """Append to rows of requests that generate the guesses of prompt lookup that pay; return how many.

    Args:
        rows: one for each request.
        limits, estimates: of the context.
        n_more: how many tokens the rows have besides one each.
    """
    total = 0
    most, n_batch = limits.n_guessed, limits.n_batch - len(rows) - n_more
    for row in rows:
        guesser = row.request.guesser
        if guesser is not None:
            room = min(most - total, n_batch - total, row.room - 1)
            if guessed := guesser.guess(estimates.costs, len(rows), n_more + total, room):
                row.tokens, row.n_guessed = [*row.tokens, *guessed], len(guessed)
                total += len(guessed)
    return total


def add_drafts(rows: list[Rows[Any]], limits: Limits, estimates: Estimates, n_guessed: int, n_more: int) -> int:
    """Mark the rows for which the draft model guesses, where that pays; return how many tokens for each.

    ``n_guessed`` tokens of prompt lookup are among the rows; the other arguments are those of ``add_guesses``.
    """
    drafting = estimates.drafting
    if drafting is None:
        return 0
    some = [row for row in rows if row.request.acceptance and not row.n_guessed and row.room > 1]
    room = min(limits.n_guessed, limits.n_batch - len(rows) - n_more) - n_guessed
    chances = [acceptance for row in some if (acceptance := row.request.acceptance)]
    n = drafting.length(chances, estimates.costs, len(rows), room)
    if n:
        for row in some:
            row.n_draft = min(n, row.room - 1)
    return n
