"""Padding: throw-away rows, where a step with them takes less time than one without (pure).

ggml's CPU kernels compute rows by fours, and those left over one by one. With a large vocabulary, where the logits are most
of a step, seven rows take up to a third longer than eight. The steps themselves show where that is so.
"""

from __future__ import annotations

from .costs import KERNEL_ROWS

__all__ = ["Padding"]

MAX_ROWS_FACTOR = 1.6
"""Rows with padding, divided by those without: more are not tried."""

MAX_SECONDS_FACTOR = 0.97
"""The time of a step with padding, divided by that of one without: padding must save this much."""

MEASURED_AFTER_STEPS = 3
"""Steps with a number of rows after which its time counts as known."""

MEASURED_FOR_STEPS = 1000
"""Steps after which that time counts as unknown again."""


class Padding:
    """Learns how long steps take in which each row is of another sequence.

    Args:
        limit: a sequence with this many tokens takes no padding.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._seconds: dict[int, float] = {}  # by how many rows a step has
        self._n_seen: dict[int, int] = {}
        self._when: dict[int, int] = {}
        self._n = 0

    def observe(self, n_rows: int, seconds: float) -> None:
        """Learn from a step that has taken ``seconds`` for ``n_rows`` rows, padding included."""
        self._n += 1
        if self._n - self._when.get(n_rows, 0) > MEASURED_FOR_STEPS:
            self._n_seen[n_rows] = 0
        seen = self._n_seen.get(n_rows, 0)
        self._seconds[n_rows] = seconds if not seen else 0.7 * self._seconds[n_rows] + 0.3 * seconds
        self._n_seen[n_rows] = seen + 1
        self._when[n_rows] = self._n

    def n_pads(self, n_rows: int) -> int:
        """Return how many rows to add to ``n_rows``: those up to the next multiple of four, or none."""
        full = -(-n_rows // KERNEL_ROWS) * KERNEL_ROWS
        if full == n_rows or full > MAX_ROWS_FACTOR * n_rows or not self._is_known(n_rows):
            return 0
        if not self._is_known(full):
            return full - n_rows
        return full - n_rows if self._seconds[full] <= MAX_SECONDS_FACTOR * self._seconds[n_rows] else 0

    def _is_known(self, n_rows: int) -> bool:
        seen = self._n_seen.get(n_rows, 0)
        return seen >= MEASURED_AFTER_STEPS and self._n - self._when[n_rows] <= MEASURED_FOR_STEPS
