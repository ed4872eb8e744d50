"""MessageReader: tells reasoning, content and calls of tools apart in a model's text, as it arrives (pure)."""

from __future__ import annotations

from .reasoning import Reasoning, Splitter
from .tools.call_reader import ToolReader
from .tools.deltas import MessageDelta

__all__ = ["MessageReader"]


class MessageReader:
    """Takes a model's text piece by piece.

    Args:
        reasoning: the marks around reasoning. None is that it stays in the content.
        inside: whether the prompt has opened the reasoning.
        tools: reads the calls; None where none may be made. It may be a reader that tells reasoning from content itself.
    """

    def __init__(self, reasoning: Reasoning | None, *, inside: bool = False, tools: ToolReader | None = None) -> None:
        by_tools = tools is not None and tools.reads_reasoning
        self._splitter = Splitter(None if by_tools else reasoning, inside=inside)
        self._joins = by_tools and reasoning is None
        self._tools = tools

    def push(self, text: str) -> MessageDelta:
        """Take more text; return what it adds to the message."""
        return self._delta(*self._splitter.push(text))

    def finish(self, *, cut: bool = False) -> MessageDelta:
        """Return what was held back, at the end of the text.

        Where the text was cut, and did not end by itself, the beginning of a mark or of a call is left out.
        """
        held = self._delta(*self._splitter.finish(cut=cut))
        return held if self._tools is None else held.followed_by(self._joined(self._tools.finish(cut=cut)))

    def _delta(self, reasoning: str, content: str) -> MessageDelta:
        """Return what was told apart so far, with the calls in the content read."""
        if self._tools is None:
            return MessageDelta(reasoning, content, [])
        return MessageDelta(reasoning, "", []).followed_by(self._joined(self._tools.push(content)))

    def _joined(self, found: MessageDelta) -> MessageDelta:
        """Return what the reader of calls has found, with its reasoning as content where that is not told apart."""
        return MessageDelta("", found.reasoning + found.content, found.calls) if self._joins else found
