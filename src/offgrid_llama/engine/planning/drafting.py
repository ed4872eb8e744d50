"""Drafting: how many tokens the draft model guesses in a step (pure).

Whether a draft is right is unknown until the draft model has run. After drafts that did not pay, it runs again only from
time to time.
"""

from __future__ import annotations

from collections.abc import Sequence

from .costs import CHANCE_STEP, KERNEL_ROWS, MAX_GUESS_TOKENS, MIN_SPEEDUP, Costs

__all__ = ["Acceptance", "Drafting"]

DRAFT_PAUSE_STEPS = 128
"""Steps without a draft after one that did not pay; the next pause is twice as long, and so on."""


class Acceptance:
    """The probability that the next token of a draft is right, learned from the latest drafts of one request.

    Args:
        chance: the probability to begin with, that of other requests.
    """

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Learn from a draft of ``n_guessed`` tokens, of which the first ``n_right`` were right."""
        for i in range(min(n_right + 1, n_guessed)):
            self.chance += CHANCE_STEP * ((i < n_right) - self.chance)


class Drafting:
    """Decides how many tokens the draft model guesses for each of the requests that generate together."""

    def __init__(self) -> None:
        self.chance = 0.7  # of a request that begins
        self._seconds: float | None = None
        self._pause = 0  # steps without a draft that are left
        self._next_pause = DRAFT_PAUSE_STEPS

    def observe(self, seconds: float) -> None:
        """Learn how long the draft model has taken for one token of each request."""
        self._seconds = seconds if self._seconds is None else 0.7 * self._seconds + 0.3 * seconds

    def length(self, requests: Sequence[Acceptance], costs: Costs, n_generating: int, room: int) -> int:
        """Return how many tokens to draft for each of the requests in a step in which ``n_generating`` requests generate.

        At most ``room`` in all; 0 where a draft does not pay, or did not lately.
        """
        most = min(room // len(requests), MAX_GUESS_TOKENS) if requests else 0
        if not most or costs.seconds(n_generating) is None:  # a step without a draft comes first, to compare with
            return 0
        if self._seconds is None:
            return min(most, KERNEL_ROWS - 1)
        self.chance += 0.01 * (sum(each.chance for each in requests) / len(requests) - self.chance)
        if self._pause:
            self._pause -= 1
            return min(most, 2) if not self._pause and self._may_pay(costs, n_generating, most) else 0
        best = self._best([each.chance for each in requests], costs, n_generating, most)
        if best:
            self._next_pause = DRAFT_PAUSE_STEPS
        else:
            self._pause, self._next_pause = self._next_pause, 2 * self._next_pause
        return best

    def _may_pay(self, costs: Costs, n_generating: int, most: int) -> bool:
        """Return whether a draft would pay if all of it were right."""
        return self._best([1.0], costs, n_generating, most) > 0

    def _best(self, chances: Sequence[float], costs: Costs, n_generating: int, most: int) -> int:
        """Return the length of draft, up to ``most``, that promises the most tokens a second; 0 if none promises more."""
        each = (self._seconds or 0.0) / (costs.seconds(n_generating) or 1.0)
        best, n = MIN_SPEEDUP * n_generating, 0
        hits, expected = [1.0] * len(chances), float(n_generating)
        for more in range(1, most + 1):
            hits = [hit * chance for hit, chance in zip(hits, chances, strict=True)]
            expected += sum(hits)
            gain = expected / (costs.slowdown(n_generating, more * len(chances)) + more * each)
            if gain > best:
                best, n = gain, more
        return n
