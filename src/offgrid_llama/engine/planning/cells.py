"""Cells: how much of a unified KV cache is taken, where sequences share the cells of a common prefix (pure)."""

from __future__ import annotations

__all__ = ["Cells"]


class _Run:
    """Adjacent cells, with the number of them, from the first on, that each sequence has."""

    __slots__ = ("lengths",)

    def __init__(self) -> None:
        self.lengths: dict[int, int] = {}

    def set(self, seq: int, n: int) -> int:
        """Give a sequence ``n`` cells; return how many more are taken than before."""
        before = max(self.lengths.values(), default=0)
        if n:
            self.lengths[seq] = n
        else:
            self.lengths.pop(seq, None)
        return max(self.lengths.values(), default=0) - before


class Cells:
    """The cells of a cache, by the sequences that have them.

    Args:
        n: the number of cells.

    Attributes:
        n: the number of cells. free: those that no sequence has.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.free = n
        self._runs: dict[int, list[_Run]] = {}  # by sequence

    def add(self, seq: int, n: int) -> None:
        """Give a sequence ``n`` more cells."""
        if n:
            run = _Run()
            self._runs.setdefault(seq, []).append(run)
            self.free -= run.set(seq, n)

    def share(self, source: int, target: int, length: int) -> None:
        """Give ``target``, which has no cells, the first ``length`` cells of ``source``."""
        mine = self._runs[target] = []
        for run in self._runs.get(source, ()):
            if length <= 0:
                break
            n = run.lengths[source]
            run.set(target, min(n, length))
            mine.append(run)
            length -= n

    def cut(self, seq: int, length: int) -> None:
        """Let a sequence keep its first ``length`` cells."""
        kept = []
        for run in self._runs.pop(seq, ()):
            mine = min(run.lengths[seq], max(length, 0))
            self.free -= run.set(seq, mine)
            length -= mine
            if mine:
                kept.append(run)
        if kept:
            self._runs[seq] = kept
