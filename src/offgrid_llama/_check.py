"""Every return convention of llama.h, turned into an exception in one place.

================  ============================================  =====================
what C returns    which functions                               here
================  ============================================  =====================
NULL              load, init, sampler and grammar constructors  ``not_null``
a length < 0      tokenize, token_to_piece, detokenize, meta    ``filled``
0, 1, 2, < 0      llama_decode, llama_encode                    ``decoded``
anything          a C++ exception that the guard caught         ``raise_caught``
================  ============================================  =====================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, SupportsFloat

from ._callbacks import raise_pending, recent_log
from ._capi import ffi, lib
from .errors import Aborted, DecodeFailed, InvalidBatch, NativeError, NoKVSlot, OffgridLlamaError

__all__ = ["decoded", "filled", "not_null", "number", "raise_caught", "real", "sequence", "string_of", "text_of"]

INT32_MAX = 2**31 - 1


def raise_caught() -> None:
    """Raise the C++ exception that the guard caught last on this thread, if any."""
    function = lib.og_caught_function()
    if function:
        what = text_of(lib.og_caught_what())
        lib.og_caught_clear()
        raise NativeError(text_of(function), what, log=recent_log())


def text_of(pointer: Any) -> str:
    """Return a C string as str; bytes that are no UTF-8 become U+FFFD, NULL the empty string."""
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""


def string_of(call: Callable[[Any, int], int]) -> str:
    """Return a string of any length from a function that takes (buffer, size) and returns the length, like snprintf."""
    size = 256
    while True:
        buffer = ffi.new("char[]", size)
        length = call(buffer, size)
        if length < size:
            return text_of(buffer)
        size = length + 1


def not_null(
    pointer: Any, failure: Callable[[tuple[str, ...]], OffgridLlamaError], free: Callable[[Any], object] | None = None
) -> Any:
    """Return ``pointer``, or raise: a callback's exception, a C++ exception, or ``failure(last log lines)``.

    ``free`` is for a pointer that is there although a callback raised, such as Ctrl-C while the log was written.
    """
    try:
        raise_pending()
    except BaseException:
        if pointer and free is not None:
            free(pointer)
        raise
    if pointer:
        return pointer
    raise_caught()
    raise failure(recent_log())


def filled(call: Callable[[Any, int], int], ctype: str, size: int) -> tuple[Any, int]:
    """Call ``call(buffer, size)`` with a buffer that is long enough, and return it with the length used.

    llama.h answers a buffer that is too short with the negative of the length it needs, and with INT32_MIN where
    the guard caught something or the length is no int32.
    """
    buffer = ffi.new(ctype, size)
    length = call(buffer, size)
    if length < 0:
        if length == -INT32_MAX - 1:
            raise_caught()
            raise OverflowError("the result is longer than 2**31 - 1")
        size = -length
        buffer = ffi.new(ctype, size)
        length = call(buffer, size)
        if length < 0:
            raise_caught()
            raise RuntimeError(f"llama.h asked for {size} entries and then for {-length}")
    return buffer, length


def decoded(code: int, function: str, n_tokens: int) -> None:
    """Raise what ``code``, the result of llama_decode or llama_encode, stands for; 0 is success."""
    raise_pending()
    if code == 0:
        return
    raise_caught()
    log = recent_log()
    asked = f"{function} of {n_tokens} tokens returned {code}"
    if code == 1:
        raise NoKVSlot(
            f"{asked}: the KV cache has no room for them. Memory is as it was before; remove sequences "
            "(context.memory.remove) or make n_ctx larger",
            code=code, memory_restored=True, log=log,
        )  # fmt: skip
    if code == 2:
        raise Aborted(
            f"{asked}: it was cancelled. The finished micro-batches stay in memory (context.memory.positions)",
            code=code, memory_restored=False, log=log,
        )  # fmt: skip
    if code == -1:
        raise InvalidBatch(
            f"{asked}: the batch is not valid. Memory is as it was before", code=code, memory_restored=True, log=log
        )
    raise DecodeFailed(
        f"{asked}: the computation failed. The finished micro-batches stay in memory (context.memory.positions)",
        code=code, memory_restored=False, log=log,
    )  # fmt: skip


def number(name: str, value: int, low: int, high: int = INT32_MAX) -> int:
    """Return ``value`` as an int, or raise TypeError or ValueError with the argument's name and range."""
    try:
        number = value.__index__()
    except AttributeError:
        raise TypeError(f"{name} must be an int, not {type(value).__name__}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {number}")
    return number


def real(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """Return ``value`` as a float, or raise TypeError or ValueError with the argument's name and range."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"{name} must be a finite number from {low} to {high}, not {value}")
    return number


def sequence(name: str, value: int, n_seq_max: int) -> int:
    """Return a sequence id that the context has; n_seq_max is how many it was made for."""
    try:
        return number(name, value, 0, n_seq_max - 1)
    except ValueError:
        raise ValueError(
            f"{name} must be from 0 to {n_seq_max - 1}, not {value}: the context was made with n_seq_max={n_seq_max}"
        ) from None
