"""ToolFormat: how a model writes that it calls a function."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from offgrid_llama.chat.marks import MARK
from offgrid_llama.sampling.grammar.json_shapes import KIND_OF

__all__ = [
    "ARGUMENT",
    "JSON_IN_TAGS",
    "PYTHONIC",
    "ArgumentTags",
    "PartHeaders",
    "Slot",
    "Style",
    "ToolFormat",
    "ValueTags",
]

_MARKUP = re.compile(r"[<&\n]")
"""The characters that make a text look like markup."""

ARGUMENT = "\ue000"
"""Stands for the argument's name in the text behind its value, where a format repeats it there."""


class Slot(Enum):
    """The variable pieces of a call."""

    NAME = "name"
    ARGUMENTS = "arguments"
    ID = "id"
    PATH = "path"
    """An id that has the name in it: ``functions.NAME:INDEX``."""
    INDEX = "index"


class Style(Enum):
    """How a value is written."""

    RAW = "raw"
    """A text without quotes."""
    JSON = "json"
    PYTHON = "python"
    """As Python writes it: True, None, single quotes."""
    OWN = "own"
    """Like JSON, with quotes of the format's own around texts and none around keys."""


@dataclass(frozen=True)
class ValueTags:
    """How the value of an argument is written.

    Attributes:
        middle: the text between the argument's name and its value.
        end: the text behind the value.
        style: how the value itself is written.
    """

    middle: str
    end: str
    style: Style


@dataclass(frozen=True)
class ArgumentTags:
    """How arguments are written that are not one JSON object but stand one by one: name and value, with texts around them.

    Attributes:
        begin: the text before a name.
        separator: the text between two arguments.
        values: how values are written, by their type in JSON Schema.
        fence: the texts around a raw text that looks like markup; None where the format has none.
    """

    begin: str
    separator: str
    values: Mapping[str, ValueTags]
    fence: tuple[str, str] | None = None


@dataclass(frozen=True)
class PartHeaders:
    """How messages are written that consist of parts, each with a header that says what it is.

    Attributes:
        content: the header of the answer.
        reasoning: the header of reasoning; empty where the format has none.
        end: the text that ends a header, these two included.
        between: the text behind a part, before the next header.
    """

    content: str
    reasoning: str
    end: str
    between: str

    @property
    def words(self) -> tuple[str, str]:
        """The words in a header that tell content and reasoning."""
        content, reasoning = (
            MARK.sub("", header.removesuffix(self.end)).strip() for header in (self.content, self.reasoning)
        )
        return content, reasoning


@dataclass(frozen=True)
class ToolFormat:
    """How calls are written.

    Attributes:
        begin, end: the texts around all calls of a message.
        call: the texts and slots of one call, in order.
        separator: the text between two calls; None where a message can have one call only.
        first_index: the number of the first call, where calls are numbered.
        tags: how arguments are written; None is as one JSON object.
        spaced: whether JSON has a space after commas and colons.
        as_text: whether the template takes arguments as JSON text, not as an object.
        content: the content of a message that has nothing but calls.
        headers: how the parts of a message are told apart, where it has parts; a call then is a part, and its header has the
            name of the tool.
        lists_tools: whether the template tells the model which tools it may call.
        writes_calls: whether the template writes calls; where it does not, they become part of a message's content.
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
    headers: PartHeaders | None = None
    lists_tools: bool = False
    writes_calls: bool = False

    @property
    def texts(self) -> Iterator[str]:
        """All texts of the format."""
        yield from (self.begin, self.end, self.separator or "")
        if self.headers is not None:
            yield from (self.headers.content, self.headers.reasoning, self.headers.between)
        yield from (piece for piece in self.call if isinstance(piece, str))
        if self.tags is not None:
            yield from (self.tags.begin, self.tags.separator)
            for value in self.tags.values.values():
                yield from (value.middle, value.end)

    def write(self, calls: Sequence[tuple[str, Mapping[str, Any], str]]) -> str:
        """Return the text of calls, each given as name, arguments and id."""
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

    @cached_property
    def opening(self) -> str:
        """The text that a call begins with; empty where it begins with a slot."""
        first = self.call[0]
        return first if isinstance(first, str) else ""

    @cached_property
    def body(self) -> tuple[str | Slot, ...]:
        """The texts and slots of a call behind the header of its part."""
        if self.headers is None:
            return self.call
        behind = self.call[self.call.index(Slot.NAME) + 1 :]
        first = behind[0] if behind and isinstance(behind[0], str) else ""
        rest = first.partition(self.headers.end)[2]
        return (*([rest] if rest else []), *behind[1:])

    @cached_property
    def trigger(self) -> str:
        """The text that shows that calls begin: a mark, or the first word of the text before the first name."""
        text = (self.begin + self.opening).lstrip()
        mark = MARK.match(text)
        return mark[0] if mark else re.split(r"(?<=[^\s\[{])[\s\[{]|\s", text, maxsplit=1)[0]

    @cached_property
    def short_trigger(self) -> str:
        """The text that calls begin with where a model leaves out the first of two marks; empty where there is one mark."""
        mark = MARK.match(self.opening) if not self.begin.strip() else None
        rest = self.opening[mark.end() :].strip() if mark else ""
        return rest if rest.startswith("<") else ""

    @cached_property
    def anywhere(self) -> bool:
        """Whether calls may follow other text. Calls that are bare JSON are known at the beginning of a message only."""
        return self.trigger[:1] not in ("{", "[") or bool(MARK.match(self.trigger))


def _in_style(value: Any, style: Style, quote: str) -> str:
    """Return the text of a value in a style; ``quote`` stands around texts in a style of its own."""
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
"""The format of most models that were trained to call functions. Other models are asked to write it."""

_LIKE_PYTHON = ValueTags("=", "", Style.PYTHON)
PYTHONIC = ToolFormat(
    "<|tool_call_start|>[", "]<|tool_call_end|>", (Slot.NAME, "(", Slot.ARGUMENTS, ")"), ", ",
    tags=ArgumentTags("", ", ", dict.fromkeys(KIND_OF.values(), _LIKE_PYTHON)),
)  # fmt: skip
"""The format of models with a token ``<|tool_call_start|>``, whose templates do not show it."""
