"""Literals: values as models write them, in JSON, in Python, and with quotes of their own (pure)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from offgrid_llama.sampling.grammar.json_shapes import KIND_OF
from offgrid_llama.text.json_text import whole_text

__all__ = ["LiteralEnd", "literal_json", "read_literal", "typed_literal"]

_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_WORD = re.compile(r"[\w.$-]+")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
MAX_DEPTH = 64
"""Levels of lists and objects in a value; one that is nested deeper is a text."""


def read_literal(text: str, quote: str = "") -> Any:
    """Return the value of a text in JSON, in Python or with texts between ``quote``; any other text is its own value."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        pass
    reader = _Reader(text.strip(), quote)
    try:
        value = reader.value(0)
    except (ValueError, IndexError):
        return text
    return value if reader.at == len(reader.text) else text


def typed_literal(text: str, types: frozenset[str], quote: str = "", *, raw: bool = False) -> Any:
    """Return the value of a text, which may have one of some JSON types; without types it may have any.

    With ``raw`` texts stand without quotes; one that reads as another type stays a text where only texts are allowed.
    """
    if types == {"string"} and raw:
        return text
    value = read_literal(text, quote)
    if raw and isinstance(value, str) and text.strip()[:1] not in ('"', "'"):
        return text
    return text if "string" in types and not _has_type(value, types) else value


def literal_json(text: str, types: frozenset[str], quote: str = "", *, raw: bool = False) -> str:
    """Return the JSON of the value of a text, as ``typed_literal`` reads it. A text that is JSON itself stays as it is."""
    value = typed_literal(text, types, quote, raw=raw)
    if not isinstance(value, str):
        try:
            json.loads(text, parse_constant=_refuse)
        except ValueError:
            pass
        else:
            return text.strip()
    try:
        return whole_text(json.dumps(value, ensure_ascii=False, allow_nan=False))
    except ValueError:  # a number that is too large for a float
        return json.dumps(text, ensure_ascii=False)


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which Python reads as numbers."""
    raise ValueError(constant)


def _has_type(value: Any, types: Collection[str]) -> bool:
    """Return whether a value has one of some JSON types; an integer is a number, too."""
    kind = KIND_OF[type(value)]
    return kind in types or (kind == "integer" and "number" in types)


class LiteralEnd:
    """Finds where a value ends in a text that arrives in pieces.

    Args:
        ends: the characters that end a value, outside of quotes and brackets.
        quote: the format's own quote around texts, beside those of JSON and Python.
    """

    def __init__(self, ends: Collection[str], quote: str = "") -> None:
        self._ends = ends
        self._quote = quote
        self._quotes = _quotes(quote)
        self._depth = 0
        self._at = 0
        self._open = ""  # the quote of the text that the place is in

    def find(self, text: str) -> int | None:
        """Return the length of the value that a text begins with; None where more text is needed to tell.

        Each text must begin with the one before.
        """
        while self._at < len(text):
            if self._open:
                self._at, closed = _go_to_end_of_quoted(text, self._at, self._open)
                if not closed:
                    return None
                self._open = ""
                continue
            self._open = _quote_at(text, self._at, self._quotes)
            if self._open:
                self._at += len(self._open)
                continue
            if self._quote and self._quote.startswith(text[self._at :]):
                return None
            char = text[self._at]
            if not self._depth and char in self._ends:
                return self._at
            self._depth += (char in "[{(") - (char in "]})")
            self._at += 1
        return None


def _quotes(quote: str) -> list[str]:
    """Return the quotes that texts may stand in, the format's own first."""
    return [*([quote] if quote else []), '"', "'"]


def _quote_at(text: str, at: int, quotes: Sequence[str]) -> str:
    """Return the quote that stands at a place; an empty text where there is none."""
    for quote in quotes:
        if text.startswith(quote, at):
            return quote
    return ""


def _go_to_end_of_quoted(text: str, at: int, quote: str) -> tuple[int, bool]:
    """Return the place behind the quote that ends a text, and True; or the place to go on from with more text, and False.

    A backslash escapes a quote of one character.
    """
    if len(quote) > 1:
        end = text.find(quote, at)
        return (end + len(quote), True) if end >= 0 else (max(at, len(text) - len(quote) + 1), False)
    while at < len(text):
        char = text[at]
        if char == quote:
            return at + 1, True
        at += 2 if char == "\\" else 1
    return at, False


class _Reader:
    """Reads a value from left to right. ValueError and IndexError say that the text is no value."""

    def __init__(self, text: str, quote: str) -> None:
        self.text = text
        self.at = 0
        self._quotes = _quotes(quote)

    def value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        self._spaces()
        char = self.text[self.at]
        if char in "[(":
            return self._items("]" if char == "[" else ")", depth)
        if char == "{":
            return dict(self._items("}", depth))
        if (text := self._quoted()) is not None:
            return text
        number = _NUMBER.match(self.text, self.at)
        if number and not self.text[number.end() : number.end() + 1].isalnum():
            self.at = number.end()
            return json.loads(number[0])
        word = self._word()
        if word not in _WORDS:
            raise ValueError(word)
        return _WORDS[word]

    def _items(self, end: str, depth: int) -> list[Any]:
        found: list[Any] = []
        self.at += 1
        while True:
            self._spaces()
            if self.text[self.at] == end:
                self.at += 1
                return found
            if found:
                self._pass(",")
                self._spaces()
                if self.text[self.at] == end:
                    continue
            found.append(self._pair(depth) if end == "}" else self.value(depth + 1))

    def _pair(self, depth: int) -> tuple[str, Any]:
        key = self._quoted()
        if key is None:
            key = self._word()
        self._spaces()
        self._pass(":")
        return key, self.value(depth + 1)

    def _quoted(self) -> str | None:
        """Read a text in quotes; return None where there is no quote."""
        quote = _quote_at(self.text, self.at, self._quotes)
        if not quote:
            return None
        begin = self.at + len(quote)
        end, closed = _go_to_end_of_quoted(self.text, begin, quote)
        if not closed:
            raise ValueError("no end")
        self.at = end
        text = self.text[begin : end - len(quote)]
        return text if len(quote) > 1 else _ESCAPE.sub(_unescaped, text)

    def _word(self) -> str:
        match = _WORD.match(self.text, self.at)
        if match is None:
            raise ValueError("no word")
        self.at = match.end()
        return match[0]

    def _pass(self, char: str) -> None:
        if self.text[self.at] != char:
            raise ValueError(f"no {char}")
        self.at += 1

    def _spaces(self) -> None:
        while self.text[self.at].isspace():
            self.at += 1


def _unescaped(match: re.Match[str]) -> str:
    found = match[1]
    if len(found) > 1:
        return chr(int(found[1:], 16))
    return _ESCAPES.get(found, found)
