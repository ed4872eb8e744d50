"""Cells: how many of a unified KV cache are taken, where sequences share those of what they begin with (pure)."""

from __future__ import annotations

__all__ = ["Cells"]


class _Run:
    """Cells that follow each other, and how many sequences have them."""

    __slots__ = ("n", "owners")

    def __init__(self, n: int) -> None:
        self.n = n
        self.owners = 1


class Cells:
    """The cells of a cache, by the sequences that have them. Never counts fewer as taken than are.

    Args:
        n: how many there are.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.free = n
        self._runs: dict[int, list[tuple[_Run, int]]] = {}  # with how many of each the sequence has

    def add(self, seq: int, n: int) -> None:
        """Give a sequence ``n`` more."""
        if n:
            self._runs.setdefault(seq, []).append((_Run(n), n))
            self.free -= n

    def share(self, source: int, target: int, length: int) -> None:
        """Let ``target``, which has none, have the first ``length`` of those of ``source``."""
        mine = self._runs[target] = []
        for run, n in self._runs.get(source, ()):
            if length <= 0:
                break
            run.owners += 1
            mine.append((run, min(n, length)))
            length -= n

    def cut(self, seq: int, length: int) -> None:
        """Let a sequence keep its first ``length``; a part of a run that others have, too, stays whole."""
        kept = []
        for run, n in self._runs.pop(seq, ()):
            if length > 0:
                mine = min(n, length)
                if run.owners == 1:
                    self.free += run.n - mine
                    run.n = mine
                kept.append((run, mine))
                length -= mine
            else:
                run.owners -= 1
                if not run.owners:
                    self.free += run.n
        if kept:
            self._runs[seq] = kept
