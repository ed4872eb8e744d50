"""Read a GBNF grammar before llama.cpp does (pure).

llama.cpp's parser never returns from ``x{3,1}``, overflows the stack on deep nesting and long chains of rules, multiplies
repetitions into gigabytes, compares every way to go on with every other, and writes what it dislikes to stderr. This reader
walks the same syntax (grammars/README.md of llama.cpp), builds nothing of it but an outline, and raises GrammarError with
line and column for what would not parse or is over a limit.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass

from .errors import GrammarError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_ELEMENTS", "MAX_REPETITIONS", "MAX_RULES", "MAX_WAYS", "Outline", "read_gbnf"]

MAX_BYTES = 64 * 1024
MAX_DEPTH = 100
"""Nesting of groups."""
MAX_RULES = 2000
"""Rules with a name."""
MAX_REPETITIONS = 2000
"""Of one item, nested repetitions multiplied (MAX_REPETITION_THRESHOLD of llama-grammar.cpp)."""
MAX_ELEMENTS = 500_000
"""Characters, classes and references of all rules with their repetitions written out, 8 bytes each."""
MAX_WAYS = 4000
"""Ways on from one place. llama.cpp keeps a stack for each and compares it with each, so deep stacks count for more."""

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_CHAR = re.compile(r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])|[^\\]', re.DOTALL)
_TOKEN = re.compile(r"!?<(?:\[([0-9]+)\]|([^>]*))>")
_S = _SPACE_AND_LINES.pattern
_REPETITION = re.compile(rf"\{{{_S}([0-9]+){_S}(?:(,){_S}([0-9]+)?{_S})?\}}")


@dataclass(frozen=True)
class Outline:
    """What a grammar mentions."""

    rules: frozenset[str]
    tokens: frozenset[str]
    """Tokens by name, such as ``<think>``; each must be one token of the vocabulary."""
    token_ids: frozenset[int]


@dataclass
class _Item:
    """One item of a sequence: a terminal (None), a rule by name, or a group; how often, and whether it may be left out."""

    what: str | _Alternatives | None
    pos: int
    repeated: bool = False
    times: int = 1
    optional: bool = False
    ways: _Ways | None = None  # once they are counted


_Alternatives = list[list[_Item]]


@dataclass(frozen=True)
class _Ways:
    """How many stacks llama.cpp makes of something that comes next, of how many elements in all."""

    count: int = 0
    size: int = 0
    empty: bool = False  # whether what follows may come next, too

    def followed_by(self, other: _Ways) -> _Ways:
        return _Ways(self.count + other.count, self.size + other.size, other.empty) if self.empty else self


def read_gbnf(text: str, root: str = "root") -> Outline:
    """Return the outline of a grammar that llama.cpp can read within its limits, or raise GrammarError."""
    return _Reader(text).read(root)


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.pos = 0
        self.elements = 0
        self.symbols = 0  # named rules and those that llama.cpp makes for groups and repetitions
        self.defined: set[str] = set()
        self.used: dict[str, int] = {}
        self.tokens: set[str] = set()
        self.token_ids: set[int] = set()
        self.rules: dict[str, _Alternatives] = {}
        self.sequences: _Alternatives = []  # of all rules and groups

    def fail(self, message: str, pos: int | None = None) -> GrammarError:
        pos = self.pos if pos is None else pos
        line = self.text.count("\n", 0, pos) + 1
        column = pos - (self.text.rfind("\n", 0, pos) + 1) + 1
        return GrammarError(f"grammar, line {line}, column {column}: {message}")

    def read(self, root: str) -> Outline:
        size = len(self.text.encode("utf-8"))
        if size > MAX_BYTES:
            raise GrammarError(f"the grammar has {size:,} bytes; the limit is {MAX_BYTES:,}")
        if "\0" in self.text:
            raise self.fail("a NUL character", self.text.index("\0"))
        self.space(lines=True)
        while self.pos < len(self.text):
            self.rule()
        for name, pos in self.used.items():
            if name not in self.defined:
                raise self.fail(f"rule {name!r} is not defined", pos)
        if root not in self.defined:
            raise GrammarError(f"the grammar has no rule {root!r} to begin with")
        self.count_ways()
        return Outline(frozenset(self.defined), frozenset(self.tokens), frozenset(self.token_ids))

    def rule(self) -> None:
        name = self.expect(_NAME, "the name of a rule")
        self.space()
        if not self.text.startswith("::=", self.pos):
            raise self.fail("'::=' expected")
        self.pos += 3
        self.space(lines=True)
        if name not in self.defined and len(self.defined) == MAX_RULES:
            raise self.fail(f"more than {MAX_RULES:,} rules")
        self.symbol(name)
        self.defined.add(name)
        self.rules[name] = self.alternates(0)
        if self.pos < len(self.text) and self.text[self.pos] not in "\r\n":
            raise self.fail(f"{self.text[self.pos]!r} has no meaning here")
        self.space(lines=True)

    def alternates(self, depth: int) -> _Alternatives:
        found = []
        while True:
            found.append(self.sequence(depth))
            if not self.text.startswith("|", self.pos):
                self.sequences += found
                return found
            self.pos += 1
            self.space(lines=True)

    def sequence(self, depth: int) -> list[_Item]:
        items: list[_Item] = []
        width = 0  # elements of the item before, which a repetition copies; 0: there is none
        weight = 1  # rules that its repetitions have made so far
        while self.pos < len(self.text):
            char, begin = self.text[self.pos], self.pos
            if char in "*+?{":
                if not width:
                    raise self.fail(f"{char!r} has nothing before it to repeat")
                weight = self.repetition(char, width, weight, items)
                width = width if items[-1].times else 0  # of x{0} nothing is left
                self.space(lines=depth > 0)
                continue
            weight = 1
            item = _Item(None, begin)
            if char == '"':
                width = self.literal()
            elif char == "[":
                width = self.char_class()
            elif char in "<!":
                width = self.token()
            elif char == "(":
                before = self.symbols
                item.what = self.group(depth)
                width = 1
                weight = max(1, self.symbols - before)
            elif char == ".":
                self.pos += 1
                width = 1
            elif name := _NAME.match(self.text, self.pos):
                self.pos = name.end()
                self.symbol(name[0])
                self.used.setdefault(name[0], begin)
                item.what = name[0]
                width = 1
            else:
                break
            if width:  # an empty string is nothing
                items.append(item)
            self.grow(width, begin)
            self.space(lines=depth > 0)
        return items

    def repetition(self, char: str, width: int, weight: int, items: list[_Item]) -> int:
        begin = self.pos
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1), "{": (0, None)}[char]
        if char == "{":
            match = _REPETITION.match(self.text, self.pos)
            if not match:
                raise self.fail("a repetition is {n}, {n,} or {n,m}")
            low = self.count(match[1])
            high = low if not match[2] else None if match[3] is None else self.count(match[3])
            self.pos = match.end()
        else:
            self.pos += 1
        if high is not None and low > high:
            raise self.fail(f"{{{low},{high}}}: the smaller number comes first", begin)
        times = high if high else max(low, 1)
        if items[-1].repeated:
            items[-1] = _Item([[items[-1]]], items[-1].pos)
        item = items[-1]
        item.repeated, item.optional, item.times = True, low == 0, 0 if high == 0 else times
        if weight * times > MAX_REPETITIONS:
            raise self.fail(f"{weight * times:,} repetitions; the limit is {MAX_REPETITIONS:,}", begin)
        optional = 1 if high is None else high - low
        self.symbols += optional
        self.grow(width * (max(low - 1, 0) + optional) + 2 * optional, begin)
        return weight * times

    def count(self, digits: str) -> int:
        if len(digits) > 6 or int(digits) > MAX_REPETITIONS:
            raise self.fail(f"{digits[:12]} repetitions; the limit is {MAX_REPETITIONS:,}")
        return int(digits)

    def literal(self) -> int:
        begin, width = self.pos, 0
        self.pos += 1
        while not self.text.startswith('"', self.pos):
            self.char("a string", begin)
            width += 1
        self.pos += 1
        return width

    def char_class(self) -> int:
        begin, width = self.pos, 0
        self.pos += 2 if self.text.startswith("[^", self.pos) else 1
        while not self.text.startswith("]", self.pos):
            self.char("a character class", begin)
            width += 1
            if self.text.startswith("-", self.pos) and not self.text.startswith("-]", self.pos):
                self.pos += 1
                self.char("a character class", begin)
                width += 1
        self.pos += 1
        return width

    def char(self, where: str, begin: int) -> None:
        if self.pos >= len(self.text):
            raise self.fail(f"{where} without an end", begin)
        match = _CHAR.match(self.text, self.pos)
        if not match:
            raise self.fail("an unknown escape")
        self.pos = match.end()

    def token(self) -> int:
        match = _TOKEN.match(self.text, self.pos)
        if not match:
            raise self.fail("a token is <name> or <[id]>")
        if match[1] is None:
            self.tokens.add(match[0].removeprefix("!"))
        elif len(match[1]) > 9:
            raise self.fail(f"no token has the id {match[1][:12]}")
        else:
            self.token_ids.add(int(match[1]))
        self.pos = match.end()
        return 1

    def group(self, depth: int) -> _Alternatives:
        begin = self.pos
        if depth == MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} nested groups")
        self.pos += 1
        self.symbols += 1
        self.space(lines=True)
        found = self.alternates(depth + 1)
        if not self.text.startswith(")", self.pos):
            raise self.fail("a group without an end", begin)
        self.pos += 1
        return found

    def count_ways(self) -> None:
        """Raise for left recursion, which llama.cpp does not always see, and where it would make too many stacks."""
        done: dict[str, _Ways] = {}
        for rule in self.rules:
            # By hand instead of by calls: a chain may be as long as there are rules.
            path = {rule: self.ways(self.rules[rule])} if rule not in done else {}
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
                        raise self.fail(f"left recursion: rule {wanted!r} may begin with itself", self.used[wanted])
                    path[wanted] = self.ways(self.rules[wanted])
        for sequence in self.sequences:
            ahead = _Ways()
            for item in reversed(sequence):  # a place in the middle is a beginning as soon as text has led to it
                walk = self.item_ways(item)
                answer = None
                try:
                    while True:
                        answer = done[walk.send(answer)]
                except StopIteration as end:
                    ahead = end.value.followed_by(ahead)
                self.refuse(ahead, item.pos)

    def ways(self, alternatives: _Alternatives) -> Generator[str, _Ways | None, _Ways]:
        """Return how these may begin; ask for rules by yielding their names."""
        total = _Ways()
        for sequence in alternatives:
            here = _Ways(empty=True)
            for item in sequence:
                here = here.followed_by((yield from self.item_ways(item)))
                self.refuse(here, item.pos)
                if not here.empty:
                    break
            else:
                here = _Ways(here.count + 1, here.size + 1, empty=True)
            total = _Ways(total.count + here.count, total.size + here.size, total.empty or here.empty)
            if sequence:
                self.refuse(total, sequence[0].pos)
        return total

    def item_ways(self, item: _Item) -> Generator[str, _Ways | None, _Ways]:
        if item.ways is not None:
            return item.ways
        if item.what is None:
            ways = _Ways(1, 1)
        else:
            ways = (yield item.what) or _Ways() if isinstance(item.what, str) else (yield from self.ways(item.what))
            ways = _Ways(ways.count, ways.size + ways.count, ways.empty)  # each stack has the place behind it as well
        times = item.times if ways.empty else 1
        item.ways = _Ways(times * ways.count, times * ways.size, ways.empty or item.optional)
        return item.ways

    def refuse(self, ways: _Ways, pos: int) -> None:
        if ways.count * ways.size > MAX_WAYS**2:
            raise self.fail(
                f"too many ways to go on, {ways.count:,}; the limit is {MAX_WAYS:,}, fewer where rules are deep", pos
            )

    def symbol(self, name: str) -> None:
        if name not in self.defined and name not in self.used:
            self.symbols += 1

    def grow(self, elements: int, begin: int) -> None:
        self.elements += elements
        if self.elements > MAX_ELEMENTS:
            raise self.fail(f"the grammar with its repetitions written out is over {MAX_ELEMENTS:,} elements", begin)

    def expect(self, pattern: re.Pattern[str], what: str) -> str:
        match = pattern.match(self.text, self.pos)
        if not match:
            raise self.fail(f"{what} expected")
        self.pos = match.end()
        return match[0]

    def space(self, lines: bool = False) -> None:
        match = (_SPACE_AND_LINES if lines else _SPACE).match(self.text, self.pos)
        if match:
            self.pos = match.end()
