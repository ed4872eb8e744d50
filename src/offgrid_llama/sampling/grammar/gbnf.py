"""Read a GBNF grammar before llama.cpp does (pure).

llama.cpp's parser never returns from ``x{3,1}``, overflows the stack on deep nesting and long chains of rules, multiplies
repetitions into gigabytes, compares every alternative with every other, and writes errors to stderr. This reader walks the
same syntax (grammars/README.md of llama.cpp), builds only an outline of it, and raises GrammarError with line and column for
a grammar that does not parse or exceeds a limit.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from offgrid_llama.errors import GrammarError

from .gbnf_outline import MAX_WAYS, Alternatives, Item, Outline, WayCounter

__all__ = [
    "CHAR", "MAX_BYTES", "MAX_DEPTH", "MAX_ELEMENTS", "MAX_REPETITIONS", "MAX_RULES", "MAX_WAYS", "Alternatives", "Item",
    "Outline", "read_gbnf",
]  # fmt: skip

MAX_BYTES = 64 * 1024
MAX_DEPTH = 100
"""Nesting of groups."""
MAX_RULES = 2000
"""Rules with a name."""
MAX_REPETITIONS = 2000
"""Of one item, nested repetitions multiplied (MAX_REPETITION_THRESHOLD of llama-grammar.cpp)."""
MAX_ELEMENTS = 500_000
"""Characters, classes and references of all rules with their repetitions written out, 8 bytes each."""

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_SPACE_AND_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9-]+")
CHAR = re.compile(r'\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[trn\\"\[\]-])|[^\\]', re.DOTALL)
_PLAIN = re.compile(r'[^"\\]+')
_TOKEN = re.compile(r"!?<(?:\[([0-9]+)\]|([^>]*))>")
_S = _SPACE_AND_LINES.pattern
_REPETITION = re.compile(rf"\{{{_S}([0-9]+){_S}(?:(,){_S}([0-9]+)?{_S})?\}}")


@dataclass
class _Group:
    """A rule or a group that is being read."""

    begin: int
    symbols: int = 0  # of the grammar, before it
    sequences: Alternatives = field(default_factory=list)
    items: list[Item] = field(default_factory=list)  # of the sequence that is being read
    width: int = 0  # elements of the last item, which a repetition copies; 0: there is none
    weight: int = 1  # rules that its repetitions have made so far

    def add(self, item: Item, width: int = 1, weight: int = 1) -> None:
        self.width, self.weight = width, weight
        if width:  # an empty string is no item
            self.items.append(item)

    def end_sequence(self) -> None:
        self.sequences.append(self.items)
        self.items, self.width = [], 0


def read_gbnf(text: str, root: str = "root") -> Outline:
    """Return the outline of a grammar that llama.cpp can read within the limits, or raise GrammarError."""
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
        self.rules: dict[str, Alternatives] = {}
        self.sequences: Alternatives = []  # of all rules and groups

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
        WayCounter(self.rules, self.used, self.fail).check(self.sequences)
        return Outline(self.rules, frozenset(self.tokens), frozenset(self.token_ids))

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
        self.rules[name] = self.alternatives()
        if self.pos < len(self.text) and self.text[self.pos] not in "\r\n":
            raise self.fail(f"{self.text[self.pos]!r} has no meaning here")
        self.space(lines=True)

    def alternatives(self) -> Alternatives:
        """Read alternatives up to where none goes on. Nesting is kept in a list: Python's own calls slow down when deep."""
        groups = [_Group(self.pos)]
        while self.pos < len(self.text):
            group, char = groups[-1], self.text[self.pos]
            if char in "*+?{":
                self.repetition(char, group)
            elif char == "(":
                groups.append(self.open(len(groups)))
                continue
            elif char == "|":
                group.end_sequence()
                self.pos += 1
                self.space(lines=True)
                continue
            elif char == ")" and len(groups) > 1:
                self.close(groups.pop(), groups[-1])
            elif not self.item(char, group):
                break
            self.space(lines=len(groups) > 1)
        if len(groups) > 1:
            raise self.fail("a group without an end", groups[-1].begin)
        return self.ended(groups[0])

    def open(self, depth: int) -> _Group:
        if depth > MAX_DEPTH:
            raise self.fail(f"more than {MAX_DEPTH} nested groups")
        group = _Group(self.pos, self.symbols)
        self.pos += 1
        self.symbols += 1
        self.space(lines=True)
        return group

    def close(self, group: _Group, outer: _Group) -> None:
        self.pos += 1
        outer.add(Item(self.ended(group), group.begin), weight=self.symbols - group.symbols)
        self.grow(1, group.begin)

    def ended(self, group: _Group) -> Alternatives:
        group.end_sequence()
        self.sequences += group.sequences
        return group.sequences

    def item(self, char: str, group: _Group) -> bool:
        """Read one item that is no group into ``group``; return False where none begins."""
        item, width = Item(None, self.pos), 1
        if char == '"':
            width = self.literal()
        elif char == "[":
            width = self.char_class()
        elif char in "<!":
            self.token()
        elif char == ".":
            self.pos += 1
        elif name := _NAME.match(self.text, self.pos):
            self.pos = name.end()
            self.symbol(name[0])
            self.used.setdefault(name[0], item.pos)
            item.what = name[0]
        else:
            return False
        item.end = self.pos
        group.add(item, width)
        self.grow(width, item.pos)
        return True

    def repetition(self, char: str, group: _Group) -> None:
        begin = self.pos
        if not group.width:
            raise self.fail(f"{char!r} has nothing before it to repeat")
        low, high = self.times(char)
        times = high if high else max(low, 1)
        items = group.items
        if items[-1].repeated:
            items[-1] = Item([[items[-1]]], items[-1].pos)
        item = items[-1]
        item.repeated, item.optional, item.times = True, low == 0, 0 if high == 0 else times
        item.low, item.high = low, high
        group.weight *= times
        if group.weight > MAX_REPETITIONS:
            raise self.fail(f"{group.weight:,} repetitions; the limit is {MAX_REPETITIONS:,}", begin)
        optional = 1 if high is None else high - low
        self.symbols += optional
        self.grow(group.width * (max(low - 1, 0) + optional) + 2 * optional, begin)
        if high == 0:
            group.width = 0  # x{0} leaves no item

    def times(self, char: str) -> tuple[int, int | None]:
        """Read how often an item may come: at least, and at most."""
        begin = self.pos
        if char != "{":
            self.pos += 1
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        match = _REPETITION.match(self.text, self.pos)
        if not match:
            raise self.fail("a repetition is {n}, {n,} or {n,m}")
        low = self.count(match[1])
        high = low if not match[2] else None if match[3] is None else self.count(match[3])
        self.pos = match.end()
        if high is not None and low > high:
            raise self.fail(f"{{{low},{high}}}: the smaller number comes first", begin)
        return low, high

    def count(self, digits: str) -> int:
        if len(digits) > 6 or int(digits) > MAX_REPETITIONS:
            raise self.fail(f"{digits[:12]} repetitions; the limit is {MAX_REPETITIONS:,}")
        return int(digits)

    def literal(self) -> int:
        begin, width = self.pos, 0
        self.pos += 1
        while not self.text.startswith('"', self.pos):
            if plain := _PLAIN.match(self.text, self.pos):
                width += plain.end() - self.pos
                self.pos = plain.end()
            else:
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
        match = CHAR.match(self.text, self.pos)
        if not match:
            raise self.fail("an unknown escape")
        self.pos = match.end()

    def token(self) -> None:
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
