"""SlotTexts: the text of each slot, how much of it is in memory, and what becomes of it (pure).

A slot is one sequence of the context. It is free, or a request has it, or it is idle: its request has ended, and what that
has computed stays as a prefix cache until another request needs the slot.
"""

from __future__ import annotations

from collections.abc import Sequence

from .cells import Cells
from .limits import Limits, Trim
from .media_tokens import length_at, position_at, whole_chunks
from .neighbours import by_distance, gap
from .operations import Keep, Operation, Save, Shift
from .prefixes import PrefixIndex
from .salts import Salts
from .shelf import Shelf

__all__ = ["SHORT_TAIL_TOKENS", "SlotTexts"]

SHORT_TAIL_TOKENS = 32
"""An idle slot that loses no more tokens than these is taken over, where it would otherwise be copied."""


class SlotTexts:
    """The texts of the slots of one context.

    Args:
        limits: of the context.
        shelf: takes evicted texts; None drops them.

    Attributes:
        shelf: the shelf. cells: the cells that all slots share; None where each slot has its own.
    """

    def __init__(self, limits: Limits, shelf: Shelf | None = None) -> None:
        n = limits.n_seq_max
        self.shelf = Shelf(0) if shelf is None else shelf
        self.cells = None if limits.n_cells is None else Cells(limits.n_cells)
        self._n_seq_max = n
        self._trim = limits.trim
        self._limits = limits
        self._reusable = [0] * n  # other texts begin with no more of a slot's tokens
        self._least = [0] * n  # a slot can be cut to no fewer tokens, other than 0
        self._evicted: list[Operation] = []  # for requests that still wait
        self._sources: set[int] = set()  # of copies in the plan that is being made
        self._marks: dict[int, int] = {}  # where a slot in use stops for a step, as another text goes on from there
        self._index: PrefixIndex[int] = PrefixIndex()  # the tokens of idle slots, and the prompts of those in use
        self._n_computed = [0] * n
        self._shifted: set[int] = set()  # slots with tokens that the index does not know, so that no request finds them
        self._free = dict.fromkeys(range(n))
        self._idle: dict[int, None] = {}  # the least recently used first
        self._running: dict[int, None] = {}
        self._salts = Salts(lambda: self._index.begins() | self.shelf.begins())

    @property
    def n_slots(self) -> int:
        """How many slots there are."""
        return self._n_seq_max

    @property
    def n_free(self) -> int:
        """How many slots have no tokens."""
        return len(self._free)

    @property
    def n_idle(self) -> int:
        """How many slots have tokens that no request is using."""
        return len(self._idle)

    @property
    def n_running(self) -> int:
        """How many slots are in use."""
        return len(self._running)

    @property
    def n_cached_tokens(self) -> int:
        """How many tokens idle slots have. Read from another thread it may be a step old."""
        return sum(self._n_computed[seq] for seq in list(self._idle))

    def n_computed(self, seq: int) -> int:
        """Return how many tokens of a slot are in memory."""
        return self._n_computed[seq]

    def tokens(self, seq: int) -> list[int]:
        """Return the tokens of a slot: of an idle one those in memory, of one in use the prompt."""
        return self._index.tokens(seq) if seq in self._index else []

    def plain_tokens(self, seq: int, salt: str) -> list[int]:
        """Return the tokens of an idle slot as a request with this salt knows them; none for one of another salt."""
        return [] if seq in self._shifted else self._salts.plain(self.tokens(seq), salt)

    # Which slot ------------------------------------------------------------------------------------------------------

    def _gap(self, seq: int) -> int:
        return 0 if self.cells is not None else gap(seq, self._running, self._n_seq_max)

    def unused(self, n: int, limit: int) -> list[tuple[int, int]]:
        """Return ``n`` slots not in use with fewer than ``limit`` tokens, each with its length; none if there are fewer.

        Those between slots in use come first, then those beside them.
        """
        some = [seq for seq in (*self._free, *self._idle) if self._n_computed[seq] < limit]
        return [(seq, self._n_computed[seq]) for seq in by_distance(some, self._running)[:n]] if len(some) >= n else []

    # The shelf -------------------------------------------------------------------------------------------------------

    def _make_room(self, seq: int, length: int) -> list[Operation]:
        """Return what cuts a slot to ``length`` tokens, and puts a long rest on the shelf."""
        n = self._n_computed[seq]
        operations: list[Operation] = []
        if n - length > SHORT_TAIL_TOKENS:
            operations += self.save(seq)
        if n > length:
            operations.append(self.keep_operation(seq, self.tokens(seq), length))
        return operations

    def keep_operation(self, seq: int, text: Sequence[int], length: int) -> Keep:
        """Return what keeps the first ``length`` tokens of a slot with a text."""
        return Keep(seq, self._position(text, length))

    def _position(self, text: Sequence[int], length: int) -> int:
        return position_at(text, length) if self._limits.has_sections else length

    def _whole(self, text: Sequence[int], length: int) -> int:
        """Return the largest length up to ``length`` that cuts no picture or sound of a text: nothing begins within one."""
        return whole_chunks(text, length) if self._limits.has_chunks else length

    def save(self, seq: int) -> list[Operation]:
        """Return what puts the tokens of a slot on the shelf; nothing where they lie there, or in another slot, already."""
        if seq in self._shifted:
            return []
        tokens = self._index.tokens(seq)[: self._n_computed[seq]]
        length, holders = self._index.longest(tokens)
        others = [other for other in holders if other != seq and self._n_computed[other] >= len(tokens)]
        stored, _ = self.shelf.longest(tokens)
        if (others and self._trim is Trim.ANY and length == len(tokens)) or stored == len(tokens):
            return []
        key, gone = self.shelf.put(tokens)
        return [*([] if key is None else [Save(seq, key)]), *gone]

    def stop_at(self, seq: int) -> int | None:
        """Return the position ahead at which a slot in use stops for a step; None without one."""
        mark = self._marks.get(seq)
        return mark if mark is not None and mark > self._n_computed[seq] else None

    def checkpoints(self) -> list[Operation]:
        """Return the last operations of a plan: slots that have come to where they stop go to the shelf."""
        self._sources.clear()
        operations, self._evicted = self._evicted, []
        for seq, mark in list(self._marks.items()):
            if self._n_computed[seq] >= mark:
                del self._marks[seq]
                if self._n_computed[seq] == mark:
                    operations += self.save(seq)
        return operations

    # A request computes, and ends ------------------------------------------------------------------------------------

    def advance(self, seq: int, n: int) -> None:
        """Take that ``n`` more tokens of a slot are in memory."""
        self._n_computed[seq] += n

    def keep(self, seq: int, length: int) -> None:
        """Take that memory has lost a slot but for its first ``length`` tokens; no request goes on in it."""
        self._n_computed[seq] = min(length, self._n_computed[seq])
        self._index.truncate(seq, self._n_computed[seq])
        if self.cells is not None:
            self.cells.cut(seq, self._n_computed[seq])

    def shift(self, seq: int, begin: int, end: int) -> Shift:
        """Let a slot lose the tokens [begin, end); other requests find only those before them."""
        self._n_computed[seq] -= end - begin
        self._index.truncate(seq, min(begin, len(self._index.tokens(seq))))
        self._shifted.add(seq)
        return Shift(seq, begin, end)

    def cut(self, seq: int, length: int) -> int:
        """Return how many tokens memory keeps of a slot that is cut to ``length``: as many, or 0."""
        least = self._n_computed[seq] if self._trim is Trim.NOTHING else self._least[seq]
        return length if length >= least else 0

    def kept(self, seq: int, text: Sequence[int], n_positions: int, n_usable: int) -> tuple[int, list[Operation]]:
        """Take that memory has ``n_positions`` of a slot in use; return from which token of its text its request goes on.

        Of what memory has it keeps up to ``n_usable`` tokens; the operations see to that.
        """
        held = self._length(text, n_positions)
        kept = self._whole(text, min(held, n_usable))
        operations: list[Operation] = []
        if self._position(text, kept) < n_positions:
            self._n_computed[seq] = max(held, kept + 1)
            kept = self.cut(seq, kept)
            operations = [self.keep_operation(seq, text, kept)]
        self._n_computed[seq] = kept
        self._least[seq] = min(kept, self._least[seq])
        return kept, operations

    def lose(self, seq: int, n_positions: int) -> list[Operation]:
        """Take that memory has ``n_positions`` of a slot; return what removes a picture that it has only a part of.

        A slot in use has had its turn: see ``kept``.
        """
        text = self.tokens(seq)[: self._n_computed[seq]] if self._limits.has_sections else ()
        if seq in self._running or self._position(text, self._n_computed[seq]) <= n_positions:
            return []
        self.keep(seq, self._length(text, n_positions))
        return [self.keep_operation(seq, text, self._n_computed[seq])] if self._limits.has_sections else []

    def _length(self, text: Sequence[int], n_positions: int) -> int:
        return length_at(text, n_positions) if self._limits.has_sections else n_positions

    def release(self, seq: int, generated: Sequence[int] = ()) -> None:
        """End the request of a slot, which has generated these tokens; the computed ones stay for others."""
        del self._running[seq]
        self._idle[seq] = None
        self._marks.pop(seq, None)
        self._index.extend(seq, () if seq in self._shifted else generated)
        self.keep(seq, self._n_computed[seq])
        if not self._n_computed[seq]:
            self.drop(seq)

    def drop(self, seq: int) -> None:
        """Take that a slot has no tokens any more, in use or not."""
        if self.cells is not None:
            self.cells.cut(seq, 0)
        self._forget(seq)

    def _forget(self, seq: int) -> None:
        self._running.pop(seq, None)
        self._idle.pop(seq, None)
        self._free[seq] = None
        self._n_computed[seq] = self._least[seq] = 0
        self._marks.pop(seq, None)
        self._shifted.discard(seq)
        if seq in self._index:
            self._index.remove(seq)
