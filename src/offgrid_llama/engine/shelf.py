"""Shelf: what was computed and had to make room, kept in host memory until a prompt begins with it again (pure).

The Shelf knows whose tokens lie where, and how large each is; the runner has the data.
"""

from __future__ import annotations

from collections.abc import Sequence

from .prefixes import PrefixIndex

__all__ = ["Shelf"]


class Shelf:
    """Texts by their keys, the one that was used least recently first to go.

    Args:
        n_bytes: room for them.
    """

    def __init__(self, n_bytes: int) -> None:
        self._room = n_bytes
        self._index: PrefixIndex[int] = PrefixIndex()
        self._sizes: dict[int, int] = {}  # by key, the one that was used least recently first
        self._token_bytes = 0.0  # of the last one that was weighed
        self._next = 0
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def longest(self, tokens: Sequence[int]) -> tuple[int, int | None]:
        """Return the length of the longest beginning of ``tokens`` that lies here, and a key of it."""
        length, keys = self._index.longest(tokens)
        return (length, min(keys, key=lambda key: self._sizes[key])) if keys else (0, None)

    def longest_whole(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Return the longest text here that ``tokens`` begin with, as its length and key; None where there is none."""
        found = [(len(self._index.tokens(key)), key) for key in self._sizes if self._begins(tokens, key)]
        return max(found, default=None)

    def length(self, key: int) -> int:
        """Return how many tokens a text has."""
        return len(self._index.tokens(key))

    def use(self, key: int) -> int:
        """Say that a text is used now; return its length."""
        self._sizes[key] = self._sizes.pop(key)
        return self.length(key)

    def put(self, tokens: Sequence[int]) -> tuple[int | None, list[int]]:
        """Take a text; return its key, None where there is no room, and the keys of those that have to go.

        Those go that it begins with, and then the ones that were used least recently. Until it is weighed, its tokens count
        as those of the last one that was.
        """
        n_bytes = int(len(tokens) * self._token_bytes)
        if n_bytes > self._room or not self._room:
            return None, []
        gone = [key for key in self._sizes if self._begins(tokens, key)]
        for key in gone:
            self._drop(key)
        gone += self._make_room(n_bytes)
        key, self._next = self._next, self._next + 1
        self._index.extend(key, tokens)
        self._sizes[key] = n_bytes
        self.n_bytes += n_bytes
        return key, gone

    def weigh(self, key: int, n_bytes: int | None) -> list[int]:
        """Say how large a text is, or None where it could not be put here; return the keys of those that have to go."""
        if key not in self._sizes:
            return []
        if n_bytes is None:
            self._drop(key)
            return []
        self._token_bytes = n_bytes / len(self._index.tokens(key))
        self.n_bytes += n_bytes - self._sizes[key]
        self._sizes[key] = n_bytes
        return self._make_room(0)

    def _make_room(self, n_bytes: int) -> list[int]:
        gone = []
        while self.n_bytes + n_bytes > self._room:
            gone.append(next(iter(self._sizes)))
            self._drop(gone[-1])
        return gone

    def _begins(self, tokens: Sequence[int], key: int) -> bool:
        own = self._index.tokens(key)
        return own == list(tokens[: len(own)])

    def _drop(self, key: int) -> None:
        self._index.remove(key)
        self.n_bytes -= self._sizes.pop(key)
