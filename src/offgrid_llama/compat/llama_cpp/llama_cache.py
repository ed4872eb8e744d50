"""Caches of states by their tokens: a prompt goes on from the state that shares the longest prefix with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from .llama_state import LlamaState
from .state_files import StateFiles

__all__ = ["BaseLlamaCache", "LlamaCache", "LlamaDiskCache", "LlamaRAMCache"]

DEFAULT_CAPACITY_BYTES = 2 << 30

Tokens = tuple[int, ...]


class BaseLlamaCache(ABC):
    """A cache of states. Its keys are the tokens that the states were saved with.

    A key that is asked for need not be one of them: it stands for the key with which it has the longest prefix in common,
    which is at least one token long.

    Args:
        capacity_bytes: how many bytes the states may take. The least recently used ones leave first.
    """

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        self.capacity_bytes = capacity_bytes

    @property
    @abstractmethod
    def cache_size(self) -> int:
        """The bytes of the states."""

    def _find_longest_prefix_key(self, key: Tokens) -> Tokens | None:
        """Return the key that has the longest prefix in common with ``key``, None if there is none."""
        return None

    @abstractmethod
    def __getitem__(self, key: Sequence[int]) -> LlamaState: ...

    @abstractmethod
    def __contains__(self, key: Sequence[int]) -> bool: ...

    @abstractmethod
    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None: ...


class LlamaRAMCache(BaseLlamaCache):
    """A cache in memory.

    Attributes:
        cache_state: the states by their keys, the least recently used one first.
    """

    def __init__(self, capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        super().__init__(capacity_bytes)
        self.cache_state: OrderedDict[Tokens, LlamaState] = OrderedDict()

    @property
    def cache_size(self) -> int:
        """The bytes of the states, without their scores."""
        return sum(state.llama_state_size for state in self.cache_state.values())

    def _find_longest_prefix_key(self, key: Tokens) -> Tokens | None:
        return _closest(self.cache_state, key)

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        found = self._find_longest_prefix_key(_tokens(key))
        if found is None:
            raise KeyError("Key not found")
        self.cache_state.move_to_end(found)
        return self.cache_state[found]

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._find_longest_prefix_key(_tokens(key)) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        tokens = _tokens(key)
        self.cache_state[tokens] = value
        self.cache_state.move_to_end(tokens)
        size = self.cache_size
        while size > self.capacity_bytes and self.cache_state:
            size -= self.cache_state.popitem(last=False)[1].llama_state_size


LlamaCache = LlamaRAMCache


class LlamaDiskCache(BaseLlamaCache):
    """A cache in a folder, which the next process finds again, and which several processes may share.

    A state that is found stays in the cache. A file that is damaged counts as missing, and is deleted.

    **Only trusted users may write into the folder.** Nothing in its files is executed when they are read, but llama.cpp
    takes the states in them as they are. Only trusted users may read it, because the states hold conversations.

    Args:
        cache_dir: the folder; it is made if it is not there, readable by its owner only.
        capacity_bytes: how many bytes its files may take.

    Raises OSError where the folder cannot be made or written to.
    """

    def __init__(self, cache_dir: str = ".cache/llama_cache", capacity_bytes: int = DEFAULT_CAPACITY_BYTES) -> None:
        super().__init__(capacity_bytes)
        self._files = StateFiles(cache_dir)

    @property
    def cache_size(self) -> int:
        """The bytes of the files."""
        return self._files.size()

    def _find_longest_prefix_key(self, key: Tokens) -> Tokens | None:
        return _closest(self._files.keys(), key)

    def __getitem__(self, key: Sequence[int]) -> LlamaState:
        while (found := self._find_longest_prefix_key(_tokens(key))) is not None:
            state = self._files.read(found)
            if state is not None:  # another process may have deleted it meanwhile
                return state
        raise KeyError("Key not found")

    def __contains__(self, key: Sequence[int]) -> bool:
        return self._find_longest_prefix_key(_tokens(key)) is not None

    def __setitem__(self, key: Sequence[int], value: LlamaState) -> None:
        self._files.write(_tokens(key), value)
        self._files.trim(self.capacity_bytes)


def _tokens(key: Sequence[int]) -> Tokens:
    return tuple(map(int, key))  # NumPy has integers of its own


def _closest(keys: Iterable[Tokens], wanted: Tokens) -> Tokens | None:
    """Return the first of the keys that have the longest prefix in common with ``wanted``, None where that is empty."""
    best, length = None, 0
    for key in keys:
        # No longer prefix without the token at which the longest one so far ends.
        if key[: length + 1] == wanted[: length + 1] and len(wanted) > length:
            best, length = key, _common(key, wanted, length + 1)
    return best


def _common(one: Tokens, other: Tokens, start: int) -> int:
    """Return the length of the prefix that two keys have in common, which is at least ``start``."""
    for at in range(start, min(len(one), len(other))):
        if one[at] != other[at]:
            return at
    return min(len(one), len(other))
