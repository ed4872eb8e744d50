"""Markdown in pieces, for a terminal: complete blocks are printed once, the last one is redrawn with each piece."""

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
REDRAWS_PER_SECOND = 12
"""Redraws of the last block: enough to look smooth."""


def settled(text: str) -> int:
    """Return the end of the first block of a text that no further text can change; 0 without one (pure)."""
    at = 0
    fence = ""
    for line in text.splitlines(keepends=True):
        fence = _fence_after(line, fence)
        at += len(line)
        is_empty = line.endswith("\n") and not line.strip()
        if not fence and is_empty and text[:at].strip():
            return at
    return 0


def _fence_after(line: str, fence: str) -> str:
    """Return the marks of the code block that is open after a line, "" for none; ``fence`` is the one before it."""
    found = _FENCE.match(line)
    if not found:
        return fence
    if not fence:
        return found[1]
    return "" if found[1].startswith(fence) and line.strip() == found[1] else fence


class MarkdownStream:
    """Writes Markdown to a console in pieces. A context manager; all text is written at its end.

    Args:
        console: rich's Console.
        style: rich's style of all text.
    """

    def __init__(self, console: Console, style: str = "none") -> None:
        self._console = console
        self._style = style
        self._text = ""
        self._live: Live | None = None

    def push(self, text: str) -> None:
        """Add text."""
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
                console=self._console,
                refresh_per_second=REDRAWS_PER_SECOND,
                transient=True,
                vertical_overflow="visible",
            )
            self._live.start()
        # Lines above the screen cannot be redrawn.
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
