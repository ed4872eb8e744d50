"""ToolReader: tells the calls in a model's text from the rest, as it comes (pure).

The text is read once, from left to right: the reader is a generator that waits for more wherever it could go on in more than
one way. Arguments are given on as they come, as JSON, however they are written. Spaces and new lines around the marks of a
format may be others than the template's, as models do not write them with more care than people.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from offgrid_llama.chat.literal import LiteralEnd, json_types, typed_literal
from offgrid_llama.chat.reasoning import MARK, overlap
from offgrid_llama.chat.scanner import Reading, Scanner
from offgrid_llama.chat.tool import NAME, Tool, ToolCall
from offgrid_llama.chat.tool_format import ARGUMENT, Heads, Slot, Style, ToolFormat, Value

__all__ = ["CallDelta", "Told", "ToolReader", "gathered"]

_LONGEST_HEAD = 200


@dataclass(frozen=True, slots=True)
class CallDelta:
    """Some of a call, as it comes.

    Attributes:
        index: which call of the message it is of.
        id, name: of the call, in its first delta; empty in the others.
        arguments: more of their JSON text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Told(NamedTuple):
    """What there is of each."""

    reasoning: str
    content: str
    calls: list[CallDelta]

    def followed_by(self, other: Told) -> Told:
        """Return this and what comes behind it."""
        return Told(self.reasoning + other.reasoning, self.content + other.content, self.calls + other.calls)


def gathered(deltas: Iterable[CallDelta]) -> list[ToolCall]:
    """Return the calls that deltas are of."""
    calls: list[ToolCall] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(ToolCall(delta.id, delta.name))
        calls[delta.index].arguments += delta.arguments
    return calls


