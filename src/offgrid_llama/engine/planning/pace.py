"""Pace: how many prompt tokens a step may take, so that requests that generate keep their pace (pure)."""

from __future__ import annotations

__all__ = ["Pace"]

PREFILL_MAX_SLOWDOWN = 2.5
"""The time of a step with prompts, divided by that of one without in which as many requests generate. Where more callers
wait for a prompt than for a token, it is multiplied by their ratio."""

SHORT_PREFILL_SECONDS = 0.1
"""Time that prompts may take in any case where the step finishes all of them: readers hardly see such a pause, and prompts
computed in pieces take longer in all. It is multiplied in the same way."""

FIRST_PREFILL_TOKENS = 16
"""Prompt tokens in a step as long as their cost is unknown."""

MAX_STEPS_WITH_PREFILL = 64
"""Steps with prompts after which one without them is measured again."""

PREFILL_NEARBY_SHARE = 0.25
"""The distance of a number of requests from one that was measured, as a share of itself, up to which the measurement stands
for it. The time of one request says nothing about sixteen: where a step takes longer the more requests it has, prompts would
seem so expensive that each got one token a step, and waited for seconds."""


class Pace:
    """Learns from each step how long the next one will take.

    Args:
        n_batch: most tokens of a step.
    """

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._alone: dict[int, float] = {}  # seconds of a step without prompts, by how many requests generate
        self._token: float | None = None  # seconds for each token of prompts
        self._since: dict[int, int] = {}  # steps with prompts since the last one without

    def observe(self, n_generating: int, n_prompt: int, seconds: float) -> None:
        """Learn from a step that has taken ``seconds``."""
        alone = self._alone.get(n_generating)
        if not n_prompt:
            self._alone[n_generating] = seconds if alone is None else 0.8 * alone + 0.2 * seconds
            self._since[n_generating] = 0
            return
        self._since[n_generating] = self._since.get(n_generating, 0) + 1
        plain = self._plain(n_generating) if n_generating else 0.0
        if plain is None:
            return
        token = max(seconds - plain, 0.05 * seconds) / n_prompt
        self._token = token if self._token is None else 0.5 * self._token + 0.5 * token

    def prompt_budget(self, n_generating: int, waiting: float, n_tokens: int) -> int:
        """Return how many prompt tokens the next step may take; 0 where a step without prompts is measured first.

        Args:
            n_generating: the requests that generate.
            waiting: how many callers wait for a prompt for each that waits for a token.
            n_tokens: the tokens that these prompts have left together.
        """
        if not n_generating:
            return self._n_batch
        waiting = max(1.0, waiting)
        if self._token is not None and n_tokens * self._token <= SHORT_PREFILL_SECONDS * waiting:
            return n_tokens
        plain = self._plain(n_generating)
        if plain is None or self._since.get(n_generating, 0) >= MAX_STEPS_WITH_PREFILL:
            return 0
        if self._token is None:
            return FIRST_PREFILL_TOKENS
        return max(1, int((PREFILL_MAX_SLOWDOWN - 1) * waiting * plain / self._token))

    def seconds_beside(self, n_generating: int, waiting: float) -> float | None:
        """Return how long a step without requests that generate may take, between two that have this number of them.

        None where that is unknown: a step with them is measured first. The arguments are those of ``prompt_budget``.
        """
        plain = self._plain(n_generating)
        return None if plain is None else (PREFILL_MAX_SLOWDOWN - 1) * max(1.0, waiting) * plain

    def _plain(self, n_generating: int) -> float | None:
        """Return the seconds of a step without prompts in which about this many requests generate; None if unknown."""
        nearest = min(self._alone, key=lambda n: abs(n - n_generating), default=0)
        return self._alone[nearest] if abs(nearest - n_generating) <= PREFILL_NEARBY_SHARE * n_generating else None
