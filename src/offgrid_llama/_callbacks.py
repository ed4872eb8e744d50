"""Where C calls Python: the log, the progress of a load, and the look for signals in the middle of a decode.

The protocol, the same for all three, and for the custom samplers of ``custom.py``:

1. The C side gets a function that cffi made from ``extern "Python"`` in shim.cdef.h. It takes the GIL by itself.
2. Nothing is raised through C. An exception is kept for its thread, and the callback returns the value that makes C
   stop soon: progress False, poll True, a sampler OG_RAISED.
3. The noun file that made the call calls ``raise_pending()`` when C has returned, and there the exception goes on.
4. ``user_data`` is NULL or a ``ffi.new_handle`` that the caller keeps until C has returned.

The log goes to the logger ``offgrid_llama.llama_cpp`` and stays silent until the application configures logging. The last
lines of each thread are kept, for errors to carry.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ._capi import ffi, lib

__all__ = [
    "Progress", "forget_log", "install", "keep", "listening", "pending", "raise_pending", "recent_log", "whole_log",
]  # fmt: skip

logging.getLogger("offgrid_llama").addHandler(logging.NullHandler())
_logger = logging.getLogger("offgrid_llama.llama_cpp")
_LEVELS = {
    lib.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    lib.GGML_LOG_LEVEL_INFO: logging.INFO,
    lib.GGML_LOG_LEVEL_WARN: logging.WARNING,
    lib.GGML_LOG_LEVEL_ERROR: logging.ERROR,
}
_LINES_KEPT = 12


class Progress:
    """The progress of one load: ``user_data`` is for ``lib.og_on_progress``; keep the object until C has returned."""

    def __init__(self, callback: Callable[[float], object] | None) -> None:
        self.callback = callback
        self.cancelled = False
        self.user_data = ffi.new_handle(self)


class _Thread(threading.local):
    """What one thread's callbacks have left for the code that called C."""

    def __init__(self) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=200)
        self.partial = ""
        self.level = logging.INFO
        self.listener: Callable[[str], object] | None = None


_thread = _Thread()
pending: dict[int, BaseException] = {}
"""What callbacks have raised, by thread id. No attribute of ``_thread``: every step asks whether there is anything."""


def keep(_kind: object, error: BaseException, _trace: object) -> None:
    """Keep what a callback raises for ``raise_pending``: the ``onerror`` of every callback."""
    pending.setdefault(threading.get_ident(), error)


def _keep_and_abort(_kind: object, error: BaseException, _trace: object) -> bool:
    keep(_kind, error, _trace)
    return True


def raise_pending() -> None:
    """Raise what a callback of this thread raised while C was running, if anything."""
    if pending:
        error = pending.pop(threading.get_ident(), None)
        if error is not None:
            raise error


@ffi.def_extern(onerror=keep)  # type: ignore[untyped-decorator]
def og_on_log(level: int, text: Any, _user_data: Any) -> None:
    """Take a piece of llama.cpp's log; lines may come in pieces, marked CONT."""
    if level in _LEVELS:
        _thread.level = _LEVELS[level]
    whole, newline, rest = (_thread.partial + ffi.string(text).decode("utf-8", "replace")).rpartition("\n")
    _thread.partial = rest
    if newline:
        for line in whole.split("\n"):
            if line.strip(" ."):  # progress dots
                _thread.lines.append((_thread.level, line.rstrip()))
                if _logger.isEnabledFor(_thread.level):
                    _logger.log(_thread.level, "%s", line.rstrip())
                if _thread.listener is not None:
                    _thread.listener(line)


@ffi.def_extern(onerror=keep)  # type: ignore[untyped-decorator]
def og_on_progress(progress: float, user_data: Any) -> bool:
    """Pass on how much of a model is loaded, 0 to 1; False ends the load."""
    load: Progress = ffi.from_handle(user_data)
    raised = threading.get_ident() in pending
    if not raised and load.callback is not None:
        load.cancelled = load.callback(progress) is False
    return not raised and not load.cancelled


@ffi.def_extern(onerror=_keep_and_abort)  # type: ignore[untyped-decorator]
def og_on_poll() -> bool:
    """Let the interpreter run its signal handlers: Ctrl-C raises KeyboardInterrupt right here, and the decode ends."""
    return threading.get_ident() in pending


def forget_log() -> None:
    """Begin a call: what was logged before it is no reason for its failure."""
    _thread.lines.clear()


def recent_log() -> tuple[str, ...]:
    """Return the warnings and errors logged since ``forget_log``, or else the last lines of any kind."""
    grave = [line for level, line in _thread.lines if level >= logging.WARNING]
    return tuple(grave[-_LINES_KEPT:] or [line for _, line in _thread.lines][-3:])


@contextmanager
def whole_log() -> Iterator[deque[tuple[int, str]]]:
    """Keep every line that is logged on this thread in the block, as (level, line), however many there are."""
    before, _thread.lines = _thread.lines, deque()
    try:
        yield _thread.lines
    finally:
        _thread.lines = before


@contextmanager
def listening(listener: Callable[[str], object]) -> Iterator[None]:
    """Call ``listener`` with each line that is logged on this thread in the block; what it raises is kept as pending."""
    before, _thread.listener = _thread.listener, listener
    try:
        yield
    finally:
        _thread.listener = before


def _let_go() -> None:
    # C++ destructors and late threads may log after the interpreter is gone; from now on into a C function.
    lib.llama_log_set(ffi.addressof(lib, "og_drop_log"), ffi.NULL)


def install() -> None:
    """Send llama.cpp's and ggml's log here from now on, until the interpreter ends."""
    lib.llama_log_set(ffi.addressof(lib, "og_log"), ffi.NULL)
    atexit.register(_let_go)
