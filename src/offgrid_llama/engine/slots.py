"""Slots: which sequence a request gets, and what of its prompt is computed already (pure).

A slot is one sequence of the context. It is free, or a request has it, or it is idle: its request has ended, and what it
has computed stays until somebody needs the slot. A new request begins with the longest beginning of its prompt that any has,
idle or running: it takes the idle slot over, or a copy of it. What has to make room goes to the shelf, and comes back from
there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from .cells import Cells
from .operations import Copy, Keep, Load, Operation, Save, Shift
from .prefixes import PrefixIndex
from .shelf import Shelf

__all__ = ["Slots", "Taken", "Trim", "Wait"]

SHORT_TAIL = 32
"""An idle slot that loses no more tokens than these is taken over, where it would be copied otherwise."""

MOST_SALTED = 10_000
"""First tokens of salted prompts that are remembered, before those are forgotten that nobody has any more."""

WORTH = 16
"""A beginning of fewer tokens than these is neither waited for nor copied: computing it is as quick."""


class Trim(Enum):
    """What memory can do without what it had."""

    ANY = "forget the end of a sequence, however much"
    COMPUTED = "the same, but for what came from the shelf: of a sliding window nothing else is there"
    NOTHING = "forget whole sequences: a recurrent state has no parts"


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
        trim: what of a sequence memory can forget.
        shelf: where to put what has to make room; None is nowhere.
        n_cells: how many positions all have together, where they share them (``kv_unified``); None where each has its own.
    """

    def __init__(
        self,
        n_seq_max: int,
        *,
        trim: Trim = Trim.ANY,
        shelf: Shelf | None = None,
        n_cells: int | None = None,
    ) -> None:
        self._trim = trim
        self._shelf = Shelf(0) if shelf is None else shelf
        self._least = [0] * n_seq_max  # no slot can be cut to fewer tokens, but to none
        self._cells = None if n_cells is None else Cells(n_cells)
        self._evicted: list[Operation] = []  # by what waits still
        self._sources: set[int] = set()  # of copies in the plan that is being made
        self._marks: dict[int, int] = {}  # where a running one is to stop for a moment, as others go on from there
        self._index: PrefixIndex[int] = PrefixIndex()  # of what each idle one has, and of the prompts of the others
        self._n_computed = [0] * n_seq_max
        self._shifted: set[int] = set()  # has more than the index says, which nobody can use
        self._free = dict.fromkeys(range(n_seq_max))
        self._idle: dict[int, None] = {}  # the one that was used least recently first
        self._running: dict[int, None] = {}
        self._salted: dict[tuple[str, int], int] = {}  # what stands for the first token of a prompt with a salt
        self._n_salted = 0

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

    def take(self, prompt: Sequence[int], room: int = 0, salt: str = "") -> Taken | Wait:
        """Give a slot to a request, which is to have room for so many tokens more.

        At least the prompt's last token is left to compute, as its logits are needed. Nothing is found of what was computed
        with another ``salt``: in the index, the first token is another one with each.
        """
        if not self._free and not self._idle:
            return Wait.SLOT
        return self._take([self._salt(salt, prompt[0]), *prompt[1:]] if salt else prompt, room)

    def _salt(self, salt: str, token: int) -> int:
        """Return what stands for the first token of a prompt with a salt: a number that is no token, always the same."""
        if (salt, token) not in self._salted:
            if len(self._salted) >= MOST_SALTED:
                begins = {*self._index.begins(), *self._shelf.begins()}
                self._salted = {key: number for key, number in self._salted.items() if number in begins}
            self._n_salted += 1
            self._salted[salt, token] = -1 - self._n_salted
        return self._salted[salt, token]

    def _take(self, prompt: Sequence[int], room: int) -> Taken | Wait:
        most = len(prompt) - 1
        length, holders = self._index.longest(prompt)
        length = min(length, most)
        source = max(holders, key=lambda seq: self._preference(seq, length), default=None)
        shared = 0 if source is None else self._usable(source, length)
        stored, key = self._stored(prompt)
        if stored >= max(shared + WORTH, length):
            source, shared = None, stored
        elif shared < length >= WORTH and self._is_coming(holders, length):
            return Wait.PREFIX
        else:
            key = None
        if key is not None and self._target() in self._sources:  # it is copied in the next decode, as it is then
            return Wait.PREFIX
        if self._cells is not None and not self._fit(self._n_needed(len(prompt) + room, source, shared, key), source):
            if source not in self._idle:
                return Wait.SLOT
            self._evict(source)
            return self._take(prompt, room)
        target, shared, operations = self._prepare(source, shared, key)
        operations[:0], self._evicted = self._evicted, []
        least = self._least[source] if source is not None and shared else 0
        if key is not None and self._trim is Trim.COMPUTED:
            least = shared
        self._take_cells(target, source, shared, len(prompt) + room)
        self._forget(target)
        del self._free[target]
        self._running[target] = None
        self._index.extend(target, prompt)
        self._n_computed[target] = shared
        self._least[target] = least
        if self._trim is Trim.NOTHING and length >= WORTH and length > shared:
            self._marks[target] = length  # whoever comes next with this beginning finds it
        return Taken(target, shared, tuple(operations))

    def _prepare(self, source: int | None, shared: int, key: int | None) -> tuple[int, int, list[Operation]]:
        """Return the slot to take, and what makes it have ``shared`` tokens of ``source``, or of a text on the shelf.

        Between the two is how many it has then.
        """
        target = self._target()
        operations: list[Operation] = []
        if key is not None:
            extra = self._shelf.use(key) - shared
            operations += [*self._make_room(target, 0), Load(key, target)]
            if extra:
                operations.append(Keep(target, shared))
        elif source in self._idle and (source == target or self._is_as_good(source, target, shared)):
            target = source
            operations += self._make_room(target, shared)
        else:
            operations += self._make_room(target, 0)
            shared = shared if shared >= WORTH else 0
            if source is not None and shared:
                operations.append(Copy(source, target))
                self._sources.add(source)
                if self._n_computed[source] > shared:
                    operations.append(Keep(target, shared))
        return target, shared, operations

    def _usable(self, seq: int, length: int) -> int:
        """Return how many of the first ``length`` tokens of a slot another one can begin with."""
        n = min(self._n_computed[seq], length)
        least = self._n_computed[seq] if self._trim is Trim.NOTHING else self._least[seq]
        if n < least:
            return 0
        # Little is not worth a copy; an idle slot that has no more than that is taken over.
        return n if n >= WORTH or (seq in self._idle and self._n_computed[seq] - n <= SHORT_TAIL) else 0

    def _is_coming(self, holders: Iterable[int], length: int) -> bool:
        """Return whether a running slot is about to compute so much of what they share; it stops there if it has to."""
        for seq in holders:
            if seq in self._running and self._n_computed[seq] < length:
                if self._trim is Trim.NOTHING:
                    self._marks[seq] = min(length, self._marks.get(seq, length))
                return True
        return False

    def _stored(self, prompt: Sequence[int]) -> tuple[int, int | None]:
        """Return how many tokens of a prompt lie on the shelf, and where."""
        most = len(prompt) - 1
        stored, key = self._shelf.longest(prompt)
        if key is None or self._trim is Trim.ANY:
            return min(stored, most), key
        whole = self._shelf.longest_whole(prompt[:most])
        return whole if whole is not None else (0, None)

    def _make_room(self, seq: int, length: int) -> list[Operation]:
        """Return what lets a slot keep ``length`` tokens, and the shelf the rest if that is much."""
        n = self._n_computed[seq]
        operations: list[Operation] = []
        if n - length > SHORT_TAIL:
            operations += self.save(seq)
        if n > length:
            operations.append(Keep(seq, length))
        return operations

    def save(self, seq: int) -> list[Operation]:
        """Return what puts all that a slot has computed on the shelf; nothing where that lies there, or elsewhere, too."""
        if seq in self._shifted:
            return []
        tokens = self._index.tokens(seq)[: self._n_computed[seq]]
        length, holders = self._index.longest(tokens)
        others = [other for other in holders if other != seq and self._n_computed[other] >= len(tokens)]
        stored, _ = self._shelf.longest(tokens)
        if (others and self._trim is Trim.ANY and length == len(tokens)) or stored == len(tokens):
            return []
        key, gone = self._shelf.put(tokens)
        return [*([] if key is None else [Save(seq, key)]), *gone]

    def stop_at(self, seq: int) -> int | None:
        """Return where a running slot is to stop for a moment, if anywhere ahead."""
        mark = self._marks.get(seq)
        return mark if mark is not None and mark > self._n_computed[seq] else None

    def checkpoints(self) -> list[Operation]:
        """Return what ends the operations of a plan: what has got to where it was to stop is put on the shelf."""
        self._sources.clear()
        operations, self._evicted = self._evicted, []
        for seq, mark in list(self._marks.items()):
            if self._n_computed[seq] >= mark:
                del self._marks[seq]
                if self._n_computed[seq] == mark:
                    operations += self.save(seq)
        return operations

    def _preference(self, seq: int, length: int) -> tuple[int, bool, int]:
        return self._usable(seq, length), seq in self._idle, -self._n_computed[seq]  # an idle one that loses little

    def _target(self) -> int:
        """Return the slot to take: one beside those in use; then one that has nothing; then the one used least recently.

        llama.cpp computes sequences together where their ids follow each other: of those beside some in use it is the one
        in the smallest gap, so that the gap is closed before others grow.
        """
        return min((*self._free, *self._idle), key=lambda seq: (self._gap(seq), seq not in self._free))

    def _gap(self, seq: int) -> int:
        """Return how many unused slots are in a row with one that has one in use beside it, up to the next in use.

        Where there is none beside it, or no next one, it is more than there are.
        """
        n_slots = len(self._n_computed)
        n_beside = self._n_beside(seq)
        if n_beside != 1:
            return 1 if n_beside else n_slots + 2
        step = 1 if seq - 1 in self._running else -1
        n = 1
        while 0 <= seq + n * step < n_slots:
            if seq + n * step in self._running:
                return n
            n += 1
        return n_slots + 1

    def _n_needed(self, n: int, source: int | None, shared: int, key: int | None) -> int:
        """Return how many free cells ``n`` positions take: those of a copy are shared, those of a load are not."""
        n_cells = n if self._cells is None else self._cells.n
        if key is not None:
            return min(max(n, self._shelf.length(key)), n_cells)
        return min(n, n_cells) - (shared if source is not None and shared >= WORTH else 0)

    def _fit(self, n: int, source: int | None) -> bool:
        """Make room for ``n`` cells, by what idle slots have, but for the one to begin with; return whether there is."""
        cells = self._cells
        for seq in [seq for seq in self._idle if seq != source]:
            if cells is None or cells.free >= n:
                break
            self._evict(seq)
        return cells is None or cells.free >= n

    def _evict(self, seq: int) -> None:
        self._evicted += self._make_room(seq, 0)
        self.drop(seq)

    def _take_cells(self, target: int, source: int | None, shared: int, n: int) -> None:
        """Count the cells of a slot that is taken: those that it shares, and all that it may need."""
        if self._cells is None:
            return
        if source != target:
            self._cells.cut(target, 0)
            if source is not None and shared:
                self._cells.share(source, target, shared)
            elif shared:
                self._cells.add(target, shared)
        else:
            self._cells.cut(target, shared)
        self._cells.add(target, min(n, self._cells.n) - shared)

    def unused(self, n: int, limit: int) -> list[tuple[int, int]]:
        """Return so many slots that no request has, of less than ``limit`` tokens, and how many; none where there are fewer.

        Those between slots in use come first, and then those beside them: llama.cpp computes what is in a row together.
        """
        first, last = min(self._running, default=0), max(self._running, default=0)
        some = [seq for seq in (*self._free, *self._idle) if self._n_computed[seq] < limit]
        some.sort(key=lambda seq: (max(first - seq, seq - last, 0), seq))
        return [(seq, self._n_computed[seq]) for seq in some[:n]] if len(some) >= n else []

    def _n_beside(self, seq: int) -> int:
        if self._cells is not None:
            return 0
        return (seq - 1 in self._running) + (seq + 1 in self._running) if self._running else 0

    def _is_as_good(self, source: int, target: int, shared: int) -> bool:
        """Return whether an idle slot is to be taken over, instead of copied to ``target``."""
        return self._n_computed[source] - shared <= SHORT_TAIL and self._gap(source) <= self._gap(target)

    def advance(self, seq: int, n: int) -> None:
        """Say that ``n`` more tokens of a slot are in memory."""
        self._n_computed[seq] += n

    def keep(self, seq: int, length: int) -> None:
        """Say that memory has lost all of a slot but its first ``length`` tokens; its request is to compute no more."""
        self._n_computed[seq] = min(length, self._n_computed[seq])
        self._index.truncate(seq, self._n_computed[seq])
        if self._cells is not None:
            self._cells.cut(seq, self._n_computed[seq])

    def shift(self, seq: int, begin: int, end: int) -> Shift:
        """Let a slot forget [begin, end) of what it has computed; others can use what is before that only."""
        self._n_computed[seq] -= end - begin
        self._index.truncate(seq, min(begin, len(self._index.tokens(seq))))
        self._shifted.add(seq)
        return Shift(seq, begin, end)

    def cut(self, seq: int, length: int) -> int:
        """Return how many tokens memory can keep of a slot that is to keep ``length`` of them: so many, or none."""
        least = self._n_computed[seq] if self._trim is Trim.NOTHING else self._least[seq]
        return length if length >= least else 0

    def set_computed(self, seq: int, n: int) -> None:
        """Say that memory has ``n`` tokens of a running slot, whose request goes on from there."""
        self._n_computed[seq] = n
        self._least[seq] = min(n, self._least[seq])

    def release(self, seq: int, generated: Sequence[int] = ()) -> None:
        """End the request of a slot, which has generated these; what is computed stays for others."""
        del self._running[seq]
        self._idle[seq] = None
        self._marks.pop(seq, None)
        self._index.extend(seq, () if seq in self._shifted else generated)
        self.keep(seq, self._n_computed[seq])
        if not self._n_computed[seq]:
            self.drop(seq)

    def drop(self, seq: int) -> None:
        """Say that a slot has nothing any more, whoever has it."""
        if self._cells is not None:
            self._cells.cut(seq, 0)
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
