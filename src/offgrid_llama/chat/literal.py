"""Literals: values as models write them, in JSON, in Python, and with quotes of their own (pure)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

__all__ = ["KIND_OF", "LiteralEnd", "json_types", "listed_values", "read_literal", "typed_literal"]

_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0"}
_MAX_DEPTH = 64

KIND_OF: dict[type, str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
"""The type of JSON Schema that a value is of."""


def read_literal(text: str, quote: str = "") -> Any:
    """Return the value of a text: JSON, or what Python or ``quote`` make of it; anything else is a text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    reader = _Reader(text.strip(), quote)
    try:
        value = reader.value(0)
    except (ValueError, IndexError):
        return text
    return value if reader.at == len(reader.text) else text


def typed_literal(text: str, types: frozenset[str], quote: str = "", *, raw: bool = False) -> Any:
    """Return a value of the JSON types that it may have; none is any.

    With ``raw`` texts are not quoted: a value is one only where it can be nothing else.
    """
    if types == {"string"} and raw:
        return text
    value = read_literal(text, quote)
    if raw and isinstance(value, str) and text.strip()[:1] not in ('"', "'"):
        return text
    kind = KIND_OF[type(value)]
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    return value if fits or "string" not in types else text


def listed_values(schema: Any) -> list[Any] | None:
    """Return the values that a schema lists (``enum``, ``const``); None where it lists none."""
    if not isinstance(schema, Mapping):
        return None
    return list(schema["enum"]) if "enum" in schema else [schema["const"]] if "const" in schema else None


def json_types(schema: Any) -> frozenset[str]:
    """Return the JSON types that a schema allows; none is any."""
    if not isinstance(schema, Mapping):
        return frozenset()
    kinds = schema.get("type")
    if kinds is not None:
        return frozenset([kinds] if isinstance(kinds, str) else kinds)
    values = listed_values(schema)
    if values is not None:
        return frozenset(KIND_OF.get(type(value), "object") for value in values)
    for key in ("anyOf", "oneOf"):
        ways = [json_types(each) for each in schema.get(key, ())]
        if ways and all(ways):
            return frozenset().union(*ways)
    return frozenset()


class LiteralEnd:
    """Finds where a value ends, in a text that grows.

    Args:
        ends: characters that end a value, outside of quotes and brackets.
        quote: what is around texts, beside the quotes of JSON and Python.
    """

    def __init__(self, ends: Collection[str], quote: str = "") -> None:
        self._ends = ends
        self._quote = quote
        self._depth = 0
        self._at = 0
        self._mark = ""  # of the text that it is in

    def find(self, text: str) -> int | None:
        """Return how long the value is that a text begins with, which begins as the last one did; None is not known yet."""
        quotes = ([self._quote] if self._quote else []) + ['"', "'"]
        while self._at < len(text):
            if self._mark:
                end = _closing(text, self._at, self._mark)
                if end is None:
                    return None
                self._at, self._mark = end, ""
                continue
            mark = next((each for each in quotes if text.startswith(each, self._at)), None)
            if mark is None and self._quote and self._quote.startswith(text[self._at :]):
                return None
            if mark is not None:
                self._at, self._mark = self._at + len(mark), mark
                continue
            char = text[self._at]
            if not self._depth and char in self._ends:
                return self._at
            self._depth += (char in "[{(") - (char in "]})")
            self._at += 1
        return None


def _closing(text: str, at: int, mark: str) -> int | None:
    """Return where a quoted text is over, behind its mark."""
    while at < len(text):
        if text.startswith(mark, at):
            return at + len(mark)
        at += 2 if text[at] == "\\" and len(mark) == 1 else 1
    return None


class _Reader:
    """Reads a value from left to right; ValueError and IndexError are that there is none."""

    def __init__(self, text: str, quote: str) -> None:
        self.text = text
        self.at = 0
        self._quotes = ([quote] if quote else []) + ['"', "'"]

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
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
        mark = next((each for each in self._quotes if self.text.startswith(each, self.at)), None)
        if mark is None:
            return None
        begin = self.at + len(mark)
        end = _closing(self.text, begin, mark)
        if end is None:
            raise ValueError("no end")
        self.at = end
        text = self.text[begin : end - len(mark)]
        return (
            re.sub(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", _unescaped, text, flags=re.DOTALL)
            if len(mark) == 1
            else text
        )

    def _word(self) -> str:
        match = re.compile(r"[\w.$-]+").match(self.text, self.at)
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
