"""ToolFormat: how a model writes that it calls a function."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from offgrid_llama.chat.literal import KIND_OF
from offgrid_llama.chat.reasoning import MARK

__all__ = ["ARGUMENT", "JSON_IN_TAGS", "PYTHONIC", "ArgumentTags", "Heads", "Slot", "Style", "ToolFormat", "Value"]

_MARKUP = re.compile(r"[<&\n]")

ARGUMENT = "\ue000"
"""Stands for an argument's name in what is behind its value."""


class Slot(Enum):
    """What stands between the texts of a call."""

    NAME = "name"
    ARGUMENTS = "arguments"
    ID = "id"
    PATH = "path"
    """An id with the name in it: ``functions.NAME:INDEX``."""
    INDEX = "index"


class Style(Enum):
    """How a value is written."""

    RAW = "raw"
    """A text, as it is."""
    JSON = "json"
    PYTHON = "python"
    """As Python writes it: True, None, single quotes."""
    OWN = "own"
    """Like JSON, with quotes of its own around texts and none around keys."""


@dataclass(frozen=True)
class Value:
    """What is between an argument's name and its value, what is behind it, and how the value is written."""

    middle: str
    end: str
    style: Style


@dataclass(frozen=True)
class ArgumentTags:
    """Arguments that are not one JSON object: of each its name and its value, between texts.

    Attributes:
        begin: before the name.
        separator: between two arguments.
        values: how a value of each of JSON Schema's types is written.
        fence: what is before and behind a text as it is that has signs of markup in it; None is nothing.
    """

    begin: str
    separator: str
    values: Mapping[str, Value]
    fence: tuple[str, str] | None = None


@dataclass(frozen=True)
class Heads:
    """How messages are written that are made of parts, each with a head that tells what it is.

    Attributes:
        content: the head of what is answered.
        thought: that of what is thought before; empty where nothing is.
        end: behind a head, and at the end of both of these.
        between: behind a part, before the next head.
    """

    content: str
    thought: str
    end: str
    between: str

    @property
    def words(self) -> tuple[str, str]:
        """What tells content, and thoughts, in a head."""
        content, thought = (MARK.sub("", head.removesuffix(self.end)).strip() for head in (self.content, self.thought))
        return content, thought


@dataclass(frozen=True)
class ToolFormat:
    """How calls are written.

    Attributes:
        begin, end: around all calls of a message.
        call: of one call its texts and slots, in order.
        separator: between two calls; None where there can be only one.
        first_index: the number of the first call, where they are numbered.
        tags: how arguments are written; None is as a JSON object.
        spaced: whether JSON has a space after commas and colons.
        as_text: whether the template takes arguments as JSON text, not as an object.
        content: what the content of a message is that has nothing but calls.
        heads: how messages are made of parts, if they are; a call then is a part, and its name is in the head.
        told: whether the template tells the model of the functions that there are.
        written: whether the template writes calls; where it does not, they are part of a message's content.
    """

    begin: str
    end: str
    call: tuple[str | Slot, ...]
    separator: str | None
    first_index: int = 0
    tags: ArgumentTags | None = None
    spaced: bool = True
    as_text: bool = False
    content: str | None = ""
    heads: Heads | None = None
    told: bool = False
    written: bool = False

    @property
    def texts(self) -> Iterator[str]:
        """All texts that it writes."""
        yield from (self.begin, self.end, self.separator or "")
        if self.heads is not None:
            yield from (self.heads.content, self.heads.thought, self.heads.between)
        yield from (piece for piece in self.call if isinstance(piece, str))
        if self.tags is not None:
            yield from (self.tags.begin, self.tags.separator)
            for value in self.tags.values.values():
                yield from (value.middle, value.end)

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any], str]]) -> str:
        """Return the text of calls, each of a name, arguments and an id."""
        written = []
        for n, (name, arguments, id_) in enumerate(calls, self.first_index):
            known = {Slot.NAME: name, Slot.ID: id_, Slot.INDEX: str(n), Slot.PATH: f"functions.{name}:{n}"}
            known[Slot.ARGUMENTS] = self._arguments(arguments)
            written.append("".join(piece if isinstance(piece, str) else known[piece] for piece in self.call))
        return self.begin + (self.separator or "").join(written) + self.end

    def _arguments(self, arguments: Mapping[str, Any]) -> str:
        tags = self.tags
        if tags is None:
            separators = (", ", ": ") if self.spaced else (",", ":")
            return json.dumps(arguments, separators=separators, ensure_ascii=False)
        written = []
        for name, value in arguments.items():
            way = tags.values[KIND_OF.get(type(value), "object")]
            text = _in_style(value, way.style, tags.values["string"].end)
            if tags.fence is not None and way.style is Style.RAW and _MARKUP.search(text):
                text = tags.fence[0] + text + tags.fence[1]
            written.append(tags.begin + name + way.middle + text + way.end.replace(ARGUMENT, name))
        return tags.separator.join(written)

    @property
    def body(self) -> tuple[str | Slot, ...]:
        """Of a call in a part of its own, the texts and slots behind the head."""
        if self.heads is None:
            return self.call
        behind = self.call[self.call.index(Slot.NAME) + 1 :]
        first = behind[0] if behind and isinstance(behind[0], str) else ""
        rest = first.partition(self.heads.end)[2]
        return (*([rest] if rest else []), *behind[1:])

    @property
    def trigger(self) -> str:
        """What calls are known by where text may stand as well: a mark, or the first word of all that they begin with."""
        first = self.call[0]
        text = (self.begin + (first if isinstance(first, str) else "")).lstrip()
        mark = MARK.match(text)
        return mark[0] if mark else re.split(r"(?<=[^\s\[{])[\s\[{]|\s", text, maxsplit=1)[0]

    @property
    def shorter(self) -> str:
        """What calls begin with where a model leaves out the first of two marks; empty where there is one."""
        first = self.call[0]
        mark = MARK.match(first) if isinstance(first, str) and not self.begin.strip() else None
        rest = first[mark.end() :].strip() if mark and isinstance(first, str) else ""
        return rest if rest.startswith("<") else ""

    @property
    def anywhere(self) -> bool:
        """Whether calls may follow text; where they are no more than JSON they are known at the beginning only."""
        return self.trigger[:1] not in ("{", "[") or bool(MARK.match(self.trigger))


def _in_style(value: Any, style: Style, quote: str) -> str:
    """Return a value as a style writes it."""
    if style is Style.RAW:
        return str(value)
    if style is Style.PYTHON:
        return repr(value)
    if style is Style.JSON or not isinstance(value, (str, list, dict)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return quote + value + quote
    if isinstance(value, list):
        return "[" + ",".join(_in_style(each, style, quote) for each in value) + "]"
    return "{" + ",".join(f"{key}:{_in_style(each, style, quote)}" for key, each in value.items()) + "}"


JSON_IN_TAGS = ToolFormat(
    "", "", ('<tool_call>\n{"name": "', Slot.NAME, '", "arguments": ', Slot.ARGUMENTS, "}\n</tool_call>"), "\n"
)
"""What most models write that were trained to call functions, and what the others are asked to write."""

_LIKE_PYTHON = Value("=", "", Style.PYTHON)
PYTHONIC = ToolFormat(
    "<|tool_call_start|>[", "]<|tool_call_end|>", (Slot.NAME, "(", Slot.ARGUMENTS, ")"), ", ",
    tags=ArgumentTags("", ", ", dict.fromkeys(KIND_OF.values(), _LIKE_PYTHON)),
)  # fmt: skip
"""What models with a token ``<|tool_call_start|>`` write, the templates of which do not show it."""
