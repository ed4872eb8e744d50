"""BareCalls: calls that a model writes without the marks of its format: as JSON that is its whole answer (pure).

Qwen2.5-Coder, for one, writes ``{"name": "weather", "arguments": {...}}`` alone, or in a block of Markdown. An answer is
held back only while it may still be such a call of a known tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from offgrid_llama.text.json_text import whole_escapes

from .json_arguments import ObjectEnd
from .tool import Tool

__all__ = ["BareCalls"]

MAX_CHARACTERS = 64 * 1024
"""A longer text is content."""
_KEYS = ("name", "arguments", "parameters", "function", "type", "id")
_FENCE = re.compile(r"\s*```[a-zA-Z_]*\s+(.*?)\s*```\s*", re.DOTALL)
_FENCE_BEGIN = re.compile(r"(`{1,2}|```[a-zA-Z_]*)\Z")
_BEFORE = re.compile(r"\s*(?:```[a-zA-Z_]*\s+)?\[?\s*(?=\{|\Z)")
_BETWEEN = re.compile(r"[\s,\]]*(`{0,3})\s*\Z")


class BareCalls:
    """Holds an answer back while it may be calls alone.

    Args:
        tools: the tools that may be called, by their names.
        parallel: whether an answer may have several calls.
    """

    def __init__(self, tools: Mapping[str, Tool], *, parallel: bool) -> None:
        self._tools = tools
        self._parallel = parallel
        self._held = ""
        self._is_content = False
        self._end: ObjectEnd | None = None  # of the object that the text is in
        self._at = 0

    def push(self, text: str) -> str:
        """Take more text; return the part of the answer that is certainly not such a call."""
        if self._is_content:
            return text
        self._held += text
        if self._may_be_calls():
            return ""
        self._is_content = True
        held, self._held = self._held, ""
        return held

    def finish(self) -> tuple[str, list[tuple[str, str]]]:
        """Return the text that was held back, or the calls that it is, as names and JSON of arguments."""
        held, self._held = self._held, ""
        if not self._is_content and self._end is not None:
            calls = _calls(held, self._tools)
            if calls and (self._parallel or len(calls) == 1):
                return "", calls
        return held, []

    def _may_be_calls(self) -> bool:
        if len(self._held) > MAX_CHARACTERS:
            return False
        if self._end is None:
            begin = _begin(self._held, self._tools)
            if begin is None or begin < 0:
                return begin is None
            self._end, self._at = ObjectEnd(), begin
        return self._goes_on()

    def _goes_on(self) -> bool:
        """Return whether there is nothing but objects, and the signs between and around them, up to now."""
        text = self._held
        while self._end is not None:
            end = self._end.find(text, self._at)
            if end is None:
                self._at = len(text)
                return True
            next_ = text.find("{", end)
            if next_ < 0:
                self._at, self._end = end, _After()
                return bool(_BETWEEN.match(text, end))
            if text[end:next_].strip(" \t\r\n,"):
                return False
            self._at, self._end = next_, ObjectEnd()
        return True


class _After(ObjectEnd):
    """Stands behind an object, where another one may begin."""

    def find(self, text: str, at: int) -> int | None:
        """Return the same place: the object has ended there."""
        return at


def _begin(text: str, tools: Mapping[str, Tool]) -> int | None:
    """Return where the first object of a text begins that may be a call; -1 for another text, None to wait for more."""
    before = _BEFORE.match(text)
    if before is None:
        return None if _FENCE_BEGIN.match(text.lstrip()) else -1
    at = before.end()
    if at == len(text):
        return None
    key = _one_of(_KEYS, re.compile(r'\{\s*"(\w*)("?)|\{\s*\Z'), text, at)
    if key is None or key < 0 or not text[at:key].endswith('"name"'):
        return key if key is None or key < 0 else at
    name = _one_of(tools, re.compile(r'\s*:\s*"([^"\\]*)("?)|\s*:?\s*\Z'), text, key)
    return name if name is None or name < 0 else at


def _one_of(words: Collection[str], pattern: re.Pattern[str], text: str, at: int) -> int | None:
    """Return the place behind a word in quotes that must be one of some; -1 for another one, None where it may become one.

    ``pattern`` has the word and the quote behind it as groups, or neither at the end of the text.
    """
    match = pattern.match(text, at)
    if match is None:
        return -1
    if match[1] is None or (not match[2] and match.end() == len(text) and any(w.startswith(match[1]) for w in words)):
        return None
    return match.end() if match[2] and match[1] in words else -1


def _calls(text: str, tools: Mapping[str, Tool]) -> list[tuple[str, str]]:
    """Return the calls that a text consists of; none where it is another text."""
    fenced = _FENCE.fullmatch(text)
    found = []
    try:
        for value in _values(whole_escapes(fenced[1] if fenced else text)):
            for each in value if isinstance(value, list) else [value]:
                call = _call(each, tools)
                if call is None:
                    return []
                found.append(call)
    except (ValueError, RecursionError):
        return []
    return found


def _values(text: str) -> Iterator[Any]:
    """Yield the values of JSON that a text consists of, with spaces or commas between them. Raises ValueError for others."""
    decoder = json.JSONDecoder()
    at, end = 0, len(text.rstrip())
    while at < end:
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        value, at = decoder.raw_decode(text, at)
        yield value


def _call(value: Any, tools: Mapping[str, Tool]) -> tuple[str, str] | None:
    """Return the name and the arguments of a call; None for a value that is none, or does not fit the tool's schema."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict):
        return None
    name = value.get("name", value.get("function"))
    arguments = value.get("arguments", value.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(whole_escapes(arguments))
    tool = tools.get(name) if isinstance(name, str) else None
    if tool is None or not isinstance(arguments, dict) or not tool.fits(arguments):
        return None
    return tool.name, json.dumps(arguments, ensure_ascii=False, allow_nan=False)
