"""Slots: which sequence a request gets, and what of its prompt is computed already (pure).

A slot is one sequence of the context. It is free, or a request has it, or it is idle: its request has ended, and what it
has computed stays until somebody needs the slot. A new request begins with the longest beginning of its prompt that any has,
idle or running: it takes the idle slot over, or a copy of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .prefixes import PrefixIndex

__all__ = ["Copy", "Keep", "Operation", "Slots", "Taken", "Wait"]

SHORT_TAIL = 32
"""An idle slot that loses no more tokens than these is taken over, where it would be copied otherwise."""

WORTH = 16
"""A beginning of fewer tokens than these is neither waited for nor copied: computing it is as quick."""


@dataclass(frozen=True)
class Copy:
    """Make ``target`` what ``source`` is (``llama_memory_seq_cp``)."""

    source: int
    target: int


@dataclass(frozen=True)
class Keep:
    """Keep the first ``length`` positions of ``seq`` (``llama_memory_seq_rm`` of the rest)."""

    seq: int
    length: int


Operation = Copy | Keep


@dataclass(frozen=True)
class Taken:
    """A slot for a request.

    Attributes:
        seq: its sequence id.
        n_cached: how many tokens of the prompt it has, once the operations are done in their order.
        operations: what is to be done to the memory first.
    """

    seq: int
    n_cached: int
    operations: tuple[Operation, ...]


class Wait(Enum):
    """Why there is no slot yet."""

    SLOT = "every slot is in use"
    PREFIX = "a running request is about to compute what this one begins with"


class Slots:
    """The slots of one context.

    Args:
        n_seq_max: how many there are; sequence ids are 0 to ``n_seq_max - 1``.
    """

    def __init__(self, n_seq_max: int) -> None:
        self._index: PrefixIndex[int] = PrefixIndex()  # of what each idle one has, and of the prompts of the others
        self._n_computed = [0] * n_seq_max
        self._free = dict.fromkeys(range(n_seq_max))
        self._idle: dict[int, None] = {}  # the one that was used least recently first
        self._running: dict[int, None] = {}

    @property
    def n_free(self) -> int:
        """How many slots have nothing."""
        return len(self._free)

    @property
    def n_idle(self) -> int:
        """How many slots have something that no request is using."""
        return len(self._idle)

    @property
    def n_running(self) -> int:
        """How many slots a request has."""
        return len(self._running)

    @property
    def n_cached_tokens(self) -> int:
        """How many tokens idle slots have. From any thread, about."""
        return sum(self._n_computed[seq] for seq in list(self._idle))

    def n_computed(self, seq: int) -> int:
        """Return how many tokens of a slot are in memory."""
        return self._n_computed[seq]

    def tokens(self, seq: int) -> list[int]:
        """Return the tokens of a slot: of an idle one those in memory, of one in use the prompt."""
        return self._index.tokens(seq) if seq in self._index else []

    def take(self, prompt: Sequence[int]) -> Taken | Wait:
        """Give a slot to a request. At least the prompt's last token is left to compute, as its logits are needed."""
        if not self._free and not self._idle:
            return Wait.SLOT
        length, holders = self._index.longest(prompt)
        length = min(length, len(prompt) - 1)
        source = max(holders, key=lambda seq: self._preference(seq, length), default=None)
        shared = 0 if source is None else min(self._n_computed[source], length)
        if shared < length >= WORTH:
            return Wait.PREFIX
        target = self._target()
        operations: list[Operation] = []
        if source in self._idle and (source == target or self._is_as_good(source, target, shared)):
            target = source
            if self._n_computed[target] > shared:
                operations.append(Keep(target, shared))
        else:
            if self._n_computed[target]:
                operations.append(Keep(target, 0))
            if source is not None and shared >= WORTH:
                operations.append(Copy(source, target))
                if self._n_computed[source] > shared:
                    operations.append(Keep(target, shared))
            else:
                shared = 0
        self.drop(target)
        del self._free[target]
        self._running[target] = None
        self._index.extend(target, prompt)
        self._n_computed[target] = shared
        return Taken(target, shared, tuple(operations))

    def _preference(self, seq: int, length: int) -> tuple[int, bool, int]:
        n = self._n_computed[seq]
        return min(n, length), seq in self._idle, -n  # an idle one that loses little

    def _target(self) -> int:
        """Return the slot to take: one beside those in use; then one that has nothing; then the one used least recently.

        llama.cpp computes sequences together where their ids follow each other.
        """
        return min((*self._free, *self._idle), key=lambda seq: (-self._n_beside(seq), seq not in self._free))

    def _n_beside(self, seq: int) -> int:
        return (seq - 1 in self._running) + (seq + 1 in self._running) if self._running else 0

    def _is_as_good(self, source: int, target: int, shared: int) -> bool:
        """Return whether an idle slot is to be taken over, instead of copied to ``target``."""
        return self._n_computed[source] - shared <= SHORT_TAIL and self._n_beside(source) >= self._n_beside(target)

    def advance(self, seq: int, n: int) -> None:
        """Say that ``n`` more tokens of a slot are in memory."""
        self._n_computed[seq] += n

    def keep(self, seq: int, length: int) -> None:
        """Say that memory has lost all of a slot but its first ``length`` tokens; its request is to compute no more."""
        self._n_computed[seq] = min(length, self._n_computed[seq])
        self._index.truncate(seq, self._n_computed[seq])

    def set_computed(self, seq: int, n: int) -> None:
        """Say that memory has ``n`` tokens of a running slot, whose request goes on from there."""
        self._n_computed[seq] = n

    def release(self, seq: int, generated: Sequence[int] = ()) -> None:
        """End the request of a slot, which has generated these; what is computed stays for others."""
        del self._running[seq]
        self._idle[seq] = None
        self._index.extend(seq, generated)
        self.keep(seq, self._n_computed[seq])
        if not self._n_computed[seq]:
            self.drop(seq)

    def drop(self, seq: int) -> None:
        """Say that a slot has nothing any more, whoever has it."""
        self._running.pop(seq, None)
        self._idle.pop(seq, None)
        self._free[seq] = None
        self._n_computed[seq] = 0
        if seq in self._index:
            self._index.remove(seq)
