"""Costs: how long a step takes, by how many requests generate and how many guesses it verifies (pure)."""

from __future__ import annotations

__all__ = ["CHANCE_STEP", "KERNEL_ROWS", "MAX_GUESS_TOKENS", "MIN_SPEEDUP", "Costs"]

KERNEL_ROWS = 4
"""Rows that ggml's CPU kernels compute together; those left over are computed one by one."""

MAX_GUESS_TOKENS = 15
"""Tokens that are guessed at once for one request, at most."""

MIN_SPEEDUP = 1.1
"""Tokens a second that guesses must promise, divided by those of a step without them."""

CHANCE_STEP = 0.1
"""The weight of one more guess, right or wrong, in the probability that guesses are right."""

COSTS_KEPT_STEPS = 500
"""Steps after which the cost of a number of guesses counts as unknown, so that it is measured again."""


class Costs:
    """Learns how long steps without prompts take.

    A guess costs something else than one more request that generates: llama.cpp computes the tokens that one sequence has
    more than the others in a batch of their own, unless the sequences share their cells.

    Args:
        apart: whether each sequence has cells of its own.
    """

    def __init__(self, *, apart: bool = True) -> None:
        self._apart = apart
        self._plain: dict[int, float] = {}  # seconds of a step without guesses, by how many requests generate
        self._more: dict[tuple[int, int], float] = {}  # seconds more, by how many requests and how many guesses
        self._when: dict[tuple[int, int], int] = {}  # the step that measured them last
        self._n = 0

    def observe(self, n_generating: int, n_guessed: int, seconds: float) -> None:
        """Learn from a step that has taken ``seconds``."""
        self._n += 1
        plain = self._plain.get(n_generating)
        if not n_guessed:
            self._plain[n_generating] = seconds if plain is None else 0.7 * plain + 0.3 * seconds
        elif plain is not None:
            key = n_generating, n_guessed
            old, new = self._more.get(key), max(seconds - plain, 0.0)
            self._more[key] = new if old is None else 0.7 * old + 0.3 * new
            self._when[key] = self._n

    def slowdown(self, n_generating: int, n_guessed: int) -> float:
        """Return the time of a step with guesses, divided by that of the same step without.

        Without a measurement of these numbers, the nearest one is scaled. Without any measurement of guesses, tokens that
        llama.cpp computes apart are taken to cost as much as a step for that many requests.
        """
        nearest = min(self._plain, key=lambda n: abs(n - n_generating), default=None)
        lately = [key for key in self._more if self._n - self._when[key] <= COSTS_KEPT_STEPS]
        if nearest is None:
            return 1 + 0.5 * n_guessed / n_generating
        plain = self._plain[nearest]
        if not lately:
            apart = self._apart and n_generating > 1
            return 1 + (self._rows(n_guessed) / plain if apart else 0.5 * n_guessed / n_generating)
        near = min(lately, key=lambda key: (abs(key[0] - n_generating), abs(key[1] - n_guessed)))
        return 1 + self._more[near] / plain * n_guessed / near[1]

    def _rows(self, n: int) -> float:
        """Return the seconds of a step in which ``n`` requests generate, estimated from steps with fewer and with more."""
        fewer = max((seen for seen in self._plain if seen <= n), default=None)
        more = min((seen for seen in self._plain if seen >= n), default=None)
        if fewer is None:
            return self._plain[min(self._plain)]
        if more is None:
            return float(self._plain[fewer] * (n / fewer) ** 0.5)  # between what memory and what arithmetic would take
        share = (n - fewer) / (more - fewer) if more > fewer else 0.0
        return self._plain[fewer] + share * (self._plain[more] - self._plain[fewer])

    def seconds(self, n_generating: int) -> float | None:
        """Return the seconds of a step without guesses in which ``n_generating`` requests generate; None if unknown."""
        return self._plain.get(n_generating)
