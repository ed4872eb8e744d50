"""ChunkPace: how many rows of a picture a step of their own may take (pure)."""

from __future__ import annotations

__all__ = ["ChunkPace"]

FIRST_ROWS = 8
"""Rows of the first step, as long as their cost is unknown."""
MIN_ROWS = 8
"""Rows of a step, at least: with fewer, a step costs as much for what it has in any case."""
OTHER_SHARE = 0.1
"""By how much two steps differ in their rows, at least, where their times tell what a row costs."""


class ChunkPace:
    """Learns what a step with rows of a picture costs: a part that any step costs, and a part for each row."""

    def __init__(self) -> None:
        self._fixed = self._row = 0.0
        self._last: tuple[int, float] | None = None

    def observe(self, n: int, seconds: float) -> None:
        """Learn from a step of ``n`` rows."""
        if self._last is None:
            self._row = seconds / n
        else:
            last_n, last_seconds = self._last
            if abs(n - last_n) > OTHER_SHARE * max(n, last_n):
                row = (seconds - last_seconds) / (n - last_n)
                self._row = 0.5 * self._row + 0.5 * min(max(row, 0.2 * seconds / n), seconds / n)
            self._fixed = 0.5 * self._fixed + 0.5 * max(seconds - self._row * n, 0.0)
        self._last = n, seconds

    def rows(self, seconds: float) -> int:
        """Return how many rows a step of about this time has."""
        if self._last is None:
            return FIRST_ROWS
        return max(MIN_ROWS, int((seconds - self._fixed) / self._row)) if self._row else FIRST_ROWS
