"""Ends of answers that are made for editors: after a time, and at a line that is indented less."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["early_end"]


def early_end(max_seconds: float | None, min_indent: int) -> Callable[[str, float], bool] | None:
    """Return the function of (text so far, seconds since the first token) that says where an answer ends; None for no end.

    Args:
        max_seconds: the answer ends after this time, once it has a line break; None is no limit.
        min_indent: it ends at a line behind the first that begins with fewer spaces or tabs; 0 is no limit.
    """
    if max_seconds is None and not min_indent:
        return None

    def ends(text: str, seconds: float) -> bool:
        if max_seconds is not None and seconds > max_seconds and "\n" in text:
            return True
        return min_indent > 0 and any(_is_indented_less(line, min_indent) for line in text.split("\n")[1:])

    return ends


def _is_indented_less(line: str, least: int) -> bool:
    content = line.lstrip(" \t")
    return bool(content) and len(line) - len(content) < least
