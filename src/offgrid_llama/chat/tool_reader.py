"""ToolReader: tells the calls in a model's text from the rest, as it comes (pure).

The text is read once, from left to right: the reader is a generator that waits for more wherever it could go on in more than
one way. Arguments are given on as they come, as JSON, however they are written. Spaces and new lines around the marks of a
format may be others than the template's, as models do not write them with more care than people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offgrid_llama.chat.literal import LiteralEnd, read_literal
from offgrid_llama.chat.reasoning import MARK, overlap
from offgrid_llama.chat.tool import NAME, Tool
from offgrid_llama.chat.tool_format import ARGUMENT, KIND_OF, Slot, Style, ToolFormat, Value

__all__ = ["CallDelta", "ToolReader"]

_Reading = Generator[None, None, bool]  # what waits at each yield, and returns whether it has found what it looked for


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


class ToolReader:
    """Takes text as it comes, and gives it back as content and calls.

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
        self._text = ""
        self._at = 0
        self._kept: int | None = None  # where to go back to, if what looks like a call turns out to be none
        self._over = False
        self._index = -1
        self._content: list[str] = []
        self._calls: list[CallDelta] = []
        self._reading = self._message()

    def push(self, text: str) -> tuple[str, list[CallDelta]]:
        """Take more text; return what there is of content and of calls."""
        begin = self._at if self._kept is None else self._kept
        self._text = self._text[begin:] + text
        self._at -= begin
        if self._kept is not None:
            self._kept = 0
        next(self._reading, None)
        content, calls = "".join(self._content), list(self._calls)
        self._content.clear()
        self._calls.clear()
        return content, calls

    def finish(self) -> tuple[str, list[CallDelta]]:
        """Return what was held back, at the end of the text."""
        self._over = True
        return self.push("")

    # The message ----------------------------------------------------------------------------------------------------

    def _message(self) -> Generator[None]:
        if self._form.plain:
            yield from self._headed(self._form.plain)
            return
        called = False
        while (yield from self._found(called)):
            self._kept = self._at
            n_calls = self._index
            yield from self._calls_together()
            called = called or self._index > n_calls
            if self._index == n_calls and self._kept is not None:  # no call after all
                self._at, self._kept = self._kept + 1, None
                self._content.append(self._text[self._at - 1])
            self._kept = None

    def _headed(self, plain: str) -> Generator[None]:
        """Read a message of parts, each of which begins with a name or with what content has in its place."""
        separator = self._form.separator or ""
        while True:
            if not (yield from self._literal(plain)):
                self._kept = self._at
                if not (yield from self._call()):
                    self._at, self._kept = self._kept or 0, None
            while True:
                at = self._text.find(separator, self._at) if separator else -1
                end = len(self._text) - overlap(self._text[self._at :], separator) if at < 0 and not self._over else at
                self._content.append(self._text[self._at : end if end >= 0 else None])
                self._at = end if end >= 0 else len(self._text)
                if at >= 0:
                    break
                if self._over:
                    return
                yield
            yield from self._literal(separator)

    def _found(self, called: bool) -> _Reading:
        """Give on content up to where calls may begin; return whether there is such a place."""
        trigger, shorter = self._form.trigger, self._form.shorter
        first = True
        while True:
            text = self._text[self._at :]
            if self._form.anywhere:
                at = text.find(trigger)
                sure = len(text) - overlap(text, trigger) if at < 0 else at
                if shorter and (other := text.find(shorter, 0, at if at >= 0 else None)) >= 0:
                    at = sure = other
                elif shorter and at < 0:
                    sure = min(sure, len(text) - overlap(text, shorter))
            elif first and text.lstrip()[: len(trigger)] == trigger[: len(text.lstrip())] and not self._over:
                at = len(text) - len(text.lstrip()) if text.lstrip().startswith(trigger) else -1
                sure = 0
            else:
                at = len(text) - len(text.lstrip()) if first and text.lstrip().startswith(trigger) else -1
                first, sure = False, len(text) if at < 0 else at
            kept = text[:sure].rstrip()  # spaces before a call, and those between two, are nobody's
            if called and not kept.strip():
                kept = ""
            if at >= 0:
                self._content.append(kept)
                self._at += at
                return True
            if self._over:
                self._content.append("" if called and not text.strip() else text)
                self._at = len(self._text)
                return False
            if kept:
                called = False
            self._content.append(kept)
            self._at += len(kept)
            yield

    def _calls_together(self) -> _Reading:
        """Read all calls that stand together, with what is around them."""
        form = self._form
        if not (yield from self._literal(form.begin)):
            return False
        first = form.call[0] if isinstance(form.call[0], str) else ""
        while (yield from self._call()):
            if not form.begin.strip() and form.anywhere:
                break  # the next one is found like the first
            if form.separator is None or not (yield from self._follows(form.separator + first, form.end)):
                break
            yield from self._literal(form.separator)
        yield from self._pass(form.end)
        return True

    # One call -------------------------------------------------------------------------------------------------------

    def _call(self) -> _Reading:
        """Read one call; return whether it was one."""
        form = self._form
        name, id_, begun = "", "", False
        held = ""  # arguments that come before the name
        for at, piece in enumerate(form.call):
            if isinstance(piece, str):
                short = at == 0 and form.shorter and (yield from self._follows(form.shorter, piece))
                if begun:
                    yield from self._pass(piece)
                elif not (yield from self._literal(form.shorter if short else piece)):
                    return False
            elif piece is Slot.ARGUMENTS:
                behind = next(
                    (text for text in form.call[at + 1 :] if isinstance(text, str)), form.separator or form.end
                )
                self._into: list[str] | None = None if begun else []
                if not (yield from (self._json() if form.tags is None else self._tagged(name, behind))) and not begun:
                    return False
                held = "".join(self._into or ())
            else:
                if piece is Slot.PATH:
                    yield from self._literal("functions.")
                word = yield from self._word()
                if not word:
                    return begun
                if piece is Slot.ID:
                    id_ = id_ or word
                elif piece is not Slot.INDEX:
                    name = name or word
                    if name not in self._parameters:
                        return begun
                if piece is Slot.PATH:
                    yield from self._literal(":")
                    id_ = f"functions.{name}:{(yield from self._word())}"
            if name and not begun and not _id_first(form.call[at + 1 :]):
                self._begin(name, id_)
                begun = True
        if not begun:
            self._begin(name, id_)
            self._into = None
            self._argue(held)
        return True

    def _begin(self, name: str, id_: str) -> None:
        self._index += 1
        self._kept = None
        self._calls.append(CallDelta(self._index, id_ or self._new_id(self._index), name))

    def _argue(self, text: str) -> None:
        if self._into is not None:
            self._into.append(text)
        elif text:
            self._calls.append(CallDelta(self._index, arguments=text))

    def _word(self) -> Generator[None, None, str]:
        """Read a name, an id or a number."""
        yield from self._spaces()
        while True:
            text = self._text[self._at :]
            match = NAME.match(text)
            n = match.end() if match else 0
            if n < len(text) or self._over:
                break
            yield
        word = self._text[self._at : self._at + n]
        self._at += n
        return word

    def _json(self) -> _Reading:
        """Give on a JSON object as it is; return whether it was one."""
        yield from self._spaces()
        if self._text[self._at : self._at + 1] != "{":
            return False
        depth, quoted, escaped = 0, False, False
        while True:
            begin = self._at
            for at in range(begin, len(self._text)):
                char = self._text[at]
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
                        self._argue(self._text[begin : at + 1])
                        self._at = at + 1
                        return True
            self._argue(self._text[begin:])
            self._at = len(self._text)
            if self._over:
                return False
            yield

    # Arguments one by one -------------------------------------------------------------------------------------------

    def _tagged(self, name: str, behind: str) -> _Reading:
        """Read arguments that stand one by one, and give them on as a JSON object; return whether they were whole."""
        tags = self._form.tags
        if tags is None:
            return False
        properties = self._parameters.get(name, {}).get("properties", {})
        ways = list(dict.fromkeys(tags.values.values()))
        n = 0
        while not (yield from self._follows(behind, tags.begin)):
            if (n and not (yield from self._literal(tags.separator))) or not (yield from self._literal(tags.begin)):
                return False
            argument = yield from self._until(min(ways, key=lambda way: len(way.middle)).middle.strip()[:1] or " ")
            if argument is None:
                return False
            argument = argument.strip()
            which = yield from self._which([way.middle for way in ways])
            if which is None:
                return False
            middle = ways[which].middle
            yield from self._literal(middle)
            self._argue(("{" if not n else ", ") + json.dumps(argument, ensure_ascii=False) + ": ")
            same = [way for way in ways if way.middle == middle]
            types = _types(properties.get(argument))
            if not (yield from self._value(same, types, argument, [tags.separator, behind])):
                return False
            n += 1
        self._argue("}" if n else "{}")
        return True

    def _value(self, ways: Sequence[Value], types: frozenset[str], argument: str, behind: Sequence[str]) -> _Reading:
        """Read one value, and give it on as JSON; return whether it was whole."""
        way = ways[0]
        end = way.end.replace(ARGUMENT, argument)
        core = end.strip()
        raw = any(each.style is Style.RAW for each in ways)
        if core and raw and (types == {"string"} or all(each.style is Style.RAW for each in ways)):
            return (yield from self._raw(way.middle, end))
        if core:
            found = yield from self._until(core)
        else:
            found = yield from self._literal_text([each for each in behind if each.strip()])
        if found is None:
            return False
        if raw:
            found = _bare(found, way.middle, end)
        yield from self._literal(end)
        self._argue(json.dumps(_as_typed(found, types, self._quote, raw=raw), ensure_ascii=False))
        return True

    def _raw(self, middle: str, end: str) -> _Reading:
        """Give on a text that is written as it is, up to what is behind it, as it comes."""
        core = end.strip()
        before = end[: len(end) - len(end.lstrip())]
        skip = middle[len(middle.rstrip()) :]
        if skip:
            yield from self._at_least(1)
            if self._text.startswith(skip, self._at):
                self._at += len(skip)
        self._argue('"')
        while True:
            text = self._text[self._at :]
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
                self._at += at
                self._argue('"')
                return (yield from self._literal(core))
            self._at += sure
            if self._over:
                return False
            yield

    def _literal_text(self, behind: Sequence[str]) -> Generator[None, None, str | None]:
        """Read a value that ends where it is whole; return it as it is written."""
        yield from self._spaces()
        end = LiteralEnd([text.strip()[0] for text in behind], self._quote)
        while True:
            n = end.find(self._text[self._at :])
            if n is not None or self._over:
                break
            yield
        if not n:
            return None
        found = self._text[self._at : self._at + n]
        self._at += n
        return found

    @property
    def _quote(self) -> str:
        """What is around texts where a format has quotes of its own."""
        tags = self._form.tags
        return "" if tags is None else tags.values["string"].end.strip()

    # What all of these are made of ----------------------------------------------------------------------------------

    def _at_least(self, n: int) -> Generator[None]:
        while len(self._text) - self._at < n and not self._over:
            yield

    def _spaces(self) -> Generator[None]:
        while True:
            text = self._text[self._at :]
            self._at += len(text) - len(text.lstrip())
            if self._at < len(self._text) or self._over:
                return
            yield

    def _literal(self, text: str) -> _Reading:
        """Pass a text, whatever spaces are before or in it; return False and stay where it is not there."""
        return (yield from self._which([text], take=True)) is not None

    def _pass(self, text: str) -> Generator[None]:
        """Pass as much of a text as is there, in whole marks, whatever spaces are in it."""
        for wanted in re.findall(rf"{MARK.pattern}|\S", text):
            if not (yield from self._literal(wanted)):
                return

    def _follows(self, one: str, other: str) -> _Reading:
        """Return whether the first of two texts comes next, rather than the second or anything else; stay there."""
        return (yield from self._which([one, other])) == 0

    def _which(self, texts: Sequence[str], *, take: bool = False) -> Generator[None, None, int | None]:
        """Return which of several texts comes next, the longest of those that do, whatever spaces are in it."""
        cores = ["".join(text.split()) for text in texts]
        while True:
            lengths = [_match(self._text, self._at, core) for core in cores]
            if -1 not in lengths or self._over:
                break
            yield
        fitting = [i for i, length in enumerate(lengths) if length is not None and length >= 0]
        if not fitting:
            return None
        best = max(fitting, key=lambda i: (len(cores[i]), -i))
        if take:
            self._at += lengths[best] or 0
        return best

    def _until(self, mark: str) -> Generator[None, None, str | None]:
        """Return what comes before a mark, and go there; None where it does not come."""
        while True:
            at = self._text.find(mark, self._at)
            if at >= 0:
                found = self._text[self._at : at]
                self._at = at
                return found
            if self._over:
                return None
            yield