class ToolReader:
    """Takes text as it comes, and gives it back as content and calls; as reasoning, too, where it is in parts with heads.

    Args:
        form: how calls are written.
        tools: what may be called: what names none of them is no call. The types of their parameters tell texts from other
            values where the format does not.
        new_id: gives the id of the call of an index, where the format has none.
    """

    def __init__(self, form: ToolFormat, tools: Sequence[Tool], new_id: Callable[[int], str]) -> None:
        self._form = form
        self._parameters = {tool.name: tool.parameters for tool in tools}
        self._new_id = new_id
        self._scan = Scanner()
        self._into: list[str] | None = None  # arguments that come before the name
        self._index = -1
        self._thought: list[str] = []
        self._content: list[str] = []
        self._calls: list[CallDelta] = []
        self._reading = self._message()

    def push(self, text: str) -> Told:
        """Take more text; return what there is of each."""
        self._scan.add(text)
        next(self._reading, None)
        told = Told("".join(self._thought), "".join(self._content), list(self._calls))
        self._thought.clear()
        self._content.clear()
        self._calls.clear()
        return told

    def finish(self) -> Told:
        """Return what was held back, at the end of the text."""
        self._scan.over = True
        return self.push("")

    # The message ----------------------------------------------------------------------------------------------------

    def _message(self) -> Generator[None]:
        scan = self._scan
        if self._form.heads is not None:
            yield from self._parts(self._form.heads)
            return
        called = False
        while (yield from self._found(called)):
            scan.kept = scan.at
            n_calls = self._index
            yield from self._calls_together()
            called = called or self._index > n_calls
            if self._index == n_calls and scan.kept is not None:  # no call after all
                scan.at, scan.kept = scan.kept + 1, None
                self._content.append(scan.text[scan.at - 1])
            scan.kept = None

    def _parts(self, heads: Heads) -> Generator[None]:
        """Read a message of parts, each of which has a head that tells what it is."""
        scan = self._scan
        form = self._form
        first = form.call[0] if isinstance(form.call[0], str) else ""
        before = (form.begin + first).strip()
        content, thought = heads.words
        last = form.call[-1] if form.tags is None and isinstance(form.call[-1], str) else ""
        stops = [mark[0] for text in (heads.between, last) if (mark := MARK.search(text))]
        if not MARK.search(heads.between) and heads.between.strip():
            stops.append(heads.between.strip())
        while True:
            head = yield from self._head(heads)
            name = NAME.match(head, head.find(before) + len(before)) if before in head else None
            if name and name[0] in self._parameters:
                into = None
                self._begin(name[0], "")
                yield from self._arguments(form.body, name[0])
            else:
                addressed = "=" in before and before.partition("=")[0] + "=" in head
                into = self._thought if thought and thought in head else self._content
                if into is self._content and addressed and content not in head:
                    into = None  # a part for somebody else
                elif not thought and head.strip() != content:
                    self._content.append(head + heads.end)  # it was no head
            stop = yield from self._part(into, stops)
            if not stop:
                return
            if not (yield from scan.literal(heads.between)):
                yield from scan.literal(stop)

    def _head(self, heads: Heads) -> Generator[None, None, str]:
        """Read a head; where there is none, it is that of content."""
        scan = self._scan
        while True:
            at = scan.text.find(heads.end, scan.at)
            if at >= 0:
                head = scan.text[scan.at : at]
                scan.at = at + len(heads.end)
                return head
            if scan.over or len(scan.text) - scan.at > _LONGEST_HEAD:
                return heads.content
            yield

    def _part(self, into: list[str] | None, stops: Sequence[str]) -> Generator[None, None, str]:
        """Give on what is in a part; return what ends it, or nothing at the end of all."""
        scan = self._scan
        while True:
            text = scan.rest
            at, stop = min(((place, stop) for stop in stops if (place := text.find(stop)) >= 0), default=(-1, ""))
            held = 0 if scan.over else max((overlap(text, stop) for stop in stops), default=0)
            n = at if at >= 0 else len(text) - held
            if into is not None:
                into.append(text[:n])
            scan.at += n
            if at >= 0 or scan.over:
                return stop
            yield

    def _found(self, called: bool) -> Reading:
        """Give on content up to where calls may begin; return whether there is such a place."""
        scan = self._scan
        trigger, shorter = self._form.trigger, self._form.shorter
        first = True
        while True:
            text = scan.rest
            if self._form.anywhere:
                at = text.find(trigger)
                sure = len(text) - overlap(text, trigger) if at < 0 else at
                if shorter and (other := text.find(shorter, 0, at if at >= 0 else None)) >= 0:
                    at = sure = other
                elif shorter and at < 0:
                    sure = min(sure, len(text) - overlap(text, shorter))
            elif first and text.lstrip().startswith(trigger):
                at = sure = len(text) - len(text.lstrip())
            elif first and trigger.startswith(text.lstrip()) and not scan.over:  # it may come yet
                at, sure = -1, 0
            else:
                first, at, sure = False, -1, len(text)
            kept = text[:sure].rstrip()  # spaces before a call, and those between two, are nobody's
            if called and not kept.strip():
                kept = ""
            if at >= 0:
                self._content.append(kept)
                scan.at += at
                return True
            if scan.over:
                self._content.append("" if called and not text.strip() else text)
                scan.at = len(scan.text)
                return False
            if kept:
                called = False
            self._content.append(kept)
            scan.at += len(kept)
            yield

    def _calls_together(self) -> Reading:
        """Read all calls that stand together, with what is around them."""
        scan = self._scan
        form = self._form
        if not (yield from scan.literal(form.begin)):
            return False
        first = form.call[0] if isinstance(form.call[0], str) else ""
        while (yield from self._call()):
            if not form.begin.strip() and form.anywhere:
                break  # the next one is found like the first
            if form.separator is None or not (yield from scan.follows(form.separator + first, form.end)):
                break
            yield from scan.literal(form.separator)
        yield from scan.as_far_as(form.end)
        return True

    # One call -------------------------------------------------------------------------------------------------------

    def _call(self) -> Reading:
        """Read one call; return whether it was one."""
        scan = self._scan
        form = self._form
        name, id_, begun = "", "", False
        held = ""  # arguments that come before the name
        for at, piece in enumerate(form.call):
            if isinstance(piece, str):
                short = at == 0 and form.shorter and (yield from scan.follows(form.shorter, piece))
                if begun:
                    yield from scan.as_far_as(piece)
                elif not (yield from scan.literal(form.shorter if short else piece)):
                    return False
            elif piece is Slot.ARGUMENTS:
                behind = next(
                    (text for text in form.call[at + 1 :] if isinstance(text, str)), form.separator or form.end
                )
                self._into = None if begun else []
                if not (yield from (self._json() if form.tags is None else self._tagged(name, behind))) and not begun:
                    return False
                held = "".join(self._into or ())
            else:
                if piece is Slot.PATH:
                    yield from scan.literal("functions.")
                word = yield from scan.word()
                if not word:
                    return begun
                if piece is Slot.ID:
                    id_ = id_ or word
                elif piece is not Slot.INDEX:
                    name = name or word
                    if name not in self._parameters:
                        return begun
                if piece is Slot.PATH:
                    yield from scan.literal(":")
                    id_ = f"functions.{name}:{(yield from scan.word())}"
            if name and not begun and not _id_first(form.call[at + 1 :]):
                self._begin(name, id_)
                begun = True
        if not begun:
            self._begin(name, id_)
            self._into = None
            self._argue(held)
        return True

    def _arguments(self, pieces: Sequence[str | Slot], name: str) -> Generator[None]:
        """Read what is behind the name of a call that has begun."""
        scan = self._scan
        self._into = None
        for at, piece in enumerate(pieces):
            if isinstance(piece, str):
                yield from scan.as_far_as(piece)
            elif piece is not Slot.ARGUMENTS:
                yield from scan.word()
            elif self._form.tags is None:
                yield from self._json()
            else:
                behind = next((text for text in pieces[at + 1 :] if isinstance(text, str)), "")
                yield from self._tagged(name, behind)

    def _begin(self, name: str, id_: str) -> None:
        self._index += 1
        self._scan.kept = None
        self._calls.append(CallDelta(self._index, id_ or self._new_id(self._index), name))

    def _argue(self, text: str) -> None:
        if self._into is not None:
            self._into.append(text)
        elif text:
            self._calls.append(CallDelta(self._index, arguments=text))

    def _json(self) -> Reading:
        """Give on a JSON object as it is; return whether it was one."""
        scan = self._scan
        yield from scan.spaces()
        if scan.text[scan.at : scan.at + 1] != "{":
            return False
        depth, quoted, escaped = 0, False, False
        while True:
            begin = scan.at
            for at in range(begin, len(scan.text)):
                char = scan.text[at]
                if quoted:
                    quoted = escaped or char != '"'
                    escaped = char == "\\" and not escaped
                elif char == '"':
                    quoted = True
                elif char in "{[":
                    depth += 1
                elif char in "}]":
                    depth -= 1
                    if not depth:
                        self._argue(scan.text[begin : at + 1])
                        scan.at = at + 1
                        return True
            self._argue(scan.text[begin:])
            scan.at = len(scan.text)
            if scan.over:
                return False
            yield

    # Arguments one by one -------------------------------------------------------------------------------------------

    def _tagged(self, name: str, behind: str) -> Reading:
        """Read arguments that stand one by one, and give them on as a JSON object; return whether they were whole."""
        scan = self._scan
        tags = self._form.tags
        if tags is None:
            return False
        properties = self._parameters.get(name, {}).get("properties", {})
        ways = list(dict.fromkeys(tags.values.values()))
        n = 0
        while not (yield from scan.follows(behind, tags.begin)):
            if (n and not (yield from scan.literal(tags.separator))) or not (yield from scan.literal(tags.begin)):
                return False
            argument = yield from scan.until(min(ways, key=lambda way: len(way.middle)).middle.strip()[:1] or " ")
            if argument is None:
                return False
            argument = argument.strip()
            which = yield from scan.which([way.middle for way in ways])
            if which is None:
                return False
            middle = ways[which].middle
            yield from scan.literal(middle)
            self._argue(("{" if not n else ", ") + json.dumps(argument, ensure_ascii=False) + ": ")
            same = [way for way in ways if way.middle == middle]
            types = json_types(properties.get(argument))
            if not (yield from self._value(same, types, argument, [tags.separator, behind])):
                return False
            n += 1
        self._argue("}" if n else "{}")
        return True

    def _value(self, ways: Sequence[Value], types: frozenset[str], argument: str, behind: Sequence[str]) -> Reading:
        """Read one value, and give it on as JSON; return whether it was whole."""
        scan = self._scan
        way = ways[0]
        end = way.end.replace(ARGUMENT, argument)
        core = end.strip()
        raw = any(each.style is Style.RAW for each in ways)
        if core and raw and (types == {"string"} or all(each.style is Style.RAW for each in ways)):
            return (yield from self._raw(way.middle, end))
        if core:
            found = yield from scan.until(core)
        else:
            found = yield from self._literal_text([each for each in behind if each.strip()])
        if found is None:
            return False
        if raw:
            found = self._unfenced(_bare(found, way.middle, end))
        yield from scan.literal(end)
        self._argue(json.dumps(typed_literal(found, types, self._quote, raw=raw), ensure_ascii=False))
        return True

    def _raw(self, middle: str, end: str) -> Reading:
        """Give on a text that is written as it is, up to what is behind it, as it comes."""
        scan = self._scan
        core = end.strip()
        before = end[: len(end) - len(end.lstrip())]
        skip = middle[len(middle.rstrip()) :]
        if skip:
            yield from scan.at_least(1)
            if scan.text.startswith(skip, scan.at):
                scan.at += len(skip)
        fence = self._form.tags.fence if self._form.tags is not None else None
        fenced = fence is not None and (yield from scan.literal(fence[0]))
        if fence is not None and fenced:
            core, before = fence[1], ""
        self._argue('"')
        while True:
            text = scan.rest
            at = text.find(core)
            sure = len(text) - overlap(text, before + core) if at < 0 else at
            if at < 0:
                sure = min(sure, len(text) - overlap(text, core))
                if before and text[:sure].endswith(before):
                    sure -= len(before)
            elif before and text[:at].endswith(before):
                sure -= len(before)
            self._argue(json.dumps(text[:sure], ensure_ascii=False)[1:-1])
            if at >= 0:
                scan.at += at
                self._argue('"')
                return (yield from scan.literal(core)) and (not fenced or (yield from scan.literal(end)))
            scan.at += sure
            if scan.over:
                return False
            yield

    def _unfenced(self, text: str) -> str:
        """Return a text without what is around it where it has signs of markup in it."""
        fence = self._form.tags.fence if self._form.tags is not None else None
        if fence is not None and text.startswith(fence[0]) and text.endswith(fence[1]):
            return text[len(fence[0]) : len(text) - len(fence[1])]
        return text

    def _literal_text(self, behind: Sequence[str]) -> Generator[None, None, str | None]:
        """Read a value that ends where it is whole; return it as it is written."""
        scan = self._scan
        yield from scan.spaces()
        end = LiteralEnd([text.strip()[0] for text in behind], self._quote)
        while True:
            n = end.find(scan.rest)
            if n is not None or scan.over:
                break
            yield
        if not n:
            return None
        found = scan.text[scan.at : scan.at + n]
        scan.at += n
        return found

    @property
    def _quote(self) -> str:
        """What is around texts where a format has quotes of its own."""
        tags = self._form.tags
        return "" if tags is None else tags.values["string"].end.strip()


def _id_first(pieces: Sequence[str | Slot]) -> bool:
    """Return whether an id comes yet, before the arguments."""
    slots = [piece for piece in pieces if piece in (Slot.ID, Slot.ARGUMENTS)]
    return slots[:1] == [Slot.ID] and Slot.ARGUMENTS in slots


def _bare(text: str, middle: str, end: str) -> str:
    """Return a value without the spaces that belong to what is around it."""
    before, behind = middle[len(middle.rstrip()) :], end[: len(end) - len(end.lstrip())]
    return text.removeprefix(before).removesuffix(behind) if behind else text.removeprefix(before)
