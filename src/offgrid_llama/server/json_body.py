"""JSON of requests: read strictly, and refused before it takes more memory than one request may have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from offgrid_llama.text.json_text import is_deeper, whole_escapes

from .api_error import ApiError

__all__ = ["read_json"]

_COSTS = {b",": 40, b'"': 16, b":": 600, b"[": 256, b"{": 160}
"""Bytes of memory that a value takes, at most, by the characters that it is written with. A name takes 100, but also the
time of 600: nothing else of this process runs while a new one is made, and 200,000 of them took 0.2 seconds."""
MAX_VALUE_BYTES = 64 * 2**20
"""Estimated bytes of memory of a body's values, at most, besides long texts."""
VALUE_BYTES_PER_BODY_BYTE = 8
"""The same for each byte of the largest body, where the settings allow larger ones than the default."""

MAX_NUMBERS_MS = 50
"""Milliseconds that the numbers of a body take, at most, of those that are slow to read. Nothing else of this process runs
meanwhile, and 8 MiB of them would take twelve seconds."""
LARGE_NUMBER_MS = 0.009
"""What one near the largest float takes, 300 times as long as another."""
LONG_NUMBER_MS = 7e-4
"""What 16 digits of a number take: such a one may lie half-way between two floats."""
_NUMBER_MARKS = bytes.maketrans(b"123456789.E", b"0000000000e")
_LONG_NUMBER, _LARGE_NUMBER = b"0" * 16, b"0e000"
"""Numbers that are slow to read, with these marks for their characters, and without the sign of the exponent."""
_SLICE_BYTES = 2**18


def read_json(body: bytes, max_depth: int, max_bytes: int) -> Any:
    """Return the value of a body: UTF-8 without NaN, of limited depth, and with a limited number of values.

    Half of a character, as clients write it that cut texts, becomes U+FFFD.

    Args:
        body: of a request.
        max_depth: levels of lists and objects, at most.
        max_bytes: size of the largest body that the settings allow.

    Raises ApiError.
    """
    if not body.strip():
        raise ApiError(400, "the body is empty", code="invalid_json")
    limit = max(MAX_VALUE_BYTES, VALUE_BYTES_PER_BODY_BYTE * max_bytes)
    try:
        try:
            value = _decoded(body, limit)
        except msgspec.DecodeError:
            whole = whole_escapes(body.decode("latin-1")).encode("latin-1")  # escapes are ASCII; the rest stays
            if whole == body:
                raise
            value = _decoded(whole, limit)
        deeper = is_deeper(value, max_depth)
    except RecursionError:
        deeper, value = True, None
    except (msgspec.DecodeError, ValueError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from error
    if deeper:
        raise ApiError(400, f"the body is nested deeper than {max_depth} levels", code="invalid_json")
    return value


def _decoded(body: bytes, limit: int) -> Any:
    """Return the value of a body whose values take up to ``limit`` bytes. Raises ApiError and DecodeError."""
    if _cost(body) > limit or _numbers_ms(body) > MAX_NUMBERS_MS:  # as if there were no texts, which is quick to count
        _check_values(body, limit)
    return msgspec.json.decode(body)


def _check_values(body: bytes, limit: int) -> None:
    """Raise ApiError for a body whose values take more than ``limit`` bytes, or whose numbers take too long."""
    cost, ms = 0, 0.0
    for part in _outside_strings(body):
        cost += _cost(part)
        ms += _numbers_ms(part)
    if cost > limit:
        raise ApiError(413, "the body has too many values for one request", code="body_too_large")
    if ms > MAX_NUMBERS_MS:
        raise ApiError(
            413, "the body has too many numbers with 16 or more digits or from 1e100 on", code="body_too_large"
        )


def _cost(text: bytes) -> int:
    """Return the memory that the values in a JSON text take, at most. Commas and brackets in strings count, too."""
    return sum(cost * text.count(mark) for mark, cost in _COSTS.items())


def _numbers_ms(text: bytes) -> float:
    """Return how long the numbers in a JSON text take that are slow to read; those in strings count, too."""
    marks = text.translate(_NUMBER_MARKS, b"+")
    return marks.count(_LONG_NUMBER) * LONG_NUMBER_MS + marks.count(_LARGE_NUMBER) * LARGE_NUMBER_MS


def _outside_strings(body: bytes) -> Iterator[bytes]:
    """Yield a JSON text with empty strings, a slice at a time: between two slices others run."""
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    inside = 0
    for begin in range(0, len(plain), _SLICE_BYTES):
        parts = plain[begin : begin + _SLICE_BYTES].split(b'"')
        yield b'""'.join(parts[inside::2])
        inside ^= (len(parts) - 1) & 1