def _id_first(pieces: Sequence[str | Slot]) -> bool:
    """Return whether an id comes yet, before the arguments."""
    slots = [piece for piece in pieces if piece in (Slot.ID, Slot.ARGUMENTS)]
    return slots[:1] == [Slot.ID] and Slot.ARGUMENTS in slots


def _match(text: str, at: int, core: str) -> int | None:
    """Return how far a text without spaces reaches at a place, with the spaces that are there; -1 is not known yet."""
    begin = at
    for wanted in core:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return -1
        if text[at] != wanted:
            return None
        at += 1
    return at - begin


def _bare(text: str, middle: str, end: str) -> str:
    """Return a value without the spaces that belong to what is around it."""
    before, behind = middle[len(middle.rstrip()) :], end[: len(end) - len(end.lstrip())]
    return text.removeprefix(before).removesuffix(behind) if behind else text.removeprefix(before)


def _as_typed(text: str, types: frozenset[str], quote: str, *, raw: bool) -> Any:
    """Return a value of the types that it may have: a text only where it can be nothing else, if texts are not quoted."""
    if types == {"string"} and raw:
        return text
    value = read_literal(text, quote)
    if raw and isinstance(value, str) and text.strip()[:1] not in ('"', "'"):
        return text
    kind = KIND_OF[type(value)]
    fits = not types or kind in types or (kind == "integer" and "number" in types)
    return value if fits or "string" not in types else text


def _types(schema: Any) -> frozenset[str]:
    """Return the JSON types that a schema allows; none is any."""
    if not isinstance(schema, Mapping):
        return frozenset()
    kinds = schema.get("type")
    if kinds is not None:
        return frozenset([kinds] if isinstance(kinds, str) else kinds)
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if values is not None:
        return frozenset(KIND_OF.get(type(value), "object") for value in values)
    for key in ("anyOf", "oneOf"):
        ways = [_types(each) for each in schema.get(key, ())]
        if ways and all(ways):
            return frozenset().union(*ways)
    return frozenset()
