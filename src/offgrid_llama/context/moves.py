"""Moves: data of a memory that the next decode moves, before it computes.

llama.h moves no data when a sequence is shifted or copied. It notes what to do, and the next decode does it: a shift turns
keys by RoPE, and a copy between sequences that have cells of their own copies the cells. Until then the memory does not
hold what it says, so a state must not be taken of it, nor loaded into a sequence that a copy still reads or writes.
"""

from __future__ import annotations

from offgrid_llama.errors import StateError

__all__ = ["COPYING", "NODES_PER_TURNED_LAYER", "TURNING", "Moves"]

TURNING = 1
"""Flag of ``Moves.pending``: keys turn to new positions."""

COPYING = 2
"""Flag of ``Moves.pending``: cells are copied from one sequence to another."""

NODES_PER_TURNED_LAYER = 16
"""Nodes of the graph that turns the keys of one layer, at most: 5 where they are quantized, in one or two caches."""


class Moves:
    """The moves that a memory has left to the next decode. The context's lock guards it.

    Attributes:
        pending: TURNING, COPYING, both or 0.
        copies: the pending copies, as (source, target) sequence ids.
    """

    __slots__ = ("copies", "pending")

    def __init__(self) -> None:
        self.pending = 0
        self.copies: set[tuple[int, int]] = set()

    def turn(self) -> None:
        """Note that positions were shifted."""
        self.pending |= TURNING

    def copy(self, source: int, target: int) -> None:
        """Note that a sequence was copied to cells of its own."""
        self.pending |= COPYING
        self.copies.add((source, target))

    def forget_turns(self) -> None:
        """Note that the memory was cleared: no keys are left to turn, but llama.h still copies."""
        self.pending &= COPYING

    def clear(self) -> None:
        """Note that all moves are done, or were replaced by a loaded state."""
        self.pending = 0
        self.copies.clear()

    def refuse(self, name: str, kinds: int, seq_id: int | None = None, *, writing: bool = False) -> None:
        """Raise StateError where moves of these kinds are pending, for one sequence or for any.

        Args:
            name: the context's.
            kinds: TURNING, COPYING or both.
            seq_id: of the copies, only those to this sequence count; None counts all.
            writing: the sequence will be written, so that it must not be the source of a copy either.
        """
        pending = self.pending & kinds
        if pending & COPYING and seq_id is not None:
            involved = (target == seq_id or (writing and source == seq_id) for source, target in self.copies)
            if not any(involved):
                pending &= ~COPYING
        if pending:
            raise StateError(
                f"{name}: positions were shifted, or a sequence was copied, and the next decode moves the data: decode "
                "something first"
            )
