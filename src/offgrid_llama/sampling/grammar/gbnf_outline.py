"""The outline of a GBNF grammar, and how many ways it has to go on at each place (pure)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass

from offgrid_llama.errors import GrammarError

__all__ = ["MAX_WAYS", "Alternatives", "Item", "Outline", "WayCounter", "Ways"]

MAX_WAYS = 4000
"""Alternatives at one place. llama.cpp keeps a stack for each and compares all pairs, so deep stacks count for more."""


@dataclass(frozen=True)
class Outline:
    """The rules and tokens that a grammar names.

    Attributes:
        alternatives: the rules.
        tokens: tokens by name, such as ``<think>``; each must be one token of the vocabulary.
        token_ids: tokens by id.
    """

    alternatives: Mapping[str, Alternatives]
    tokens: frozenset[str]
    token_ids: frozenset[int]


@dataclass
class Item:
    """One item of a sequence.

    Attributes:
        what: a rule by name, or a group; None is a terminal, whose text begins at ``pos`` and ends at ``end``.
        repeated: whether it has a repetition: at least ``low`` and at most ``high`` times, None is any number.
        times: how often it is written out by llama.cpp; 0 for an item that is not there.
        optional: whether it may be left out.
        ways: None until they are counted.
    """

    what: str | Alternatives | None
    pos: int
    end: int = 0
    low: int = 1
    high: int | None = 1
    repeated: bool = False
    times: int = 1
    optional: bool = False
    ways: Ways | None = None


Alternatives = list[list[Item]]


@dataclass(frozen=True)
class Ways:
    """How many stacks llama.cpp makes of the next item, and how many elements they have together."""

    count: int = 0
    size: int = 0
    empty: bool = False  # whether the item after it may be the next one, too

    def followed_by(self, other: Ways) -> Ways:
        """Return the ways to begin this and then the other."""
        return Ways(self.count + other.count, self.size + other.size, other.empty) if self.empty else self


class WayCounter:
    """Counts the stacks that llama.cpp makes of a grammar.

    Args:
        rules: of the grammar.
        used: the places where rules are used, by their names.
        fail: makes the error of a problem at a place.
    """

    def __init__(
        self, rules: Mapping[str, Alternatives], used: Mapping[str, int], fail: Callable[[str, int], GrammarError]
    ) -> None:
        self._rules = rules
        self._used = used
        self._fail = fail

    def check(self, sequences: Iterable[list[Item]]) -> None:
        """Raise for left recursion, which llama.cpp does not always detect, and where it would make too many stacks."""
        done = self._rule_ways()
        for sequence in sequences:
            ahead = Ways()
            for item in reversed(sequence):  # a place in the middle begins a text as soon as a text has led to it
                walk = self._item_ways(item)
                answer = None
                try:
                    while True:
                        answer = done[walk.send(answer)]
                except StopIteration as end:
                    ahead = end.value.followed_by(ahead)
                self._refuse(ahead, item.pos)

    def _rule_ways(self) -> dict[str, Ways]:
        """Return how each rule may begin."""
        done: dict[str, Ways] = {}
        for rule in self._rules:
            # A stack by hand instead of calls: a chain may be as long as the number of rules.
            path = {rule: self._ways(self._rules[rule])} if rule not in done else {}
            answer = None
            while path:
                name = next(reversed(path))
                try:
                    wanted = path[name].send(answer)
                except StopIteration as end:
                    answer = done[name] = end.value
                    del path[name]
                    continue
                answer = done.get(wanted)
                if answer is None:
                    if wanted in path:
                        raise self._fail(f"left recursion: rule {wanted!r} may begin with itself", self._used[wanted])
                    path[wanted] = self._ways(self._rules[wanted])
        return done

    def _ways(self, alternatives: Alternatives) -> Generator[str, Ways | None, Ways]:
        """Return how these may begin; ask for rules by yielding their names."""
        total = Ways()
        for sequence in alternatives:
            here = Ways(empty=True)
            for item in sequence:
                here = here.followed_by((yield from self._item_ways(item)))
                self._refuse(here, item.pos)
                if not here.empty:
                    break
            else:
                here = Ways(here.count + 1, here.size + 1, empty=True)
            total = Ways(total.count + here.count, total.size + here.size, total.empty or here.empty)
            if sequence:
                self._refuse(total, sequence[0].pos)
        return total

    def _item_ways(self, item: Item) -> Generator[str, Ways | None, Ways]:
        if item.ways is not None:
            return item.ways
        if item.what is None:
            ways = Ways(1, 1)
        else:
            ways = (yield item.what) or Ways() if isinstance(item.what, str) else (yield from self._ways(item.what))
            ways = Ways(ways.count, ways.size + ways.count, ways.empty)  # each stack has the place behind it as well
        times = item.times if ways.empty else 1
        item.ways = Ways(times * ways.count, times * ways.size, ways.empty or item.optional)
        return item.ways

    def _refuse(self, ways: Ways, pos: int) -> None:
        if ways.count * ways.size > MAX_WAYS**2:
            raise self._fail(
                f"too many ways to go on, {ways.count:,}; the limit is {MAX_WAYS:,}, fewer where rules are deep", pos
            )
