"""Exit codes: each error of a command becomes one code and one line."""

from __future__ import annotations

import errno
import re

from offgrid_llama.errors import (
    ContextError,
    GGUFError,
    GrammarError,
    ModelLoadError,
    OffgridLlamaError,
    StoreError,
    UnknownModelError,
)

__all__ = ["FAILURE", "INTERRUPTED", "PIPE", "TABLE", "USAGE", "UsageError", "explain"]

FAILURE = 1
USAGE = 2
MISSING = 3
BAD_MODEL = 4
NO_ROOM = 5
INTERRUPTED = 130
PIPE = 141

TABLE = {
    0: "done",
    FAILURE: "failed",
    USAGE: "wrong usage: an option, a value or a grammar is not possible",
    MISSING: "no such model or file, or it cannot be read",
    BAD_MODEL: "the file is no GGUF, is cut off, or cannot be loaded",
    NO_ROOM: "the download failed, or a disk is full",
    INTERRUPTED: "interrupted by Ctrl-C",
    PIPE: "the reader of the output closed the pipe",
}

_KINDS: tuple[tuple[type[Exception], int], ...] = (
    (UnknownModelError, MISSING),
    (StoreError, NO_ROOM),
    (GGUFError, BAD_MODEL),
    (ModelLoadError, BAD_MODEL),
    (GrammarError, USAGE),
    (OffgridLlamaError, FAILURE),
    (ValueError, USAGE),
)
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class UsageError(ValueError):
    """Options that contradict each other, or that this installation cannot serve."""


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message for an exception of a command."""
    show = getattr(error, "format_message", None)  # of click's exceptions; typer has its own copy of click
    if show is not None:
        return USAGE, show()
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        code = NO_ROOM if error.errno in _DISK_FULL else MISSING if where else FAILURE
        return code, f"{where}{error.strerror or error}"
    message = error.message + _reason(error) if isinstance(error, OffgridLlamaError) else str(error)
    for kind, code in _KINDS:
        if isinstance(error, kind):
            return code, message
    return FAILURE, f"unexpected {type(error).__name__}: {message} (--verbose shows where)"


def _reason(error: OffgridLlamaError) -> str:
    """Return llama.cpp's reason, for the errors whose own message has none."""
    if not error.log or not isinstance(error, (ModelLoadError, ContextError, GGUFError)):
        return ""
    # The first line is nearest to the cause; the later ones are from the functions around it.
    return ": " + re.sub(r"^\w+: (error loading model: )?", "", error.log[0])
