"""How a model writes that it calls a function, found by rendering calls with its template and comparing.

Nothing here knows a model by name. Conversations with one call and with two, with one argument and with two, and with values
of every kind are rendered; what differs tells where names, arguments, ids and numbers stand, and what is around them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING, Any

from offgrid_llama.chat.reasoning import MARK, Reasoning, shared
from offgrid_llama.chat.tool_format import (
    ARGUMENT,
    JSON_IN_TAGS,
    PYTHONIC,
    ArgumentTags,
    Heads,
    Slot,
    Style,
    ToolFormat,
    Value,
)
from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from offgrid_llama.chat.template import ChatTemplate

__all__ = ["find_tool_format"]

MOST_SECONDS = 5.0
"""For all that is rendered; a usual template takes some hundredths of a second."""

_FN, _FN2 = "zorblax", "quimby"
_ARG, _ARG2 = "frobniz", "grault"
_VAL = "Waldo plugh"
_ID, _ID2 = "abcabcabc", "defdefdef"  # some templates want nine letters
_MARKED = f"{_VAL} <corge> &\nfred"
_KINDS: dict[str, Any] = {
    "string": _VAL, "integer": 73501, "number": 73.25, "boolean": True, "null": None, "array": ["waldo", "plugh", True],
    "object": {"waldo": "plugh", "corge": [True, 73501]},
}  # fmt: skip


def find_tool_format(template: ChatTemplate, reasoning: Reasoning | None, controls: Collection[str] = ()) -> ToolFormat:
    """Return how a model writes calls of functions.

    Args:
        template: that of the model.
        reasoning: what marks reasoning in it, as ``find_reasoning`` has found.
        controls: the texts of its control tokens.

    Where a template cannot write calls, or takes too long to, it is ``PYTHONIC`` or ``JSON_IN_TAGS``.
    """
    probe = _Probe(template, reasoning)
    for probe.as_text in (False, True):
        for probe.content in ("", None):
            found = _find(probe)
            if found is not None:
                return replace(found, told=probe.told, written=True)
    return replace(PYTHONIC if PYTHONIC.trigger in controls else JSON_IN_TAGS, told=probe.told)


def _find(probe: _Probe) -> ToolFormat | None:
    """Return the format of the calls that a probe renders, or None where it renders none that can be understood."""
    one = probe.calls([(_FN, {_ARG: _VAL}, _ID)])
    if one is None or _VAL not in one or (_FN not in one and _ID not in one) or f"{{'{_ARG}'" in one:
        return None
    two = probe.calls([(_FN, {_ARG: _VAL}, _ID), (_FN2, {_ARG: _VAL}, _ID2)])
    begin, call, end, separator, index = "", one, "", None, None
    if two is not None:
        same = two.replace(_FN2, _FN).replace(_ID2, _ID)
        found = _numbered(one, same) or _repeated(one, same, _VAL)
        if found is not None:
            begin, call, end, separator, index = _unspaced(*found)
    if separator is None:
        call = probe.unthought(call)
        begin, call, end, _, index = _unspaced(begin, call, end, "", index)
        at = call.rfind(_VAL)
        call = call[:at] + probe.before_turns(call[at:])
    made: dict[str, Any] = {
        "begin": probe.unthought(begin), "end": probe.before_turns(end), "separator": separator,
        "first_index": 0 if index is None else index[1], "as_text": probe.as_text, "content": probe.content,
        "heads": probe.heads and replace(probe.heads, between=probe.heads.between or separator or ""),
    }  # fmt: skip
    places = [] if index is None else [(Slot.INDEX, index[0], index[0] + len(str(index[1])))]
    where = _json(call, {_ARG: _VAL})
    if where is not None:
        slots = _slots(call, [*places, (Slot.ARGUMENTS, *where)])
        spaced = ": " in call[slice(*where)]
        return None if slots is None else ToolFormat(call=slots, spaced=spaced, **made)
    tagged = _tagged(probe, begin, end, call, places)
    return None if tagged is None else ToolFormat(call=tagged[0], tags=tagged[1], **made)


class _Probe:
    """Renders calls, and returns the text that the model would have to write for them."""

    as_text: bool
    content: str | None

    def __init__(self, template: ChatTemplate, reasoning: Reasoning | None) -> None:
        self._template = template
        self._until = perf_counter() + MOST_SECONDS
        parameters = {
            "type": "object",
            "properties": {name: {"type": "string", "description": "A text."} for name in (_ARG, _ARG2)},
            "required": [_ARG],
        }  # fmt: skip
        functions = [{"name": name, "description": "A function.", "parameters": parameters} for name in (_FN, _FN2)]
        tools = [{"type": "function", "function": each} for each in functions]
        self._variables: dict[str, Any] = {"tools": None}
        self._user = {"role": "user", "content": "Do it."}
        self._turns = frozenset(MARK.findall(self._render([self._user], True) or ""))
        self._variables["tools"] = tools
        prompt = self._render([self._user], True) or ""
        answer = self._render([self._user, {"role": "assistant", "content": _VAL}], False) or ""
        self.told = _FN in prompt
        self._before = [prompt, answer.partition(_VAL)[0]]
        self._behind = answer.rpartition(_VAL)[2]
        self._thought = None if reasoning is None else reasoning.end
        self.heads = _heads(prompt, self._before[1], reasoning)
        if self.heads is not None:
            self._before = [prompt]

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str | None:
        if perf_counter() > self._until:
            return None
        try:
            return self._template.render(messages, add_generation_prompt=add_generation_prompt, **self._variables)
        except (ChatTemplateError, TypeError, ValueError):
            return None

    def calls(self, calls: Sequence[tuple[str, Mapping[str, Any], str]]) -> str | None:
        """Return the text of calls, each of a name, arguments and an id; None where the template refuses them."""
        described = []
        for name, arguments, id_ in calls:
            given = json.dumps(arguments) if self.as_text else dict(arguments)
            described.append({"type": "function", "id": id_, "function": {"name": name, "arguments": given}})
        message: dict[str, Any] = {"role": "assistant", "content": self.content, "tool_calls": described}
        text = self._render([self._user, message], False)
        return None if text is None else self._cut(text)

    def _cut(self, text: str) -> str:
        """Return what of a rendered conversation the model has written."""
        begin = max(shared(text, before) for before in self._before)
        begin = min(
            [match.start() for match in MARK.finditer(text) if match.start() < begin < match.end()], default=begin
        )
        end = len(text) - shared(text[::-1], self._behind[::-1])
        end = max([match.end() for match in MARK.finditer(text) if match.start() < end < match.end()], default=end)
        return text[begin:end]

    def unthought(self, text: str) -> str:
        """Return a text without the end of reasoning that it may begin with."""
        return text.rpartition(self._thought)[2] if self._thought else text

    def before_turns(self, text: str) -> str:
        """Return a text up to the first mark that a prompt without calls has as well."""
        return text[: next((match.start() for match in MARK.finditer(text) if match[0] in self._turns), len(text))]


_Parts = tuple[str, str, str, str, "tuple[int, int] | None"]


def _repeated(one: str, two: str, inside: str) -> _Parts | None:
    """Return begin, item, end and separator of a text with one item, by one with two of the same; None if that is not so.

    Where the second item begins is not always sure, as the text before it may be the same as that at its end: the last place
    that cuts no mark is taken.
    """
    more = len(two) - len(one)
    if more <= 0:
        return None
    marks = [match.span() for match in MARK.finditer(one)]

    def cuts(at: int) -> bool:
        return any(begin < at < end for begin, end in marks)

    for at in range(shared(one, two), -1, -1):
        if one[at:] != two[at + more :]:
            break
        added = two[at : at + more]
        n = 0
        while n < min(at, more) and one[at - 1 - n] == added[more - 1 - n]:
            n += 1
        while n and cuts(at - n):
            n -= 1
        item = one[at - n : at]
        if inside in item and not cuts(at):
            return one[: at - n], item, one[at:], added[: more - n], None
    return None


def _heads(prompt: str, answer: str, reasoning: Reasoning | None) -> Heads | None:
    """Return the heads of parts, by a prompt and the same up to the content of an answer; None where there are none."""
    head = answer[len(prompt) :] if answer.startswith(prompt) else ""
    marks = MARK.findall(head)
    if reasoning is None:
        word = head.strip()
        return Heads(head, "", head[len(head.rstrip()) :], "") if word.isalpha() and word != head else None
    between = reasoning.end.removesuffix(head.rstrip())
    if not marks or between == reasoning.end or not MARK.sub("", head).strip() or not between:
        return None
    return Heads(head, reasoning.begin, marks[-1], between)


def _unspaced(begin: str, item: str, end: str, separator: str, index: tuple[int, int] | None) -> _Parts:
    """Return these with the spaces before an item as part of what is before it."""
    n = len(item) - len(item.lstrip())
    return begin + item[:n], item[n:], end, separator + item[:n], None if index is None else (index[0] - n, index[1])


def _numbered(one: str, two: str) -> _Parts | None:
    """Return what `_repeated` does, and where in the item its number stands and what it is; None if there is none."""
    for match in re.finditer(r"(?<!\w)[01](?!\w)", one):
        number = int(match[0])
        for other in re.finditer(rf"(?<!\w){number + 1}(?!\w)", two):
            found = _repeated(one, two[: other.start()] + match[0] + two[other.end() :], _VAL)
            if found is None:
                continue
            begin, item, end, separator, _ = found
            at = match.start() - len(begin)
            if 0 <= at < len(item) and other.start() == match.start() + len(item) + len(separator):
                return begin, item, end, separator, (at, number)
    return None


def _json(call: str, arguments: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return where in a call its arguments stand as a JSON object; None where they do not."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", call):
        try:
            value, end = decoder.raw_decode(call, match.start())
        except ValueError:
            continue
        if value == arguments:
            return match.start(), end
    return None


def _slots(call: str, places: list[tuple[Slot, int, int]]) -> tuple[str | Slot, ...] | None:
    """Return the texts and slots of a call, of which some places are known; None where it has no name."""
    found = list(places)
    for slot, text in ((Slot.NAME, _FN), (Slot.ID, _ID)):
        found += [(slot, match.start(), match.end()) for match in re.finditer(text, call)]
    pieces: list[str | Slot] = []
    at = 0
    for slot, begin, end in sorted(found, key=lambda place: place[1:]):
        if begin < at:
            continue  # in what stands there already
        pieces += [call[at:begin], slot]
        at = end
    pieces.append(call[at:])
    if Slot.NAME in pieces:
        return tuple(piece for piece in pieces if piece)
    if Slot.ID not in pieces:
        return None
    return tuple(Slot.PATH if piece is Slot.ID else piece for piece in pieces if piece)


def _tagged(
    probe: _Probe, begin: str, end: str, call: str, places: list[tuple[Slot, int, int]]
) -> tuple[tuple[str | Slot, ...], ArgumentTags] | None:
    """Return the texts and slots of a call whose arguments stand one by one, and how these are written."""

    def rendered(arguments: Mapping[str, Any]) -> str | None:
        text = probe.calls([(_FN, arguments, _ID)])
        if text is None:
            return None
        at = text.find(call[: call.find(_ARG)]) if _ARG in call else -1
        behind = call[call.rfind(_ARG if call.rfind(_ARG) > call.rfind(_VAL) else _VAL) :]
        return text[at:] if at >= 0 and behind else None

    both = rendered({_ARG: _VAL, _ARG2: _VAL})
    if both is None:
        return None
    # What is around the calls is in all of these at the end, too, and does no harm there.
    single = rendered({_ARG: _VAL}) or call
    found = _repeated(single, both.replace(_ARG2, _ARG), _VAL)
    if found is None or _ARG not in found[1]:
        return None
    before, item, after, separator, _ = found
    first = item.partition(_ARG)[0]

    def written(value: Any) -> str | None:
        """Return what is behind the name of an argument with this value."""
        text = rendered({_ARG: value})
        if text is None or not text.startswith(before + first + _ARG) or not text.endswith(after):
            return None
        return text[len(before + first + _ARG) : len(text) - len(after)]

    values: dict[str, Value] = {}
    for kind, value in _KINDS.items():
        inner = written(value)
        if inner is not None and (read := _value(inner, value)) is not None:
            values[kind] = read
    if "string" not in values:
        return None
    usual = values.get("integer", Value(values["string"].middle, values["string"].end, Style.JSON))
    for kind in _KINDS:
        values.setdefault(kind, usual)
    slots = _slots(
        call[: len(before)] + call[len(before) + len(item) :], [*places, (Slot.ARGUMENTS, len(before), len(before))]
    )
    return None if slots is None else (slots, ArgumentTags(first, separator, values, _fence(values["string"], written)))


def _fence(way: Value, written: Callable[[Any], str | None]) -> tuple[str, str] | None:
    """Return what is around a text that has signs of markup in it, besides what is around others."""
    inner = written(_MARKED) if way.style is Style.RAW else None
    if inner is None or not inner.startswith(way.middle):
        return None
    begin, found, end = inner[len(way.middle) :].removesuffix(way.end).partition(_MARKED)
    return (begin, end) if found and begin and end else None


def _value(text: str, value: Any) -> Value | None:
    """Return how a value is written, by the text behind its name; None where it cannot be told."""
    written: list[tuple[Style, str]] = [(Style.JSON, json.dumps(value)), (Style.PYTHON, repr(value))]
    if isinstance(value, str):
        written.append((Style.RAW, value))
    elif isinstance(value, (list, dict)):
        written.append((Style.JSON, json.dumps(value, separators=(",", ":"))))
    for style, each in written:
        if each in text:
            middle, _, end = text.rpartition(each)
            return Value(middle, end.replace(_ARG, ARGUMENT), style)
    if isinstance(value, (list, dict)) and (own := re.search(r"[\[{].*waldo.*plugh.*[\]}]", text, re.DOTALL)):
        return Value(text[: own.start()], text[own.end() :].replace(_ARG, ARGUMENT), Style.OWN)
    return None
