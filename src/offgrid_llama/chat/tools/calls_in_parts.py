"""CallsInParts: reads messages of parts, each with a header that says what it is (pure).

gpt-oss writes so, in a format called harmony: reasoning, content and each call are a part of their own, and the header of a
call has the name of the tool.
"""

from __future__ import annotations

from collections.abc import Collection, Generator

from offgrid_llama.chat.marks import MARK, overlap

from .call_format import PartHeaders, Slot, ToolFormat
from .deltas import DeltaCollector
from .json_arguments import JsonArguments
from .scanner import Scanner
from .tagged_arguments import TaggedArguments
from .tool import NAME

__all__ = ["CallsInParts"]

HEADER_MAX_CHARACTERS = 200
"""A longer text without the end of a header has none: it is content."""


class CallsInParts:
    """Reads a message of parts.

    Args:
        form: how calls are written.
        headers: how the parts of a message are told apart.
        names: of the tools. A call of any other name is content, or left out where it is addressed to another recipient.
        arguments: reads the arguments of a call.
        scan: the text to read.
        found: takes reasoning, content and calls.
    """

    def __init__(
        self,
        form: ToolFormat,
        headers: PartHeaders,
        names: Collection[str],
        arguments: JsonArguments | TaggedArguments,
        scan: Scanner,
        found: DeltaCollector,
    ) -> None:
        self._headers = headers
        self._names = names
        self._arguments = arguments
        self._scan = scan
        self._found = found
        self._content_word, self._reasoning_word = headers.words
        self._body = form.body
        self._before_name = (form.begin + form.opening).strip()
        self._recipient = self._before_name.partition("=")[0] + "=" if "=" in self._before_name else ""
        self._stops = _stops(form, headers)
        texts = (headers.content, headers.reasoning, headers.between)
        self._first_marks = {self._before_name, *(mark[0] for text in texts if (mark := MARK.search(text)))}

    def read(self) -> Generator[None]:
        """Read the message."""
        scan = self._scan
        while True:
            header = yield from self._header()
            name = self._called(header)
            if name:
                into = None
                self._found.begin_call(name, "")
                yield from self._call(name)
            else:
                into = self._destination(header)
            stop = yield from self._part(into)
            if not stop:
                return
            if not (yield from scan.literal(self._headers.between)):
                yield from scan.literal(stop)

    def _header(self) -> Generator[None, None, str]:
        """Read a header; return that of content where there is none."""
        scan, end = self._scan, self._headers.end
        while True:
            at = scan.text.find(end, scan.at)
            if at >= 0:
                header = scan.text[scan.at : at]
                scan.at = at + len(end)
                return header
            if scan.cut and self._may_be_header(scan.rest):
                scan.at = len(scan.text)
            if scan.over or len(scan.text) - scan.at > HEADER_MAX_CHARACTERS:
                return self._headers.content
            yield

    def _may_be_header(self, text: str) -> bool:
        """Return whether a text is one that a header begins with, whole or cut off, and what follows it."""
        text = text.lstrip()
        return any(text.startswith(mark) or mark.startswith(text) for mark in self._first_marks)

    def _called(self, header: str) -> str:
        """Return the name of the tool that a part with this header calls, or an empty text."""
        before = self._before_name
        name = NAME.match(header, header.find(before) + len(before)) if before in header else None
        return name[0] if name and name[0] in self._names else ""

    def _destination(self, header: str) -> list[str] | None:
        """Return the list that takes the text of a part without a call; None for a part that is left out."""
        found = self._found
        if self._reasoning_word and self._reasoning_word in header:
            return found.reasoning
        if self._recipient and self._recipient in header and self._content_word not in header:
            return None
        if not self._reasoning_word and header.strip() != self._content_word:
            found.content.append(header + self._headers.end)  # it was no header
        return found.content

    def _call(self, name: str) -> Generator[None]:
        """Read a call up to the end of its part, from behind the header."""
        scan, body = self._scan, self._body
        for at, piece in enumerate(body):
            if isinstance(piece, str):
                yield from scan.as_far_as(piece)
            elif piece is not Slot.ARGUMENTS:
                yield from scan.word()
            else:
                behind = next((text for text in body[at + 1 :] if isinstance(text, str)), "")
                yield from self._arguments.read(name, behind, self._found.add_arguments)

    def _part(self, into: list[str] | None) -> Generator[None, None, str]:
        """Pass on the text of a part; return the text that ends it, or an empty one at the end of the message."""
        scan, stops = self._scan, self._stops
        while True:
            text = scan.rest
            at, stop = min(((place, stop) for stop in stops if (place := text.find(stop)) >= 0), default=(-1, ""))
            held = 0 if scan.over and not scan.cut else max((overlap(text, stop) for stop in stops), default=0)
            n = at if at >= 0 else len(text) - held
            if into is not None:
                into.append(text[:n])
            scan.at += n
            if at >= 0 or scan.over:
                return stop
            yield


def _stops(form: ToolFormat, headers: PartHeaders) -> list[str]:
    """Return the texts that end a part."""
    last = form.call[-1] if form.tags is None and isinstance(form.call[-1], str) else ""
    stops = [mark[0] for text in (headers.between, last) if (mark := MARK.search(text))]
    if headers.between.strip() and not MARK.search(headers.between):
        stops.append(headers.between.strip())
    return stops
