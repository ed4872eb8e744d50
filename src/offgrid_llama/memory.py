"""Memory: what a context has computed, by sequence and position (``llama_memory_t``). Borrowed from its Context.

Positions are half-open ranges [p0, p1); -1 means from the beginning, or to the end. Sequence ids are 0 to
``n_seq_max - 1``; llama.h aborts the process for any other, so they are checked here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._capi import lib
from ._check import number, raise_caught, sequence
from .batch import MAX_POS
from .errors import ContextError

if TYPE_CHECKING:
    from .context import Context

__all__ = ["Memory"]


class Memory:
    """The KV cache or recurrent state of a Context. Get it as ``context.memory``; it is borrowed, and dies with it.

    Raises ContextError, in every method, for a context of an encoder-only model, which has no memory.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._handle = context._handle
        with self._handle as ptr:
            self._ptr = lib.llama_get_memory(ptr)

    def __repr__(self) -> str:
        return f"<Memory of {self._handle.name}>"

    def clear(self, data: bool = True) -> None:
        """Forget every sequence; ``data`` also zeroes the buffers (``llama_memory_clear``)."""
        with self._handle:
            lib.llama_memory_clear(self._there(), bool(data))
            raise_caught()

    def remove(self, seq_id: int, p0: int = -1, p1: int = -1) -> bool:
        """Forget [p0, p1) of a sequence, or of all for ``seq_id=-1`` (``llama_memory_seq_rm``).

        Returns False, and changes nothing, where only a whole sequence can be forgotten (recurrent models).
        """
        seq_id = seq_id if seq_id == -1 else self._seq("seq_id", seq_id)
        p0, p1 = self._range(p0, p1)
        with self._handle:
            done = bool(lib.llama_memory_seq_rm(self._there(), seq_id, p0, p1))
            raise_caught()
            return done

    def copy(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        """Let sequence ``dst`` have what ``src`` has in [p0, p1) (``llama_memory_seq_cp``).

        Without ``kv_unified`` only the whole sequence can be copied; trim the copy with ``remove``.
        """
        src, dst = self._seq("src", src), self._seq("dst", dst)
        p0, p1 = self._range(p0, p1)
        if not self._context.params.kv_unified and src != dst and (p0 > 0 or p1 != -1):
            raise ValueError(
                f"p0={p0}, p1={p1}: without kv_unified=True only a whole sequence can be copied. "
                "Copy it whole, then memory.remove() what is too much"
            )
        with self._handle:
            memory = self._there()
            if src != dst:
                lib.llama_memory_seq_cp(memory, src, dst, p0, p1)
                raise_caught()

    def keep(self, seq_id: int) -> None:
        """Forget every sequence but this one (``llama_memory_seq_keep``)."""
        seq_id = self._seq("seq_id", seq_id)
        with self._handle:
            lib.llama_memory_seq_keep(self._there(), seq_id)
            raise_caught()

    def shift(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        """Add ``delta`` to the positions in [p0, p1); the next decode moves the keys (``llama_memory_seq_add``).

        Raises ContextError where ``can_shift`` is False.
        """
        seq_id = self._seq("seq_id", seq_id)
        p0, p1 = self._range(p0, p1)
        with self._handle:
            memory = self._shiftable()
            last = lib.llama_memory_seq_pos_max(memory, seq_id)
            number("delta", delta, -MAX_POS, MAX_POS - max(last, 0))
            lib.llama_memory_seq_add(memory, seq_id, p0, p1, delta)
            raise_caught()

    def divide(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        """Divide the positions in [p0, p1) by ``d``, at least 1 (``llama_memory_seq_div``).

        Raises ContextError where ``can_shift`` is False.
        """
        seq_id = self._seq("seq_id", seq_id)
        p0, p1 = self._range(p0, p1)
        d = number("d", d, 1)
        with self._handle:
            memory = self._shiftable()
            lib.llama_memory_seq_div(memory, seq_id, p0, p1, d)
            raise_caught()

    def positions(self, seq_id: int) -> range:
        """Return the positions that are there; empty for an unused sequence (``llama_memory_seq_pos_min``, ``_max``).

        A sliding window forgets the oldest, so the range need not begin at 0.
        """
        seq_id = self._seq("seq_id", seq_id)
        with self._handle:
            memory = self._there()
            first = lib.llama_memory_seq_pos_min(memory, seq_id)
            last = lib.llama_memory_seq_pos_max(memory, seq_id)
        return range(first, last + 1) if last >= 0 else range(0)

    @property
    def can_shift(self) -> bool:
        """Whether ``shift`` and ``divide`` work for this model (``llama_memory_can_shift``)."""
        with self._handle:
            return bool(lib.llama_memory_can_shift(self._there()))

    def _there(self) -> object:
        if not self._ptr:
            raise ContextError(f"{self._handle.name} has no memory: its model has no decoder")
        return self._ptr

    def _shiftable(self) -> object:
        memory = self._there()
        if not lib.llama_memory_can_shift(memory):
            raise ContextError(f"{self._handle.name} cannot move positions: can_shift is False")
        return memory

    def _seq(self, name: str, seq_id: int) -> int:
        return sequence(name, seq_id, self._context.params.n_seq_max)

    @staticmethod
    def _range(p0: int, p1: int) -> tuple[int, int]:
        return number("p0", p0, -1), number("p1", p1, -1)
