r"""JSON as strangers write it: with halves of characters, and with numbers that no float takes.

JavaScript counts a text in units of UTF-16. A program that cuts one there may leave half of a character, which it then sends
as ``\ud83d``. UTF-8 has no such thing, so parsers and tokenizers refuse it, and with it a whole conversation. It becomes
U+FFFD, as it does in every browser that sends a text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["MAX_DEPTH", "is_deeper", "plain_value", "read_json_text", "whole_escapes", "whole_text"]

MAX_DEPTH = 64
"""Levels of lists and objects in the arguments of a call."""
MAX_DIGITS = 4300
"""Python converts no longer integers from and to text, as that takes quadratic time."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
"""An escape. The group is half of a character. Each begins with a letter that is rare, which re finds fast."""


def whole_text(text: str) -> str:
    """Return a text that UTF-8 can have: two halves of a character are joined, and one alone becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def whole_escapes(text: str) -> str:
    """Return JSON in which no escape stands for half of a character."""
    if _HALF.search(text) is None:
        return text
    return _ESCAPE.sub(lambda found: "\\ufffd" if found[1] else found[0], text)


def read_json_text(text: str, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of JSON. NaN, and a number that is too large for a float or too long for an int, become texts.

    Raises ValueError for a text that is no JSON, or nested deeper than ``max_depth``.
    """
    try:
        value = json.loads(whole_escapes(whole_text(text)), parse_float=_float, parse_int=_int, parse_constant=str)
        deeper = is_deeper(value, max_depth)
    except RecursionError:
        deeper, value = True, None
    if deeper:
        raise ValueError(f"nested deeper than {max_depth} levels")
    return value


def plain_value(value: Any, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of Python objects as JSON has it, with texts in place of infinite floats and NaN.

    Raises TypeError for what JSON has not, and ValueError for an int that is too long, and for what is nested deeper than
    ``max_depth``.
    """
    try:
        return _plain(value, max_depth)
    except (RecursionError, _TooDeepError):
        raise ValueError(f"nested deeper than {max_depth} levels") from None


class _TooDeepError(Exception):
    pass


def _plain(value: Any, levels: int) -> Any:
    if isinstance(value, (Mapping, list, tuple)):
        if levels < 0:
            raise _TooDeepError
        if not isinstance(value, Mapping):
            return [_plain(each, levels - 1) for each in value]
        if odd := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"names must be str, not {type(odd[0]).__name__}")
        return {whole_text(name): _plain(each, levels - 1) for name, each in value.items()}
    return _plain_item(value)


def _plain_item(value: Any) -> Any:
    """Return the value of what is neither a list nor an object."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(float(value))
    if isinstance(value, int) and value.bit_length() > 3 * MAX_DIGITS:
        raise ValueError("a number has too many digits")
    if value is not None and not isinstance(value, (bool, int, float)):
        raise TypeError(f"{type(value).__name__} is no type of JSON")
    return value


def is_deeper(value: Any, max_depth: int) -> bool:
    """Return whether a JSON value has more than ``max_depth`` levels below its first."""
    level = [value]
    for _ in range(max_depth + 1):
        level = [
            item
            for container in level
            if isinstance(container, (dict, list))
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def _float(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _int(text: str) -> int | str:
    return int(text) if len(text) <= MAX_DIGITS else text
