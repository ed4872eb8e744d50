"""Neighbours: which unused sequences lie beside those in use (pure).

llama.cpp computes sequences together where their ids follow each other, so sequences in use stay contiguous.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["by_distance", "gap"]


def gap(seq: int, in_use: Collection[int], n_seq_max: int) -> int:
    """Return the length of the gap that an unused sequence lies in: the fewer, the sooner it is filled.

    A gap begins at ``seq``, beside a sequence in use, and ends at the next one in use. Without such a next one, or with none
    beside ``seq``, the result is larger than any gap.
    """
    n_beside = (seq - 1 in in_use) + (seq + 1 in in_use) if in_use else 0
    if n_beside != 1:
        return 1 if n_beside else n_seq_max + 2
    step = 1 if seq - 1 in in_use else -1
    n = 1
    while 0 <= seq + n * step < n_seq_max:
        if seq + n * step in in_use:
            return n
        n += 1
    return n_seq_max + 1


def by_distance(seqs: Iterable[int], in_use: Collection[int]) -> list[int]:
    """Return sequences in the order of their distance from those in use; those between them come first."""
    first, last = min(in_use, default=0), max(in_use, default=0)
    return sorted(seqs, key=lambda seq: (max(first - seq, seq - last, 0), seq))
