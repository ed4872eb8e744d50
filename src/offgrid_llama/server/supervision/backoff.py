"""Backoff: how long a model rests after its worker has died."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

__all__ = ["Backoff"]

DEATHS_FORGOTTEN_SECONDS = 60.0
"""Time without a death after which earlier ones no longer count."""
MAX_BACKOFF_SECONDS = 60.0
"""The longest rest. A model whose file was repaired meanwhile is back within a minute."""


class Backoff:
    """Counts deaths. After the first the worker restarts at once, after the second it rests 1 s, then 2 s, 4 s and so on.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._n_deaths = 0
        self._died_at = 0.0

    def count_death(self) -> None:
        """Count a death, or a load that failed."""
        self._forget()
        self._n_deaths += 1
        self._died_at = self._clock()

    def seconds_left(self) -> float:
        """Return how long the model still has to rest."""
        self._forget()
        rest = 0.0 if self._n_deaths <= 1 else min(2.0 ** (self._n_deaths - 2), MAX_BACKOFF_SECONDS)
        return max(0.0, self._died_at + rest - self._clock())

    def _forget(self) -> None:
        if self._clock() - self._died_at > DEATHS_FORGOTTEN_SECONDS:
            self._n_deaths = 0
