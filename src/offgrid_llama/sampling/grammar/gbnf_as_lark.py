"""A GBNF grammar in llguidance's Lark (pure).

llama.cpp keeps a stack for each way in which a text may have been read, so that a grammar such as
``root ::= "a" root "b" | "a" root "c"`` takes four times as long with each further token. llguidance reads any grammar in
bounded time. Each terminal here is one character, because llguidance takes the longest terminal, and GBNF tries them all.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

from .gbnf import CHAR
from .gbnf_outline import Alternatives, Item, Outline

__all__ = ["TOKEN_MARK", "lark_of"]

TOKEN_MARK = "<[?{}]>"  # noqa: S105 - no password
"""Stands for a token that the grammar names, by its number among ``Outline.tokens`` in order; its id is the vocabulary's."""

_ESCAPED = {"t": 9, "r": 13, "n": 10}
_SURROGATES = range(0xD800, 0xE000)
_NOTHING = "/[^\\x{0}-\\x{10FFFF}]/"


def lark_of(text: str, root: str, outline: Outline) -> str:
    """Return a grammar that ``read_gbnf`` has read in Lark."""
    writer = _Writer(text, outline)
    rules = [f"{writer.names[name]}: {writer.alternatives(ways)}" for name, ways in outline.alternatives.items()]
    return "\n".join([f"start: {writer.names[root]}", *rules])


class _Writer:
    def __init__(self, text: str, outline: Outline) -> None:
        self.names = {name: f"r{at}" for at, name in enumerate(outline.alternatives)}
        self._text = text
        self._tokens: Mapping[str, int] = {name: at for at, name in enumerate(sorted(outline.tokens))}

    def alternatives(self, ways: Alternatives) -> str:
        return " | ".join(" ".join(map(self._item, way)) or '""' for way in ways)

    def _item(self, item: Item) -> str:
        if not item.times:
            return '""'
        if item.what is None:
            written = self._terminal(self._text[item.pos : item.end])
        elif isinstance(item.what, str):
            written = self.names[item.what]
        else:
            written = f"({self.alternatives(item.what)})"
        if (item.low, item.high) == (1, 1):
            return written
        most = "" if item.high is None else item.high
        return f"({written}){{{item.low},{most}}}"

    def _terminal(self, text: str) -> str:
        if text == ".":
            return "/(?s:.)/"
        if text[0] == '"':
            return " ".join(map(_character, _codes(text[1:-1])))
        if text[0] == "[":
            negated = text.startswith("[^")
            return _class(_ranges(text[1 + negated : -1]), negated=negated)
        negated = text[0] == "!"
        name = text[negated:]
        mark = name if name.startswith("<[") else TOKEN_MARK.format(self._tokens[name])
        return mark.replace("<[", "<[^") if negated else mark


def _codes(text: str) -> list[int]:
    """Return the code points of a text with GBNF's escapes."""
    if "\\" not in text:
        return [*map(ord, text)]
    return [_code(match[0]) for match in CHAR.finditer(text)]


def _code(char: str) -> int:
    if char[0] != "\\":
        return ord(char)
    return int(char[2:], 16) if char[1] in "xuU" else _ESCAPED.get(char[1], ord(char[1]))


def _ranges(text: str) -> list[tuple[int, int]]:
    """Return the ranges of a character class, from between its brackets."""
    found, at = [], 0
    while match := CHAR.match(text, at):
        low = high = _code(match[0])
        at = match.end()
        if text.startswith("-", at) and (last := CHAR.match(text, at + 1)):
            high, at = _code(last[0]), last.end()
        found.append((low, high))
    return found


@functools.lru_cache(maxsize=4096)
def _character(code: int) -> str:
    """Return the terminal of one character of a string, which may have thousands of the same."""
    return _class([(code, code)])


def _class(ranges: Sequence[tuple[int, int]], *, negated: bool = False) -> str:
    """Return a terminal of one character."""
    kept = [part for low, high in ranges for part in _without_surrogates(low, min(high, 0x10FFFF))]
    if not kept:
        return "/(?s:.)/" if negated else _NOTHING
    inner = "".join(f"\\x{{{low:x}}}-\\x{{{high:x}}}" if high > low else f"\\x{{{low:x}}}" for low, high in kept)
    return f"/[{'^' if negated else ''}{inner}]/"


def _without_surrogates(low: int, high: int) -> list[tuple[int, int]]:
    """Return the parts of a range that are characters."""
    parts = [(low, min(high, _SURROGATES.start - 1)), (max(low, _SURROGATES.stop), high)]
    return [(first, last) for first, last in parts if first <= last]
