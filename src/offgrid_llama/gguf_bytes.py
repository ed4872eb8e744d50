"""The bytes of a GGUF header: where each key lies in it, and how a value is written.

llama.cpp's own writer (gguf.h) ends the process over a reserved key, cuts strings at a zero byte and writes byte by byte.
A changed copy needs none of it: what stays is copied as it is, and only what changes is written here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

__all__ = ["TYPES", "encoded", "positions", "type_for"]

TYPES = {
    "u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"),
    "bool": (7, "?"), "str": (8, ""), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d"),
}  # fmt: skip
"""GGUF's types of values by llama.cpp's names: the number in the file, and struct's letter."""

_ARRAY = 9
_SIZES = {number: struct.calcsize("<" + letter) for number, letter in TYPES.values() if letter}
_COUNTS = 8  # where the number of tensors and the number of keys are, uint64 each
_KEYS = 24  # where the keys begin


def positions(header: bytes) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return where each key lies, name and value, and where the table of tensors does: begin and end, in bytes.

    ``header`` begins with the magic, and llama.cpp has read it before.
    """
    n_tensors, n_keys = struct.unpack_from("<QQ", header, _COUNTS)
    keys, at = [], _KEYS
    for _ in range(n_keys):
        begin = at
        at = _after_string(header, at)
        kind, at = _number(header, at, "I")
        count = 1
        if kind == _ARRAY:
            kind, at = _number(header, at, "I")
            count, at = _number(header, at, "Q")
        if kind == TYPES["str"][0]:
            for _ in range(count):
                at = _after_string(header, at)
        else:
            at += _SIZES[kind] * count
        keys.append((begin, at))
    begin = at
    for _ in range(n_tensors):
        at = _after_string(header, at)
        n_dims, at = _number(header, at, "I")
        at += 8 * n_dims + 12  # the shape, the type, the offset
    return keys, (begin, at)


def _number(header: bytes, at: int, letter: str) -> tuple[int, int]:
    (number,) = struct.unpack_from("<" + letter, header, at)
    return number, at + struct.calcsize("<" + letter)


def _after_string(header: bytes, at: int) -> int:
    size, at = _number(header, at, "Q")
    return at + size


def encoded(key: str, kind: str, value: object) -> bytes:
    """Return a key and its value, or list of values, of one of ``TYPES``, as they are in a file.

    Raises TypeError or ValueError, which name the key, for what does not fit.
    """
    number, letter = TYPES[kind]
    one: Callable[[Any], bytes] = _text if kind == "str" else lambda item: _scalar(kind, letter, item)
    try:
        name = _text(key)
        if len(name) == 8:
            raise ValueError("a key must have a name")
        if isinstance(value, list):
            body = b"".join([struct.pack("<IIQ", _ARRAY, number, len(value)), *map(one, value)])
        else:
            body = struct.pack("<I", number) + one(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{key!r}: {error}") from None
    return name + body


def _text(value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"must be a str, not {value!r}")
    try:
        data = value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"is no text: {error.reason}") from None
    if b"\0" in data:
        raise ValueError("must have no zero byte: llama.cpp reads no further than there")
    return struct.pack("<Q", len(data)) + data


def _scalar(kind: str, letter: str, value: Any) -> bytes:
    number = value
    if (kind == "bool") != isinstance(value, bool):
        raise TypeError(f"must be of type {kind}, not {value!r}")
    if kind not in ("bool", "f32", "f64"):
        if not hasattr(value, "__index__"):
            raise TypeError(f"must be of type {kind}, not {value!r}")
        number = value.__index__()
    elif kind != "bool" and not hasattr(value, "__float__"):
        raise TypeError(f"must be of type {kind}, not {value!r}")
    try:
        return struct.pack("<" + letter, number)
    except (struct.error, OverflowError):
        raise ValueError(f"{value!r} does not fit into {kind}") from None


def type_for(key: str, value: object) -> str:
    """Return the type that a value, or a list of values, of a new key gets.

    Numbers get what llama.cpp reads its own as: float is f32; int the first of u32, i32, u64, i64 that holds it, in a
    list i32 before u32.
    """
    items: list[Any] = value if isinstance(value, list) else [value]
    for kind, python in (("bool", bool), ("str", str), ("f32", float)):
        if items and all(isinstance(item, python) for item in items):
            return kind
    if items and all(hasattr(item, "__index__") and not isinstance(item, bool) for item in items):
        numbers = [item.__index__() for item in items]
        for kind in ("i32", "u32", "u64", "i64") if isinstance(value, list) else ("u32", "i32", "u64", "i64"):
            bits, low = int(kind[1:]), kind[0] == "i"
            bottom, top = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if low else (0, 2**bits)
            if bottom <= min(numbers) and max(numbers) < top:
                return kind
    raise TypeError(
        f"{key!r}: {value!r} is neither bool, int, float, str nor a list of one of them; types= may say which"
    )
