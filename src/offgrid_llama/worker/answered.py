"""The frame with which a request ends: its tokens and times, from the Completions that the engine made for it."""

from __future__ import annotations

from collections.abc import Sequence

from offgrid_llama.engine import Completion

from .frames import Answered, Message, Timings, TokenCounts

__all__ = ["answered_with", "counts"]


def answered_with(
    id_: int, completions: Sequence[Completion], messages: list[Message], warnings: Sequence[str] = ()
) -> Answered:
    """Return the frame for what has ended; the times are those of the first completion, where there is one."""
    timings = None
    if completions and completions[0].timings.first_token is not None:
        found = completions[0].timings
        timings = Timings(found.queue or 0.0, found.prefill or 0.0, found.decode or 0.0)
    return Answered(id_, counts(completions), messages, timings, list(warnings))


def counts(completions: Sequence[Completion]) -> TokenCounts:
    """Return the tokens of a request so far."""
    usages = [completion.usage for completion in completions]
    return TokenCounts(
        sum(usage.prompt_tokens for usage in usages), sum(usage.cached_tokens for usage in usages),
        sum(usage.completion_tokens for usage in usages),
        sum(usage.accepted_prediction_tokens for usage in usages),
        sum(usage.rejected_prediction_tokens for usage in usages),
    )  # fmt: skip
