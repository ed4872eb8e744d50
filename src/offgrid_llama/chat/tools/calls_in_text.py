"""CallsInText: finds calls between marks in running text, and reads them (pure).

Most models write calls so: ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, with other text around them.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass, field

from offgrid_llama.chat.marks import overlap

from .call_format import Slot, ToolFormat
from .deltas import DeltaCollector
from .json_arguments import JsonArguments
from .scanner import Reading, Scanner
from .tagged_arguments import TaggedArguments

__all__ = ["CallsInText"]


@dataclass(slots=True)
class _Call:
    """A call as far as it is read.

    Attributes:
        begun: whether it was passed on.
        held: arguments that came before the name.
    """

    name: str = ""
    id: str = ""
    begun: bool = False
    held: list[str] = field(default_factory=list)


class CallsInText:
    """Reads a message in which calls stand between marks.

    Args:
        form: how calls are written.
        names: of the tools. A call of any other name is text.
        arguments: reads the arguments of a call.
        scan: the text to read.
        found: takes content and calls.
    """

    def __init__(
        self,
        form: ToolFormat,
        names: Collection[str],
        arguments: JsonArguments | TaggedArguments,
        scan: Scanner,
        found: DeltaCollector,
    ) -> None:
        self._form = form
        self._names = names
        self._arguments = arguments
        self._scan = scan
        self._found = found
        self._trigger = form.trigger
        self._short_trigger = form.short_trigger
        self._locate = self._locate_anywhere if form.anywhere else self._locate_first
        self._may_be_first = True
        self._spaces = ""  # before what may be a call
        self._complete_at = _complete_at(form.call)
        at = form.call.index(Slot.ARGUMENTS) + 1 if Slot.ARGUMENTS in form.call else 0
        texts = (piece for piece in form.call[at:] if isinstance(piece, str))
        self._behind_arguments = next(texts, form.separator or form.end)

    def read(self) -> Generator[None]:
        """Read the message."""
        scan, found = self._scan, self._found
        called = False
        while (yield from self._content(called)):
            scan.return_to = scan.at
            last = found.index
            yield from self._calls_together()
            if scan.cut and scan.starved:  # the rest is part of a call
                return
            if found.index > last:
                called = True
            elif scan.return_to is not None:  # it was no call: its first character is text
                scan.at, scan.return_to = scan.return_to + 1, None
                found.content.append(self._spaces + scan.text[scan.at - 1])
            scan.return_to = None

    # The text around calls ------------------------------------------------------------------------------------------

    def _content(self, called: bool) -> Reading:
        """Pass on content up to the place where calls may begin; return False at the end of the message.

        Spaces before a call and between calls are left out. ``called`` says that a call came just before.
        """
        scan, content = self._scan, self._found.content
        self._may_be_first = True
        while True:
            text = scan.rest
            at, sure = self._locate(text)
            kept = text[:sure].rstrip()
            if called and not kept.strip():
                kept = ""
            if at >= 0:
                content.append(kept)
                self._spaces = text[len(kept) : at]
                scan.at += at
                return True
            if scan.over:
                content.append(self._last(text, sure, called))
                scan.at = len(scan.text)
                return False
            if kept:
                called = False
            content.append(kept)
            scan.at += len(kept)
            yield

    def _last(self, text: str, sure: int, called: bool) -> str:
        """Return what is content of the last text, up to ``sure`` for certain."""
        if self._scan.cut:
            text = "" if called and self._scan.starved else text[:sure]  # the rest is the beginning of a mark
        return "" if called and not text.strip() else text

    def _locate_anywhere(self, text: str) -> tuple[int, int]:
        """Return where calls begin, or -1, and up to where the text is certainly content."""
        if not text:
            return -1, 0  # also for a format without a trigger, whose calls may begin at any character
        at = text.find(self._trigger)
        short = self._short_trigger
        if not short:
            return at, (len(text) - overlap(text, self._trigger) if at < 0 else at)
        other = text.find(short, 0, at if at >= 0 else len(text))
        if other >= 0:
            return other, other
        if at >= 0:
            return at, at
        return -1, len(text) - max(overlap(text, self._trigger), overlap(text, short))

    def _locate_first(self, text: str) -> tuple[int, int]:
        """Return the same for a format whose calls are all of a message."""
        if not self._may_be_first:
            return -1, len(text)
        stripped = text.lstrip()
        if stripped.startswith(self._trigger):
            at = len(text) - len(stripped)
            return at, at
        if self._trigger.startswith(stripped) and (self._scan.cut or not self._scan.over):  # the rest of it may come
            return -1, 0
        self._may_be_first = False
        return -1, len(text)

    def _calls_together(self) -> Reading:
        """Read the calls that stand together, with the texts around them; return whether they began as calls do."""
        scan, form = self._scan, self._form
        if not (yield from scan.literal(form.begin)):
            return False
        while (yield from self._call()):
            if not form.begin.strip() and form.anywhere:
                break  # the next call is found as the first was
            if form.separator is None or not (yield from scan.follows(form.separator + form.opening, form.end)):
                break
            yield from scan.literal(form.separator)
        yield from scan.as_far_as(form.end)
        return True

    # One call -------------------------------------------------------------------------------------------------------

    def _call(self) -> Reading:
        """Read one call; return whether it was one."""
        call = _Call()
        for at, piece in enumerate(self._form.call):
            if isinstance(piece, str):
                fits = yield from self._text(call, piece, first=at == 0)
            elif piece is Slot.ARGUMENTS:
                give = self._found.add_arguments if call.begun else call.held.append
                fits = yield from self._arguments.read(call.name, self._behind_arguments, give)
                self._scan.starved |= self._scan.cut and not fits
                fits = fits or call.begun
            else:
                fits = yield from self._word(call, piece)
            if not fits:
                return call.begun
            if at == self._complete_at:
                self._begin(call)
        return True

    def _text(self, call: _Call, text: str, *, first: bool) -> Reading:
        """Read a text of a call; return False where another one stands there, and the call has not begun."""
        scan, short = self._scan, self._short_trigger
        if call.begun:
            yield from scan.as_far_as(text)
            return True
        if first and short and (yield from scan.follows(short, text)):
            text = short
        return (yield from scan.literal(text))

    def _word(self, call: _Call, slot: Slot) -> Reading:
        """Read a name, an id or a number; return whether it is one, and a name that of a tool."""
        scan = self._scan
        if slot is Slot.PATH:
            yield from scan.literal("functions.")
        word = yield from scan.word()
        if scan.over and scan.at == len(scan.text):
            is_name = slot is Slot.NAME or (slot is Slot.PATH and not call.name)
            scan.starved |= not is_name or any(name.startswith(word) for name in self._names)
        if not word:
            return False
        if slot is Slot.ID:
            call.id = call.id or word
        elif slot is not Slot.INDEX:
            call.name = call.name or word
            if call.name not in self._names:
                return False
        if slot is Slot.PATH:
            yield from scan.literal(":")
            call.id = f"functions.{call.name}:{(yield from scan.word())}"
        return True

    def _begin(self, call: _Call) -> None:
        """Pass on a call: from here on it is one, and no later text changes that."""
        call.begun = True
        self._scan.return_to = None
        self._found.begin_call(call.name, call.id)
        self._found.add_arguments("".join(call.held))


def _complete_at(pieces: Sequence[str | Slot]) -> int:
    """Return with which piece of a call its name is known, and its id too where that comes before the arguments."""
    name = next((at for at, piece in enumerate(pieces) if piece in (Slot.NAME, Slot.PATH)), len(pieces) - 1)
    arguments = pieces.index(Slot.ARGUMENTS) if Slot.ARGUMENTS in pieces else 0
    ids = (at for at, piece in enumerate(pieces) if piece is Slot.ID and name < at < arguments)
    return max(ids, default=name)
