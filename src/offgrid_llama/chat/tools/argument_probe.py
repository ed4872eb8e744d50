"""How arguments are written that stand one by one, found by rendering calls with values of every kind (pure)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .call_format import ARGUMENT, ArgumentTags, Slot, Style, ValueTags
from .call_layout import OTHER_PARAMETER, PARAMETER, TEXT, Layout, Place, find_repeated, find_slots
from .literal import read_literal

__all__ = ["find_tagged_arguments"]

_MARKUP_TEXT = f"{TEXT} <corge> &\nfred"
_SAMPLES: dict[str, Any] = {
    "string": TEXT, "integer": 73501, "number": 73.25, "boolean": True, "null": None, "array": ["waldo", "plugh", True],
    "object": {"waldo": "plugh", "corge": [True, 73501]},
}  # fmt: skip
"""A value of each type of JSON Schema, which is known again however it is written."""


def find_tagged_arguments(
    call: str, places: Sequence[Place], render: Callable[[Mapping[str, Any]], str | None]
) -> tuple[tuple[str | Slot, ...], ArgumentTags] | None:
    """Return the texts and slots of a call, and how its arguments are written; None where that cannot be told.

    Args:
        call: the text of a call whose only argument PARAMETER is TEXT.
        places: the slots of the call that are known already.
        render: returns the text of a call with other arguments, and the text around it; None where the template
            refuses them.
    """
    probe = _ArgumentProbe(call, render)
    layout = probe.layout()
    if layout is None or PARAMETER not in layout.item:
        return None
    before_name = layout.item.partition(PARAMETER)[0]
    values = probe.values(layout, before_name)
    if values is None:
        return None
    at = len(layout.begin)
    slots = find_slots(call[:at] + call[at + len(layout.item) :], [*places, (Slot.ARGUMENTS, at, at)])
    if slots is None:
        return None
    fence = _fence(values["string"], lambda value: probe.behind_name(layout, before_name, value))
    return slots, ArgumentTags(before_name, layout.separator or "", values, fence)


class _ArgumentProbe:
    """Renders calls with other arguments, and compares."""

    def __init__(self, call: str, render: Callable[[Mapping[str, Any]], str | None]) -> None:
        self._call = call
        self._render = render

    def layout(self) -> Layout | None:
        """Return where in the call its argument stands, by a call with two arguments."""
        both = self._rendered({PARAMETER: TEXT, OTHER_PARAMETER: TEXT})
        if both is None:
            return None
        # The texts around the calls are at the end of all of these, where they do no harm.
        single = self._rendered({PARAMETER: TEXT}) or self._call
        return find_repeated(single, both.replace(OTHER_PARAMETER, PARAMETER), TEXT)

    def values(self, layout: Layout, before_name: str) -> dict[str, ValueTags] | None:
        """Return how values are written, by their type; None where it cannot be told of a text."""
        values: dict[str, ValueTags] = {}
        for kind, value in _SAMPLES.items():
            text = self.behind_name(layout, before_name, value)
            quote = values["string"].end.strip() if "string" in values else ""
            if text is not None and (tags := _value_tags(text, value, quote)) is not None:
                values[kind] = tags
        text_tags = values.get("string")
        if text_tags is None:
            return None
        usual = values.get("integer", ValueTags(text_tags.middle, text_tags.end, Style.JSON))
        for kind in _SAMPLES:
            values.setdefault(kind, usual)
        return values

    def behind_name(self, layout: Layout, before_name: str, value: Any) -> str | None:
        """Return the text behind the name of an argument with this value; None where a call with it differs elsewhere."""
        text = self._rendered({PARAMETER: value})
        begin = layout.begin + before_name + PARAMETER
        if text is None or not text.startswith(begin) or not text.endswith(layout.end):
            return None
        return text[len(begin) : len(text) - len(layout.end)]

    def _rendered(self, arguments: Mapping[str, Any]) -> str | None:
        """Return a rendered text from the beginning of the call."""
        text = self._render(arguments)
        if text is None or PARAMETER not in self._call:
            return None
        at = text.find(self._call[: self._call.find(PARAMETER)])
        return text[at:] if at >= 0 else None


def _fence(tags: ValueTags, behind_name: Callable[[Any], str | None]) -> tuple[str, str] | None:
    """Return the texts around a raw text that looks like markup, which other texts do not have around them."""
    inner = behind_name(_MARKUP_TEXT) if tags.style is Style.RAW else None
    if inner is None or not inner.startswith(tags.middle):
        return None
    begin, found, end = inner[len(tags.middle) :].removesuffix(tags.end).partition(_MARKUP_TEXT)
    return (begin, end) if found and begin and end else None


def _value_tags(text: str, value: Any, quote: str) -> ValueTags | None:
    """Return how a value is written, by the text behind its name; None where it cannot be told.

    ``quote`` is the text behind texts, which stands around those within values in a format that has quotes of its own.
    """
    written: list[tuple[Style, str]] = [(Style.JSON, json.dumps(value)), (Style.PYTHON, repr(value))]
    if isinstance(value, str):
        written.append((Style.RAW, value))
    elif isinstance(value, (list, dict)):
        written.append((Style.JSON, json.dumps(value, separators=(",", ":"))))
    for style, each in written:
        if each in text:
            middle, _, end = text.rpartition(each)
            return ValueTags(middle, end.replace(PARAMETER, ARGUMENT), style)
    own = re.search(r"[\[{].*waldo.*plugh.*[\]}]", text, re.DOTALL)
    if own and isinstance(value, (list, dict)) and read_literal(own[0], quote) == value:
        return ValueTags(text[: own.start()], text[own.end() :].replace(PARAMETER, ARGUMENT), Style.OWN)
    return None
