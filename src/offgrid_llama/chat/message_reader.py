"""MessageReader: what a model writes, told apart as it comes: reasoning, content, and calls of tools (pure)."""

from __future__ import annotations

from offgrid_llama.chat.reasoning import Reasoning, Splitter
from offgrid_llama.chat.tool_reader import Told, ToolReader

__all__ = ["MessageReader"]


class MessageReader:
    """Takes text as it comes.

    Args:
        reasoning: what marks reasoning; None is that there is none.
        inside: whether the prompt has opened it.
        tools: reads the calls; None is that there are none.
        parts: whether that reads the reasoning, too.
    """

    def __init__(
        self,
        reasoning: Reasoning | None,
        *,
        inside: bool = False,
        tools: ToolReader | None = None,
        parts: bool = False,
    ) -> None:
        self._splitter = Splitter(None if parts else reasoning, inside=inside)
        self._join = parts and reasoning is None
        self._tools = tools

    def push(self, text: str) -> Told:
        """Take more text; return what there is of each."""
        thought, content = self._splitter.push(text)
        return self._told(thought, content)

    def finish(self) -> Told:
        """Return what was held back, at the end of the text."""
        told = self._told(*self._splitter.finish())
        return told if self._tools is None else told.followed_by(self._told("", "", over=True))

    def _told(self, thought: str, content: str, *, over: bool = False) -> Told:
        if self._tools is None:
            return Told(thought, content, [])
        found = self._tools.finish() if over else self._tools.push(content)
        if self._join:
            found = Told("", found.reasoning + found.content, found.calls)
        return Told(thought + found.reasoning, found.content, found.calls)
