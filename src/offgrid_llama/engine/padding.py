"""Padding: rows that nobody asked for, where a step with them takes less time than one without (pure).

Kernels of CPUs compute rows by fours; what is left over they compute one by one. With a large vocabulary, where the logits
are most of a step, seven rows take up to a third longer than eight. Where that is so is seen from the steps themselves.
"""

from __future__ import annotations

__all__ = ["Padding"]

ROWS = 4
"""Kernels compute so many rows together."""

MOST = 1.6
"""So many times the rows that are there are not too many to try."""

GAIN = 0.97
"""What a step with padding may take, of what one without takes."""

TRIES = 3
"""Steps after which it is known what so many rows take."""

FORGOTTEN = 1000
"""After so many steps that is seen again."""


class Padding:
    """Learns what steps take in which each row is of another sequence.

    Args:
        limit: a sequence with so many tokens takes no padding.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._seconds: dict[int, float] = {}  # by how many rows there are
        self._n_seen: dict[int, int] = {}
        self._when: dict[int, int] = {}
        self._n = 0

    def observe(self, n_rows: int, seconds: float) -> None:
        """Take what a step has taken, padding included."""
        self._n += 1
        if self._n - self._when.get(n_rows, 0) > FORGOTTEN:
            self._n_seen[n_rows] = 0
        seen = self._n_seen.get(n_rows, 0)
        self._seconds[n_rows] = seconds if not seen else 0.7 * self._seconds[n_rows] + 0.3 * seconds
        self._n_seen[n_rows] = seen + 1
        self._when[n_rows] = self._n

    def n_pads(self, n_rows: int) -> int:
        """Return how many rows to add to so many: those up to the next multiple of four, or none."""
        full = -(-n_rows // ROWS) * ROWS
        if full == n_rows or full > MOST * n_rows or not self._is_known(n_rows):
            return 0
        if not self._is_known(full):
            return full - n_rows
        return full - n_rows if self._seconds[full] <= GAIN * self._seconds[n_rows] else 0

    def _is_known(self, n_rows: int) -> bool:
        return self._n_seen.get(n_rows, 0) >= TRIES and self._n - self._when[n_rows] <= FORGOTTEN
