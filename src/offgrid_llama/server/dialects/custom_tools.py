"""Custom tools: they take a text. The model calls them as functions with one argument, ``input``."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from offgrid_llama.text.json_text import whole_escapes
from offgrid_llama.worker.frames import CallChunk

from .lark_regex import regex_of

__all__ = ["CustomCalls", "InputReader", "arguments_of", "as_function", "input_of", "input_schema"]

_BEGINNING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_SECOND_HALF = r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_MAY_BE_SECOND_HALF = r"(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?\Z"
_CHARACTERS = re.compile(
    r'(?:[^"\\]|\\(?:["\\/bfnrt]|u(?![dD][89abAB])[0-9a-fA-F]{4}|'
    rf"u[dD][89abAB][0-9a-fA-F]{{2}}(?:{_SECOND_HALF}|(?!{_MAY_BE_SECOND_HALF}))))*"
)
"""Characters of a string of JSON. Half of one that ends the text is not among them: the other half may come."""


def input_schema(syntax: str | None = None, definition: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema of the arguments of a custom tool.

    A regular expression holds for the text, and so does a grammar that can be written as one: without recursion, and not
    large. The model is told any other one.

    Args:
        syntax: of the text: "regex" or "lark"; None is any text.
        definition: the regular expression, or the grammar.
    """
    told: dict[str, Any] = {}
    if definition is not None:
        told["description"] = f"A text of this grammar:\n{definition}"
        regex = definition if syntax == "regex" else regex_of(definition)
        if regex is not None:
            told["pattern"] = f"^(?:{regex})$"
    return {"type": "object", "properties": {"input": {"type": "string", **told}}, "required": ["input"]}


def as_function(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return a tool of chat completions."""
    fields = (("name", name), ("description", description), ("parameters", parameters))
    return {"type": "function", "function": {field: value for field, value in fields if value is not None}}


def arguments_of(given: str) -> str:
    """Return the arguments of a call with a text, as JSON."""
    return json.dumps({"input": given})


def input_of(arguments: str) -> str:
    """Return the text of a call's arguments, as far as it has come."""
    return InputReader().push(arguments)


class InputReader:
    """Reads the text of a custom tool's call from its arguments as they come."""

    def __init__(self) -> None:
        self._unread = ""
        self._has_begun = False

    def push(self, arguments: str) -> str:
        """Return the text that the next part of the arguments adds."""
        self._unread += arguments
        if not self._has_begun:
            begin = _BEGINNING.match(self._unread)
            if begin is None:
                return ""
            self._has_begun, self._unread = True, self._unread[begin.end() :]
        found = _CHARACTERS.match(self._unread)
        characters = "" if found is None else found[0]
        self._unread = self._unread[len(characters) :]
        return str(json.loads(whole_escapes(f'"{characters}"'), strict=False))


class CustomCalls:
    """The calls of one response to chat completions, some of which are of custom tools.

    Args:
        custom: the names of these.
    """

    def __init__(self, custom: Collection[str]) -> None:
        self._custom = custom
        self._readers: dict[tuple[int, int], InputReader] = {}  # by the answer and the call, of calls of custom tools

    def whole(self, calls: Sequence[CallChunk]) -> list[dict[str, Any]]:
        """Return the calls of a message."""
        return [
            {"id": call.id, "type": "custom", "custom": {"name": call.name, "input": input_of(call.arguments)}}
            if call.name in self._custom
            else {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]

    def deltas(self, index: int, calls: Sequence[CallChunk]) -> list[dict[str, Any]]:
        """Return what a part of the answer ``index`` adds to its calls."""
        return [self._delta((index, call.index), call) for call in calls]

    def _delta(self, place: tuple[int, int], call: CallChunk) -> dict[str, Any]:
        if call.name in self._custom:
            self._readers[place] = InputReader()
        reader = self._readers.get(place)
        if reader is None:
            kind, told = "function", {"arguments": call.arguments}
        else:
            kind, told = "custom", {"input": reader.push(call.arguments)}
        if not call.name:
            return {"index": call.index, kind: told}
        return {"index": call.index, "id": call.id, "type": kind, kind: {"name": call.name, **told}}
