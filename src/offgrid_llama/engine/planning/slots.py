"""Slots: which sequence a request gets, and which prefix of its prompt is already computed (pure).

A slot is one sequence of the context. It is free, or a request has it, or it is idle: its request has ended, and what that
has computed stays as a prefix cache until another request needs the slot. A new request begins with the longest prefix of
its prompt that any slot has, idle or in use: it takes over the idle slot, or a copy of it. Evicted texts go to the shelf and
come back from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from .limits import Trim
from .operations import Copy, Keep, Load, Operation
from .request import LateAdapters
from .slot_texts import SHORT_TAIL_TOKENS, SlotTexts

__all__ = ["Slots", "Taken", "Wait"]

MIN_PREFIX_TOKENS = 16
"""A prefix of fewer tokens is neither waited for nor copied: computing it again is as fast."""


@dataclass(frozen=True)
class Taken:
    """A slot for a request.

    Attributes:
        seq: its sequence id.
        n_cached: prompt tokens that it has, once the operations are done in their order.
        operations: the changes of memory that come first.
    """

    seq: int
    n_cached: int
    operations: tuple[Operation, ...]


class Wait(Enum):
    """Why there is no slot yet."""

    SLOT = "every slot is in use"
    PREFIX = "a request in use is about to compute a prefix of this one"


@dataclass(frozen=True, slots=True)
class _Prefix:
    """Where a prompt's prefix comes from.

    Attributes:
        source: the slot that has it; None where none has.
        length: its tokens.
        key: the text on the shelf that has it, in place of a slot.
        known: tokens of the longest prefix that any slot's text has, computed or not.
    """

    source: int | None
    length: int
    key: int | None
    known: int


class Slots(SlotTexts):
    """The slots of one context, and the choice among them. Arguments and attributes are those of SlotTexts."""

    def take(
        self,
        prompt: Sequence[int],
        room: int = 0,
        salt: str = "",
        wanted: int | None = None,
        *,
        late: LateAdapters | None = None,
        most_cached: int | None = None,
    ) -> Taken | Wait:
        """Give a slot to a request.

        The prompt's last token is always left to compute, as its logits are needed.

        Args:
            prompt: its tokens.
            room: how many tokens it may generate.
            salt: only prefixes of prompts with the same salt are found.
            wanted: the only slot that it takes; None takes any.
            late: adapters that begin within the prompt.
            most_cached: begin with up to this number of tokens that were computed before; None is any number.
        """
        if wanted in self._running or not (self._free or self._idle):
            return Wait.SLOT
        most = len(prompt) - 1 if most_cached is None else min(most_cached, len(prompt) - 1)
        return self._take(self._salted(prompt, salt, late), room, wanted, most)

    def n_ready(self, prompt: Sequence[int], salt: str, late: LateAdapters | None) -> int:
        """Return how many tokens of a prompt were computed before, in a slot or on the shelf."""
        text, most = self._salted(prompt, salt, late), len(prompt) - 1
        known, holders = self._index.longest(text)
        ready = max((self._usable(seq, text, min(known, most)) for seq in holders), default=0)
        return max(ready, self._stored(text, most)[0])

    def _salted(self, prompt: Sequence[int], salt: str, late: LateAdapters | None) -> Sequence[int]:
        return self._salts.salted(prompt, salt, None if late is None else (late.pos, late.salt))

    def _take(self, prompt: Sequence[int], room: int, wanted: int | None, most: int) -> Taken | Wait:
        prefix = self._prefix(prompt, wanted, most) if most else _Prefix(None, 0, None, 0)
        if prefix is None:
            return Wait.PREFIX
        if self.cells is not None and not self._make_cells(
            self._n_cells_needed(len(prompt) + room, prefix), prefix.source
        ):
            if prefix.source not in self._idle:
                return Wait.SLOT
            self._evict(prefix.source)
            return self._take(prompt, room, wanted, most)
        target, shared, operations = self._prepare(prefix, prompt, wanted)
        operations[:0], self._evicted = self._evicted, []
        least = self._least[prefix.source] if prefix.source is not None and shared else 0
        if prefix.key is not None and self._trim is Trim.COMPUTED:
            least = shared
        self._take_cells(target, prefix.source, shared, len(prompt) + room)
        self._forget(target)
        del self._free[target]
        self._running[target] = None
        self._index.extend(target, prompt)
        self._n_computed[target] = shared
        self._reusable[target] = self._limits.reusable(len(prompt))
        self._least[target] = least
        if self._trim is Trim.NOTHING and prefix.known >= MIN_PREFIX_TOKENS and prefix.known > shared:
            self._marks[target] = prefix.known  # the next request with this prefix finds it
        return Taken(target, shared, tuple(operations))

    def _prefix(self, prompt: Sequence[int], wanted: int | None, most: int) -> _Prefix | None:
        """Return where up to ``most`` tokens of a prompt come from; None where they are not computed or copied yet."""
        known, holders = self._index.longest(prompt)
        known = self._whole(prompt, self._limits.whole_pieces(min(known, most)))
        source = max(holders, key=lambda seq: self._preference(seq, prompt, known), default=None)
        shared = 0 if source is None else self._usable(source, prompt, known)
        stored, key = self._stored(prompt, most)
        if key is None or stored < max(shared + MIN_PREFIX_TOKENS, known):
            if shared < known >= MIN_PREFIX_TOKENS and self._is_coming(holders, known):
                return None
            return _Prefix(source, shared, None, known)
        if self._target(wanted) in self._sources:  # the next decode copies it as it is then
            return None
        return _Prefix(None, stored, key, known)

    def _prepare(self, prefix: _Prefix, prompt: Sequence[int], wanted: int | None) -> tuple[int, int, list[Operation]]:
        """Return the slot to take, how many tokens of the prefix it has then, and the operations for that."""
        source, shared = prefix.source, prefix.length
        target = self._target(wanted)
        operations: list[Operation] = []
        if prefix.key is not None:
            extra = self.shelf.use(prefix.key) - shared
            operations += [*self._make_room(target, 0), Load(prefix.key, target)]
            if extra:
                operations.append(self.keep_operation(target, prompt, shared))
        elif source in self._idle and (
            source == target or (wanted is None and self._is_as_good(source, target, shared))
        ):
            target = source
            operations += self._make_room(target, shared)
        else:
            operations += self._make_room(target, 0)
            shared = shared if shared >= MIN_PREFIX_TOKENS else 0
            if source is not None and shared:
                operations.append(Copy(source, target))
                self._sources.add(source)
                if self._n_computed[source] > shared:
                    operations.append(self.keep_operation(target, prompt, shared))
        return target, shared, operations

    def _usable(self, seq: int, text: Sequence[int], length: int) -> int:
        """Return how many of the first ``length`` tokens of a slot, which a text shares, that can begin with."""
        n = self._limits.whole_pieces(min(self._n_computed[seq], length, self._reusable[seq]))
        n = self._whole(text, n)
        if self.cut(seq, n) != n:
            return 0
        # A short prefix is not worth a copy; an idle slot that has little more than that is taken over.
        is_short = seq in self._idle and self._n_computed[seq] - n <= SHORT_TAIL_TOKENS
        return n if n >= MIN_PREFIX_TOKENS or is_short else 0

    def _preference(self, seq: int, text: Sequence[int], length: int) -> tuple[int, bool, int, int]:
        """Return how well a request begins from a slot: from an idle one that loses little, in the best place."""
        n, usable = self._n_computed[seq], self._usable(seq, text, length)
        is_taken = seq in self._idle and n - usable <= SHORT_TAIL_TOKENS
        return usable, seq in self._idle, -self._gap(seq) if is_taken else -self._n_seq_max - n, -n

    def _is_coming(self, holders: Iterable[int], length: int) -> bool:
        """Return whether a slot in use is about to compute a common prefix; if it has to, it stops at the prefix's end."""
        for seq in holders:
            if seq in self._running and self._n_computed[seq] < length:
                if self._trim is Trim.NOTHING:
                    self._marks[seq] = min(length, self._marks.get(seq, length))
                return True
        return False

    def _stored(self, prompt: Sequence[int], most: int) -> tuple[int, int | None]:
        """Return how many tokens of a prompt lie on the shelf, up to ``most``, and the key of their text."""
        stored, key = self.shelf.longest(prompt)
        if key is None or self._trim is Trim.ANY:
            return self._whole(prompt, min(stored, most)), key
        whole = self.shelf.longest_whole(prompt[:most])
        return whole if whole is not None and self._whole(prompt, whole[0]) == whole[0] else (0, None)

    def adopt(self, seq: int, text: Sequence[int], salt: str) -> list[Operation]:
        """Let a slot that is not in use have a text that comes from elsewhere; return what makes room for it.

        It is found by requests with this salt.
        """
        self.drop(seq)
        self._make_cells(len(text), None)
        self._forget(seq)
        del self._free[seq]
        self._idle[seq] = None
        self._index.extend(seq, self._salts.salted(text, salt))
        self._n_computed[seq] = len(text)
        self._reusable[seq] = self._limits.reusable(len(text))
        self._least[seq] = 0 if self._trim is Trim.ANY else len(text)
        if self.cells is not None:
            self.cells.add(seq, len(text))
        operations, self._evicted = self._evicted, []
        return [Keep(seq, 0), *operations]

    # Which slot ------------------------------------------------------------------------------------------------------

    def _target(self, wanted: int | None) -> int:
        """Return the slot to take: in the smallest gap between those in use; a free one; the least recently used one."""
        if wanted is not None:
            return wanted
        return min((*self._free, *self._idle), key=lambda seq: (self._gap(seq), seq not in self._free))

    def _is_as_good(self, source: int, target: int, shared: int) -> bool:
        """Return whether an idle slot is taken over, rather than copied to ``target``."""
        return self._n_computed[source] - shared <= SHORT_TAIL_TOKENS and self._gap(source) <= self._gap(target)

    # Room ------------------------------------------------------------------------------------------------------------

    def _n_cells_needed(self, n: int, prefix: _Prefix) -> int:
        """Return how many free cells ``n`` positions take: a copy shares those of its source, a load shares none."""
        n_cells = n if self.cells is None else self.cells.n
        if prefix.key is not None:
            return min(max(n, self.shelf.length(prefix.key)), n_cells)
        is_copied = prefix.source is not None and prefix.length >= MIN_PREFIX_TOKENS
        return min(n, n_cells) - (prefix.length if is_copied else 0)

    def _make_cells(self, n: int, source: int | None) -> bool:
        """Evict idle slots, other than ``source``, until ``n`` cells are free; return whether they are."""
        cells = self.cells
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
        if self.cells is None:
            return
        if source != target:
            self.cells.cut(target, 0)
            if source is not None and shared:
                self.cells.share(source, target, shared)
            elif shared:
                self.cells.add(target, shared)
        else:
            self.cells.cut(target, shared)
        self.cells.add(target, min(n, self.cells.n) - shared)
