"""The server's log: its format, and a limit for lines of a kind, so that no client can fill a disk with them."""

from __future__ import annotations

import json
import logging
import sys

__all__ = ["KIND", "RateLimit", "set_up_log"]

_LOGGERS = {"offgrid_llama.server": logging.INFO, "uvicorn.error": logging.WARNING, "asyncio": logging.WARNING}
_EXTRA_FIELDS = ("path", "status", "seconds", "model")
KIND = "kind"
"""The extra field of a record with its kind, where that is not the place that logs it."""
SECONDS_BETWEEN = 1.0
"""Time between two records of a kind, at least."""


class RateLimit(logging.Filter):
    """Lets one warning or error of a kind pass in a second, which says how many were left out before it.

    Those that come from one line of code, with one type of exception, are of a kind. Of other records, those that name their
    kind are treated in the same way, and the rest passes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[tuple[object, ...], float] = {}
        self._left_out: dict[tuple[object, ...], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record passes."""
        named = getattr(record, KIND, None)
        if named is None and record.levelno < logging.WARNING:
            return True
        kind = (record.name, record.pathname, record.lineno, named, record.exc_info and record.exc_info[0])
        if 0 <= record.created - self._last.get(kind, -SECONDS_BETWEEN) < SECONDS_BETWEEN:
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._last[kind] = record.created
        if n := self._left_out.pop(kind, 0):
            record.msg, record.args = f"{record.getMessage()} ({n:,} more like this before)", ()
        return True


_limit = RateLimit()


def set_up_log(log_format: str) -> None:
    """Limit the server's log, and write it to stderr as "text" or "json", unless the program has set up logging itself."""
    for name, level in _LOGGERS.items():
        logger = logging.getLogger(name)
        logger.addFilter(_limit)  # once, however often this is called
        if logger.hasHandlers():
            continue
        handler = logging.StreamHandler(sys.stderr)
        text = logging.Formatter("%(asctime)s %(levelname).1s %(message)s")
        handler.setFormatter(_JsonFormatter() if log_format == "json" else text)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


class _JsonFormatter(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower(),
            "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        fields |= {name: getattr(record, name) for name in _EXTRA_FIELDS if hasattr(record, name)}
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)
