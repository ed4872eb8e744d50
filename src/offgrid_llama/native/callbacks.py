"""Callbacks: calls from C into Python, for the log, the progress of a load, and signals during a decode.

These three and the custom samplers of ``sampling/custom.py`` keep one protocol:

1. C gets a function that cffi made from ``_capi/callbacks.h``. It takes the GIL by itself.
2. No exception passes through C. It is kept for its thread, and the callback returns the value that makes C stop soon:
   False for progress, True for the poll, OG_RAISED for a sampler.
3. The code that called C calls ``raise_pending()`` when C has returned, and raises the exception there.
4. ``user_data`` is NULL, or a ``ffi.new_handle`` that the caller keeps until C has returned.

The log goes to the logger ``offgrid_llama.llama_cpp``, which is silent until the application configures logging. The last
lines of each thread are kept for errors.
"""

from __future__ import annotations

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from offgrid_llama._capi import ffi, lib

__all__ = [
    "LoadProgress", "forget_log", "install", "keep", "listening", "pending", "raise_pending", "recent_log", "whole_log",
]  # fmt: skip

logging.getLogger("offgrid_llama").addHandler(logging.NullHandler())
_logger = logging.getLogger("offgrid_llama.llama_cpp")
_LEVELS = {
    lib.GGML_LOG_LEVEL_DEBUG: logging.DEBUG,
    lib.GGML_LOG_LEVEL_INFO: logging.INFO,
    lib.GGML_LOG_LEVEL_WARN: logging.WARNING,
    lib.GGML_LOG_LEVEL_ERROR: logging.ERROR,
}

MAX_KEPT_LINES = 200
"""Lines of the log that are kept for each thread."""

MAX_GRAVE_LINES = 12
"""Warnings and errors that an exception carries, the last ones."""

MAX_OTHER_LINES = 3
"""Other lines that an exception carries if the log has no warnings and no errors."""


class LoadProgress:
    """The progress of one load: ``user_data`` is for ``lib.og_on_progress``. Keep the object until C has returned."""

    def __init__(self, callback: Callable[[float], object] | None) -> None:
        self.callback = callback
        self.cancelled = False
        self.user_data = ffi.new_handle(self)


class _ThreadLog(threading.local):
    """The log of one thread."""

    def __init__(self) -> None:
        self.lines: deque[tuple[int, str]] = deque(maxlen=MAX_KEPT_LINES)
        self.partial = ""
        self.level = logging.INFO
        self.listener: Callable[[str], object] | None = None


_thread = _ThreadLog()
pending: dict[int, BaseException] = {}
"""The exceptions of callbacks, by thread id. A global, not one for each thread: every step looks whether it is empty."""


def keep(_kind: object, error: BaseException, _trace: object) -> None:
    """Keep the exception of a callback for ``raise_pending``: the ``onerror`` of every callback."""
    pending.setdefault(threading.get_ident(), error)


def _keep_and_abort(_kind: object, error: BaseException, _trace: object) -> bool:
    keep(_kind, error, _trace)
    return True


def raise_pending() -> None:
    """Raise the exception that a callback of this thread raised while C was running, if any."""
    if pending:
        error = pending.pop(threading.get_ident(), None)
        if error is not None:
            raise error


@ffi.def_extern(onerror=keep)  # type: ignore[untyped-decorator]
def og_on_log(level: int, text: Any, _user_data: Any) -> None:
    """Take a piece of llama.cpp's log. A line may come in several pieces, which are marked CONT."""
    if level in _LEVELS:
        _thread.level = _LEVELS[level]
    whole, newline, rest = (_thread.partial + ffi.string(text).decode("utf-8", "replace")).rpartition("\n")
    _thread.partial = rest
    if newline:
        for line in whole.split("\n"):
            if line.strip(" ."):  # no dots that tell progress
                _thread.lines.append((_thread.level, line.rstrip()))
                if _logger.isEnabledFor(_thread.level):
                    _logger.log(_thread.level, "%s", line.rstrip())
                if _thread.listener is not None:
                    _thread.listener(line)


@ffi.def_extern(onerror=keep)  # type: ignore[untyped-decorator]
def og_on_progress(progress: float, user_data: Any) -> bool:
    """Tell the caller's function how much of a model is loaded, 0 to 1. False ends the load."""
    load: LoadProgress = ffi.from_handle(user_data)
    raised = threading.get_ident() in pending
    if not raised and load.callback is not None:
        load.cancelled = load.callback(progress) is False
    return not raised and not load.cancelled


@ffi.def_extern(onerror=_keep_and_abort)  # type: ignore[untyped-decorator]
def og_on_poll() -> bool:
    """Let the interpreter run its signal handlers: Ctrl-C raises KeyboardInterrupt here, and the decode ends."""
    return threading.get_ident() in pending


def forget_log() -> None:
    """Begin a call: lines that were logged before it are no reason for its failure."""
    _thread.lines.clear()


def recent_log() -> tuple[str, ...]:
    """Return the last warnings and errors since ``forget_log``, or the last lines of any kind if there are none."""
    grave = [line for level, line in _thread.lines if level >= logging.WARNING]
    return tuple(grave[-MAX_GRAVE_LINES:] or [line for _, line in _thread.lines][-MAX_OTHER_LINES:])


@contextmanager
def whole_log() -> Iterator[deque[tuple[int, str]]]:
    """Keep all lines that are logged on this thread in the block, as (level, line), without a limit."""
    before, _thread.lines = _thread.lines, deque()
    try:
        yield _thread.lines
    finally:
        _thread.lines = before


@contextmanager
def listening(listener: Callable[[str], object]) -> Iterator[None]:
    """Call ``listener`` with each line that is logged on this thread in the block. Its exceptions are kept as pending."""
    before, _thread.listener = _thread.listener, listener
    try:
        yield
    finally:
        _thread.listener = before


def _log_to_c() -> None:
    # C++ destructors and late threads may log after the interpreter has ended: a C function takes it.
    _send_log("og_drop_log")


def _send_log(function: str) -> None:
    target = ffi.addressof(lib, function)
    lib.llama_log_set(target, ffi.NULL)
    lib.mtmd_helper_log_set(target, ffi.NULL)


def install() -> None:
    """Send the log of llama.cpp, ggml and libmtmd to ``og_on_log`` until the interpreter ends."""
    _send_log("og_log")
    atexit.register(_log_to_c)
