"""Check: results of C turned into exceptions, each convention of llama.h in one place, and arguments checked.

================  ============================================  =====================
result            functions                                     here
================  ============================================  =====================
NULL              load, init, sampler and grammar constructors  ``not_null``
a length < 0      tokenize, token_to_piece, detokenize, meta    ``filled``
0, 1, 2, < 0      llama_decode, llama_encode                    ``decoded``
anything          a C++ exception that the guard caught         ``raise_caught``
================  ============================================  =====================
"""

from __future__ import annotations

import difflib
import inspect
import math
import warnings
from collections.abc import Callable, Collection, Iterable
from typing import Any, SupportsFloat, TypeVar

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import Aborted, DecodeFailed, InvalidBatch, NativeError, NoKVSlot, OffgridLlamaError

from .callbacks import raise_pending, recent_log

__all__ = [
    "callback", "decoded", "filled", "is_async", "not_null", "number", "perf_switch", "raise_caught", "real",
    "refuse_unknown", "sequence", "string_of", "text_of",
]  # fmt: skip

INT32_MAX = 2**31 - 1

_F = TypeVar("_F")


def raise_caught() -> None:
    """Raise NativeError for the C++ exception that the guard caught last on this thread, if any."""
    function = lib.og_caught_function()
    if function:
        what = text_of(lib.og_caught_what())
        lib.og_caught_clear()
        raise NativeError(text_of(function), what, log=recent_log())


def text_of(pointer: Any) -> str:
    """Return a C string as str. Bytes that are no UTF-8 become U+FFFD, NULL becomes the empty string."""
    return ffi.string(pointer).decode("utf-8", "replace") if pointer else ""


def string_of(call: Callable[[Any, int], int]) -> str:
    """Return a string of any length, from a function that takes (buffer, size) and returns the length, as snprintf does."""
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
    """Return ``pointer``, or raise: the exception of a callback, a C++ exception, or ``failure(last lines of the log)``.

    ``free`` frees a pointer that C returned although a callback raised, for instance on Ctrl-C while C was logging.
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
    """Call ``call(buffer, size)`` with a buffer that is long enough, and return the buffer with the length used.

    For a buffer that is too short llama.h returns the negative of the length that it needs. It returns INT32_MIN if the
    length is no int32, or the guard caught an exception.
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
    """Raise the exception for ``code``, the result of llama_decode or llama_encode; 0 is success."""
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
        raise ValueError(f"{name} must be {_range(number, low, high)}, not {number}")
    return number


def real(name: str, value: float, low: float = -math.inf, high: float = math.inf) -> float:
    """Return ``value`` as a float, or raise TypeError or ValueError with the argument's name and range."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        told = _range(low, low, high)
        raise ValueError(f"{name} must be a finite number{told and ', ' + told}, not {value}")
    if not low <= number <= high:
        raise ValueError(f"{name} must be {_range(number, low, high)}, not {value}")
    return number


def _range(number: float, low: float, high: float) -> str:
    """Return a range as its reader sees it: without an end that is no more than the largest number of its C type."""
    if low >= -INT32_MAX and high < INT32_MAX:
        return f"from {_plain(low)} to {_plain(high)}"
    if low < -INT32_MAX and high < INT32_MAX:
        return f"{_plain(high)} or less"
    if number <= high and low >= -INT32_MAX:
        return f"{_plain(low)} or more"
    return f"from {_plain(low)} to {_plain(high)}" if math.isfinite(low) else ""


def _plain(number: float) -> str:
    return str(int(number)) if number == number // 1 and abs(number) < 2**63 else f"{number:g}"


def sequence(name: str, value: int, n_seq_max: int) -> int:
    """Return ``value`` if it is a sequence id of a context that was made with this n_seq_max, or raise ValueError."""
    try:
        return number(name, value, 0, n_seq_max - 1)
    except ValueError:
        raise ValueError(
            f"{name} must be from 0 to {n_seq_max - 1}, not {value}: the context was made with n_seq_max={n_seq_max}"
        ) from None


def refuse_unknown(caller: str, given: Iterable[str], known: Collection[str], also: str = "") -> None:
    """Raise TypeError for an argument that a function does not take, with the one that may be meant.

    Args:
        caller: the function that was called, as its caller knows it.
        given: the names of its keyword arguments.
        known: the names that it takes.
        also: a further hint.
    """
    for name in sorted(set(given) - set(known)):
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]!r}?" if close and not also else also
        raise TypeError(f"{caller}() takes no argument {name!r}{hint}")


def is_async(function: object) -> bool:
    """Whether a function, or an object that is called like one, is an ``async def``: its calls must be awaited."""
    called = getattr(function, "__call__", None)  # noqa: B004 - of an object, where it may be async
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)


def callback(name: str, function: _F) -> _F:
    """Return ``function``, or raise TypeError with the argument's name unless it can be called and need not be awaited."""
    if not callable(function):
        raise TypeError(f"{name} must be callable, not {type(function).__name__}")
    if is_async(function):
        raise TypeError(f"{name} must be a function that is not async: nothing would await it")
    return function


def perf_switch(perf: bool, no_perf: bool | None) -> bool:
    """Return whether to measure time: ``perf``, unless the caller's caller gave ``no_perf``, its deprecated opposite."""
    for name, value in (("perf", perf), ("no_perf", False if no_perf is None else no_perf)):
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {type(value).__name__}")
    if no_perf is None:
        return perf
    warnings.warn(f"no_perf={no_perf} is deprecated: use perf={not no_perf}", DeprecationWarning, stacklevel=3)
    return not no_perf
