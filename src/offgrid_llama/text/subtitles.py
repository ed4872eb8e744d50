"""Subtitles: passages with their times, as SubRip and WebVTT files have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

__all__ = ["Timed", "srt", "vtt"]

_EMPTY_LINES = re.compile(r"\s*\n\s*")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


class Timed(Protocol):
    """A text, and the seconds of its begin and its end."""

    @property
    def start(self) -> float:
        """Seconds from the begin of the sound."""

    @property
    def end(self) -> float:
        """Seconds from the begin of the sound."""

    @property
    def text(self) -> str:
        """What is said."""


def srt(passages: Iterable[Timed]) -> str:
    """Return a SubRip file (.srt)."""
    blocks = [
        f"{number}\n{_time(passage.start, ',')} --> {_time(passage.end, ',')}\n{_lines(passage.text)}\n\n"
        for number, passage in enumerate(passages, 1)
    ]
    return "".join(blocks)


def vtt(passages: Iterable[Timed]) -> str:
    """Return a WebVTT file (.vtt)."""
    blocks = [
        f"{_time(passage.start, '.')} --> {_time(passage.end, '.')}\n{_lines(passage.text).translate(_ESCAPES)}\n\n"
        for passage in passages
    ]
    return "WEBVTT\n\n" + "".join(blocks)


def _lines(text: str) -> str:
    """Return a text without empty lines, as one would end a subtitle."""
    return _EMPTY_LINES.sub("\n", text.strip())


def _time(seconds: float, point: str) -> str:
    ms = round(seconds * 1000)
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{point}{ms % 1000:03}"
