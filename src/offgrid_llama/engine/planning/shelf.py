"""Shelf: evicted texts, kept outside of the context until a prompt begins with one of them again (pure).

They lie in host memory, and beyond its budget on disk, if the engine has a folder for them. The Shelf knows which tokens lie
where, and their sizes; the runner has the data.
"""

from __future__ import annotations

from collections.abc import Sequence, Set

from .operations import Forget, Spill
from .prefixes import PrefixIndex

__all__ = ["Shelf"]


class Shelf:
    """Texts by their keys; the least recently used one goes first.

    Args:
        n_bytes: room in host memory.
        n_disk_bytes: room on disk.

    Attributes:
        n_bytes, n_disk_bytes: bytes that the texts take.
    """

    def __init__(self, n_bytes: int, n_disk_bytes: int = 0) -> None:
        self._room = n_bytes
        self._disk_room = n_disk_bytes
        self._index: PrefixIndex[int] = PrefixIndex()
        self._sizes: dict[int, int] = {}  # by key, the least recently used first
        self._disk: dict[int, int] = {}  # the same, on disk
        self._token_bytes = 0.0  # of the text that was weighed last
        self._next = 0
        self.n_bytes = self.n_disk_bytes = 0

    def __len__(self) -> int:
        return len(self._sizes) + len(self._disk)

    def longest(self, tokens: Sequence[int]) -> tuple[int, int | None]:
        """Return the length of the longest prefix of ``tokens`` on the shelf, and the key of a text with it."""
        length, keys = self._index.longest(tokens)
        return (length, min(keys, key=lambda key: (key in self._disk, self._size(key)))) if keys else (0, None)

    def longest_whole(self, tokens: Sequence[int]) -> tuple[int, int] | None:
        """Return the longest text that is a prefix of ``tokens``, as its length and key; None where none is."""
        found = [(length, key) for key, length in self._index.begun_by(tokens)]
        return max(found, default=None)

    def begins(self) -> Set[int]:
        """Return the first tokens of all texts."""
        return self._index.begins()

    def length(self, key: int) -> int:
        """Return the number of tokens of a text."""
        return len(self._index.tokens(key))

    def use(self, key: int) -> int:
        """Mark a text as used now; return its length."""
        sizes = self._disk if key in self._disk else self._sizes
        sizes[key] = sizes.pop(key)
        return self.length(key)

    def put(self, tokens: Sequence[int]) -> tuple[int | None, list[Forget | Spill]]:
        """Take a text; return its key, None where there is no room, and what happens to the texts that make room.

        Texts that are a prefix of it go first, then the least recently used ones. Until the text is weighed, each of its
        tokens counts as many bytes as those of the text weighed last.
        """
        n_bytes = int(len(tokens) * self._token_bytes)
        if n_bytes > self._room or not self._room:
            return None, []
        gone: list[Forget | Spill] = [self._forget(key) for key, _ in list(self._index.begun_by(tokens))]
        gone += self._make_room(n_bytes)
        key, self._next = self._next, self._next + 1
        self._index.extend(key, tokens)
        self._sizes[key] = n_bytes
        self.n_bytes += n_bytes
        return key, gone

    def weigh(self, key: int, n_bytes: int | None) -> list[Forget | Spill]:
        """Take the size of a text, None if it could not be saved; return what happens to the texts that make room."""
        if n_bytes is None and (key in self._sizes or key in self._disk):
            return [self._forget(key)]
        if n_bytes is None or key not in self._sizes:
            return []
        self._token_bytes = n_bytes / len(self._index.tokens(key))
        self.n_bytes += n_bytes - self._sizes[key]
        self._sizes[key] = n_bytes
        return self._make_room(0)

    def _make_room(self, n_bytes: int) -> list[Forget | Spill]:
        gone: list[Forget | Spill] = []
        while self.n_bytes + n_bytes > self._room:
            key = next(iter(self._sizes))
            if self._sizes[key] > self._disk_room:
                gone.append(self._forget(key))
                continue
            size = self._disk[key] = self._sizes.pop(key)
            self.n_bytes -= size
            self.n_disk_bytes += size
            gone.append(Spill(key))
            while self.n_disk_bytes > self._disk_room:
                gone.append(self._forget(next(iter(self._disk))))
        return gone

    def _size(self, key: int) -> int:
        return self._disk[key] if key in self._disk else self._sizes[key]

    def _forget(self, key: int) -> Forget:
        self._index.remove(key)
        if key in self._disk:
            self.n_disk_bytes -= self._disk.pop(key)
        else:
            self.n_bytes -= self._sizes.pop(key)
        return Forget(key)
