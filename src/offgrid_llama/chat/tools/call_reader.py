"""ToolReader: tells the calls in a model's text from the rest, as the text arrives (pure).

The text is read once, from left to right, by generators that wait wherever it could go on in more than one way. Each family
of formats has a reader of its own, and all of them read through one Scanner:

- ``CallsInText``: calls between marks in running text, as most models write them.
- ``CallsInParts``: messages of parts with headers, as gpt-oss writes them.
- ``JsonArguments``: the arguments of a call as one JSON object.
- ``TaggedArguments``: arguments one by one between tags, as Qwen3-Coder writes them.
- ``BareCalls``: calls without any marks, where they are the whole answer.

Arguments are passed on as they arrive, as JSON, in whichever way they are written. Spaces and new lines around the marks of
a format may differ from the template's, because models write them with no more care than people do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from .bare_calls import BareCalls
from .call_format import ToolFormat
from .calls_in_parts import CallsInParts
from .calls_in_text import CallsInText
from .deltas import DeltaCollector, MessageDelta
from .json_arguments import JsonArguments
from .scanner import Scanner
from .tagged_arguments import TaggedArguments
from .tool import Tool

__all__ = ["ToolReader"]


class ToolReader:
    """Takes a model's text piece by piece, and returns content and calls; reasoning, too, in a format with headers.

    Args:
        form: how calls are written.
        tools: the tools that may be called; a text that names another one is no call. The types of their parameters tell
            texts from other values where the format does not.
        new_id: returns the id of the call of an index, for formats without ids.
        bare: read calls without the marks of the format, too, where they are the whole answer: one, or several ("many").

    Attributes:
        reads_reasoning: whether the format has headers, so that the reader tells reasoning from content, too.
    """

    def __init__(
        self,
        form: ToolFormat,
        tools: Sequence[Tool],
        new_id: Callable[[int], str],
        *,
        bare: Literal["", "one", "many"] = "",
    ) -> None:
        self.reads_reasoning = form.headers is not None
        known = {tool.name: tool for tool in tools}
        self._bare = BareCalls(known, parallel=bare == "many") if bare and form.anywhere and not form.headers else None
        self._scan = scan = Scanner()
        self._found = found = DeltaCollector(new_id)
        arguments = JsonArguments(scan) if form.tags is None else TaggedArguments(form.tags, known, scan)
        if form.headers is None:
            self._reading = CallsInText(form, known, arguments, scan, found).read()
        else:
            self._reading = CallsInParts(form, form.headers, known, arguments, scan, found).read()

    def push(self, text: str) -> MessageDelta:
        """Take more text; return what it adds to the message."""
        return self._read(text if self._bare is None else self._bare.push(text))

    def _read(self, text: str) -> MessageDelta:
        self._scan.add(text)
        next(self._reading, None)
        return self._found.take()

    def finish(self, *, cut: bool = False) -> MessageDelta:
        """Return what was held back, at the end of the text; without the beginning of a call where the text was cut."""
        held, calls = ("", []) if self._bare is None else self._bare.finish()
        for name, arguments in calls:
            self._found.begin_call(name, "")
            self._found.add_arguments(arguments)
        self._scan.over = True
        self._scan.cut = cut
        return self._read(held)
