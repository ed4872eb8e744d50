"""JsonArguments: reads the arguments of a call that are one JSON object, as most models write them (pure)."""

from __future__ import annotations

import re
from collections.abc import Callable

from .scanner import Reading, Scanner

__all__ = ["JsonArguments"]

_OUTSIDE_STRINGS = re.compile(r'["{}\[\]]')
_INSIDE_STRINGS = re.compile(r'["\\]')


class JsonArguments:
    """Reads a JSON object and passes it on unchanged, piece by piece."""

    def __init__(self, scan: Scanner) -> None:
        self._scan = scan

    def read(self, _name: str, _behind: str, give: Callable[[str], None]) -> Reading:
        """Read an object and hand its text to ``give``; return whether there was a whole one."""
        scan = self._scan
        yield from scan.spaces()
        if scan.text[scan.at : scan.at + 1] != "{":
            return False
        find_end = ObjectEnd().find
        while True:
            begin = scan.at
            end = find_end(scan.text, begin)
            scan.at = len(scan.text) if end is None else end
            give(scan.text[begin : scan.at])
            if end is not None:
                return True
            if scan.over:
                return False
            yield


class ObjectEnd:
    """Finds where a JSON object or array ends in a text that arrives in pieces."""

    __slots__ = ("_depth", "_escaped", "_quoted")

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False

    def find(self, text: str, at: int) -> int | None:
        """Read on at a place in a text; return where the object ends, or None where it goes on in the next piece."""
        if self._escaped and at < len(text):
            self._escaped = False
            at += 1
        while True:
            match = (_INSIDE_STRINGS if self._quoted else _OUTSIDE_STRINGS).search(text, at)
            if match is None:
                return None
            at = match.end()
            sign = match[0]
            if sign == '"':
                self._quoted = not self._quoted
            elif sign == "\\":
                self._escaped = at == len(text)
                at += 1
            elif sign in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    return at
