"""Media tokens: numbers that stand for the rows of pictures and sounds in a text (pure).

A chunk of ``n`` rows is a head, which no other chunk has, and ``n - 1`` fillers, which say by how many positions the text
goes on behind it. So a text by itself tells where its chunks begin, and prefixes with the same pictures are the same
numbers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter

__all__ = [
    "FIRST_MEDIA_TOKEN",
    "Chunk",
    "MediaHeads",
    "chunk_tokens",
    "length_at",
    "next_chunk",
    "position_at",
    "text_tokens",
    "whole_chunks",
]

FIRST_MEDIA_TOKEN = 2**24
"""From here on a number is no token: no vocabulary is that large."""
_FIRST_HEAD = 2**26
MAX_HEADS = 10_000
"""Chunks whose heads are remembered. What is computed of a forgotten one is not found again."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk in a prompt.

    Attributes:
        begin, end: its rows are those of the tokens [begin, end) of the prompt.
        head: its first token.
        first: the position of its first row.
        n_positions: by how much the positions of the text go on behind it.
        causal: whether its rows can be computed a part at a time.
    """

    begin: int
    end: int
    head: int
    first: int
    n_positions: int
    causal: bool


def next_chunk(chunks: Sequence[Chunk], at: int) -> Chunk | None:
    """Return the chunk of a prompt that a token is in, or the first one behind it."""
    index = bisect_right(chunks, at, key=attrgetter("end"))
    return chunks[index] if index < len(chunks) else None


def text_tokens(tokens: Sequence[int], chunks: Sequence[Chunk]) -> list[int]:
    """Return the tokens of a prompt without those of its chunks."""
    if not chunks:
        return list(tokens)
    return [token for token in tokens if token < FIRST_MEDIA_TOKEN]


class MediaHeads:
    """The heads of chunks, by their content."""

    def __init__(self) -> None:
        self._heads: OrderedDict[Hashable, int] = OrderedDict()
        self._n = 0

    def of(self, content: Hashable) -> int:
        """Return the head of a chunk; another one for each content."""
        head = self._heads.pop(content, None)
        if head is None:
            head = _FIRST_HEAD + self._n
            self._n += 1
        self._heads[content] = head
        if len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)
        return head


def chunk_tokens(head: int, n_tokens: int, n_positions: int) -> list[int]:
    """Return the numbers of a chunk of ``n_tokens`` rows, behind which the text goes on after ``n_positions``."""
    return [head, *[FIRST_MEDIA_TOKEN + n_positions] * (n_tokens - 1)]


def _is_inside(text: Sequence[int], at: int) -> bool:
    """Return whether a chunk has begun before an index, and ends behind it."""
    return at < len(text) and FIRST_MEDIA_TOKEN <= text[at] < _FIRST_HEAD


def whole_chunks(text: Sequence[int], length: int) -> int:
    """Return the largest length up to ``length`` with which no chunk is cut."""
    while _is_inside(text, length):
        length -= 1
    return length


def position_at(text: Sequence[int], length: int) -> int:
    """Return the position behind the first ``length`` tokens of a text, which cut no chunk."""
    skipped, at = 0, 0
    while at < length:
        if _is_inside(text, at + 1):
            begin = at
            n_positions = text[at + 1] - FIRST_MEDIA_TOKEN
            while _is_inside(text, at + 1):
                at += 1
            skipped += at + 1 - begin - n_positions
        at += 1
    return length - skipped


def length_at(text: Sequence[int], position: int) -> int:
    """Return how many tokens of a text come before a position; of a chunk that it cuts, none."""
    at = reached = 0
    while at < len(text) and reached < position:
        begin, n_positions = at, 1
        if _is_inside(text, at + 1):
            n_positions = text[at + 1] - FIRST_MEDIA_TOKEN
            while _is_inside(text, at + 1):
                at += 1
        if reached + n_positions > position:
            return begin
        reached += n_positions
        at += 1
    return at
