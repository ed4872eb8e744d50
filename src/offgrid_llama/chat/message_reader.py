"""MessageReader: what a model writes, told apart as it comes: reasoning, content, and calls of tools (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from offgrid_llama.chat.reasoning import Reasoning, Splitter

if TYPE_CHECKING:
    from offgrid_llama.chat.tool_reader import CallDelta, ToolReader

__all__ = ["MessageReader", "Told"]


class Told(NamedTuple):
    """What there is of each."""

    reasoning: str
    content: str
    calls: list[CallDelta]


class MessageReader:
    """Takes text as it comes.

    Args:
        reasoning: what marks reasoning; None is that there is none.
        inside: whether the prompt has opened it.
        tools: reads the calls; None is that there are none.
    """

    def __init__(self, reasoning: Reasoning | None, *, inside: bool = False, tools: ToolReader | None = None) -> None:
        self._splitter = Splitter(reasoning, inside=inside)
        self._tools = tools

    def push(self, text: str) -> Told:
        """Take more text; return what there is of each."""
        thought, content = self._splitter.push(text)
        if self._tools is None:
            return Told(thought, content, [])
        return Told(thought, *self._tools.push(content))

    def finish(self) -> Told:
        """Return what was held back, at the end of the text."""
        thought, content = self._splitter.finish()
        if self._tools is None:
            return Told(thought, content, [])
        first, calls = self._tools.push(content)
        last, more = self._tools.finish()
        return Told(thought, first + last, calls + more)
