"""The bytes of a GGUF header: where each key lies in it, and how a value is encoded.

llama.cpp's own writer (gguf.h) aborts on a reserved key, cuts strings at a zero byte and writes byte by byte. A changed copy
does without it: unchanged keys are copied byte for byte, and only changed values are encoded here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = ["TYPES", "encoded", "positions", "type_for"]

TYPES = {
    "u8": (0, "B"), "i8": (1, "b"), "u16": (2, "H"), "i16": (3, "h"), "u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"),
    "bool": (7, "?"), "str": (8, ""), "u64": (10, "Q"), "i64": (11, "q"), "f64": (12, "d"),
}  # fmt: skip
"""GGUF's types of values by llama.cpp's names: the number in the file, and struct's letter."""

_ARRAY_TYPE = 9
_VALUE_BYTES = {number: struct.calcsize("<" + letter) for number, letter in TYPES.values() if letter}
_COUNTS_OFFSET = 8  # of the number of tensors and the number of keys, uint64 each, in bytes
_KEYS_OFFSET = 24  # of the first key, in bytes
_LENGTH_BYTES = 8  # of the uint64 before a string


def positions(header: bytes) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    """Return begin and end, in bytes, of each key with its value, and of the table of tensors.

    ``header`` begins with the magic. It must be one that llama.cpp has read without an error.
    """
    n_tensors, n_keys = struct.unpack_from("<QQ", header, _COUNTS_OFFSET)
    keys, at = [], _KEYS_OFFSET
    for _ in range(n_keys):
        begin = at
        at = _after_string(header, at)
        kind, at = _number(header, at, "I")
        count = 1
        if kind == _ARRAY_TYPE:
            kind, at = _number(header, at, "I")
            count, at = _number(header, at, "Q")
        if kind == TYPES["str"][0]:
            for _ in range(count):
                at = _after_string(header, at)
        else:
            at += _VALUE_BYTES[kind] * count
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
    """Return the bytes of a key with its value, or list of values, of one of ``TYPES``.

    Raises TypeError or ValueError, which name the key, for a value that does not fit the type.
    """
    number, letter = TYPES[kind]
    one: Callable[[Any], bytes] = _text if kind == "str" else lambda item: _scalar(kind, letter, item)
    try:
        name = _text(key)
        if len(name) == _LENGTH_BYTES:
            raise ValueError("a key must have a name")
        if isinstance(value, list):
            body = b"".join([struct.pack("<IIQ", _ARRAY_TYPE, number, len(value)), *map(one, value)])
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
        raise ValueError("must have no zero byte, at which llama.cpp would stop reading")
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

    Numbers get the types that llama.cpp reads for its own keys: float is f32; int the first of u32, i32, u64, i64 that
    holds it, in a list i32 before u32.
    """
    kind = _type_of_list(value) if isinstance(value, list) else _type_of_list([value], ("u32", "i32", "u64", "i64"))
    if kind is None:
        raise TypeError(
            f"{key!r}: {value!r} is neither bool, int, float, str nor a list of one of them; types= may name its type"
        )
    return kind


def _type_of_list(items: list[Any], integers: Sequence[str] = ("i32", "u32", "u64", "i64")) -> str | None:
    """Return the type that all items have; of ``integers`` the first that holds them. None without such a type."""
    if not items:
        return None
    for kind, python in (("bool", bool), ("str", str), ("f32", float)):
        if all(isinstance(item, python) for item in items):
            return kind
    if any(isinstance(item, bool) or not hasattr(item, "__index__") for item in items):
        return None
    numbers = [item.__index__() for item in items]
    return _first_that_holds(integers, min(numbers), max(numbers))


def _first_that_holds(integers: Iterable[str], smallest: int, largest: int) -> str | None:
    """Return the first of some types of integers that holds both numbers."""
    for kind in integers:
        bits = int(kind[1:])
        bottom, top = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if kind[0] == "i" else (0, 2**bits)
        if bottom <= smallest and largest < top:
            return kind
    return None
