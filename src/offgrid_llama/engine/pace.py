"""Pace: how many tokens of prompts a step may have, so that those that generate keep their pace (pure)."""

from __future__ import annotations

__all__ = ["Pace"]

SLOWDOWN = 2.5
"""A step with prompts may take so many times as long as one without, in which the same number of requests generate; longer
where more wait for their prompts than generate, as all of them wait."""

SHORT = 0.1
"""Seconds that prompts may take in any case, where that ends all of them: so short a wait is hardly seen, and in pieces they
take longer. Again longer where more wait than generate."""

FIRST = 16
"""Tokens of prompts in a step, as long as nothing is known of what they cost."""

AGAIN = 64
"""After so many steps with prompts there is one without, to see what it takes now."""

NEAR = 0.25
"""What so many more or fewer take is known by those that were seen. What one takes says nothing of sixteen: where a step
is as long as it has requests, prompts would seem to cost so much that they got one token of each, and waited for seconds."""


class Pace:
    """Learns from each step what the next one will take.

    Args:
        n_batch: most tokens of a step.
    """

    def __init__(self, n_batch: int) -> None:
        self._n_batch = n_batch
        self._alone: dict[int, float] = {}  # seconds of a step without prompts, by how many generate
        self._token: float | None = None  # seconds for each token of prompts
        self._since: dict[int, int] = {}  # steps with prompts since there was one without

    def observe(self, n_generating: int, n_prompt: int, seconds: float) -> None:
        """Take what a step has taken."""
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

    def prompt_budget(self, n_generating: int, n_prompts: int, n_tokens: int) -> int:
        """Return how many tokens of prompts the next step may have; 0 where one without is to be measured first.

        Args:
            n_generating: how many requests generate.
            n_prompts, n_tokens: how many prompts are to be computed, and how many tokens they have left together.
        """
        if not n_generating:
            return self._n_batch
        waiting = max(1.0, n_prompts / n_generating)
        if self._token is not None and n_tokens * self._token <= SHORT * waiting:
            return n_tokens
        plain = self._plain(n_generating)
        if plain is None or self._since.get(n_generating, 0) >= AGAIN:
            return 0
        if self._token is None:
            return FIRST
        return max(1, int((SLOWDOWN - 1) * waiting * plain / self._token))

    def _plain(self, n_generating: int) -> float | None:
        """Return how long a step without prompts takes in which so many generate, or nearly as many; None is not known."""
        nearest = min(self._alone, key=lambda n: abs(n - n_generating), default=0)
        return self._alone[nearest] if abs(nearest - n_generating) <= NEAR * n_generating else None
