"""Markdown that comes piece by piece, to a terminal: whole blocks are printed once, the last one is drawn anew."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import output

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.markdown import Markdown

__all__ = ["MarkdownStream", "settled"]

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})", re.MULTILINE)
_PER_SECOND = 12


def settled(text: str) -> int:
    """Return where the first block of a text ends, which nothing that follows can change; 0 where it goes on (pure)."""
    at = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        found = _FENCE.match(line)
        if found and not fence:
            fence = found[1]
        elif found and found[1].startswith(fence) and line.strip() == found[1]:
            fence = ""
        at += len(line)
        if not fence and line.endswith("\n") and not line.strip() and text[:at].strip():
            return at
    return 0


class MarkdownStream:
    """Writes Markdown to a console as it comes; a context manager, at whose end all is written.

    Args:
        console: rich's.
        style: of all text.
    """

    def __init__(self, console: Console, style: str = "none") -> None:
        self._console = console
        self._style = style
        self._text = ""
        self._live: Live | None = None

    def push(self, text: str) -> None:
        """Take more text."""
        self._text += output.printable(text)
        blocks = []
        while end := settled(self._text):
            blocks.append(self._text[:end])
            self._text = self._text[end:]
        self._draw()
        for block in blocks:
            self._console.print(self._markdown(block))
            self._console.print()

    def _draw(self) -> None:
        from rich.live import Live

        if self._live is None:
            self._live = Live(
                console=self._console, refresh_per_second=_PER_SECOND, transient=True, vertical_overflow="visible"
            )
            self._live.start()
        # What is longer than the screen cannot be taken back.
        lines = self._text.split("\n")[-max(self._console.height - 2, 1) :]
        self._live.update(self._markdown("\n".join(lines)))

    def _markdown(self, text: str) -> Markdown:
        from rich.markdown import Markdown

        return Markdown(text, style=self._style, hyperlinks=False)

    def __enter__(self) -> MarkdownStream:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._text.strip():
            self._console.print(self._markdown(self._text))
        self._text = ""
