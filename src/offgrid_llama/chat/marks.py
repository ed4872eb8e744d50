"""Marks in a model's text, such as ``<tool_call>``, and how texts overlap (pure)."""

from __future__ import annotations

import re

__all__ = ["MARK", "mark_end", "mark_start", "overlap", "shared", "shared_end"]

MARK = re.compile(r"\]<\]\w+\[>\[|<[^<>\s]{1,60}(?: [^<>]{1,60})?>|\[/?[A-Z_]{2,20}\]")
"""Text that looks like a mark, such as ``<tool_call>`` or ``[INST]``. A mark is kept or left out as a whole."""


def mark_start(text: str, at: int) -> int:
    """Return the start of the mark that a place is in; the place itself where it is in none."""
    return next((match.start() for match in MARK.finditer(text) if match.start() < at < match.end()), at)


def mark_end(text: str, at: int) -> int:
    """Return the end of the mark that a place is in; the place itself where it is in none."""
    return next((match.end() for match in MARK.finditer(text) if match.start() < at < match.end()), at)


def shared(one: str, other: str) -> int:
    """Return how many characters are the same at the beginning of two texts."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def shared_end(one: str, other: str) -> int:
    """Return how many characters are the same at the end of two texts."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a mark that goes on in the next piece."""
    if not mark:
        return 0
    at = text.find(mark[0], max(len(text) - len(mark) + 1, 0))
    while at >= 0:
        if mark.startswith(text[at:]):
            return len(text) - at
        at = text.find(mark[0], at + 1)
    return 0
