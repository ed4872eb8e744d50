"""Items of the Responses API as the messages of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offgrid_llama.server.api_error import ApiError

from .custom_tools import arguments_of
from .responses_items import Item
from .responses_tools import full_name

__all__ = ["messages_of"]


def messages_of(items: Sequence[Item], instructions: str | None = None) -> list[dict[str, Any]]:
    """Return items as messages, the instructions first.

    A reasoning, the text after it and the calls after that are one message of the assistant. Calls that were cut are left
    out with their outputs: their arguments are not whole.

    Raises ApiError for an output that belongs to no call before it.
    """
    made = _Messages()
    if instructions:
        made.messages.append({"role": "system", "content": instructions})
    for item in items:
        made.add(item)
    return made.messages


class _Messages:
    """Messages, made of one item after the other."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._reasoning = ""
        self._turn: dict[str, Any] | None = None  # the assistant's message, to which a call can be added
        self._call_ids: set[str] = set()
        self._cut_ids: set[str] = set()

    def add(self, item: Item) -> None:
        """Add an item."""
        kind = item["type"]
        if kind == "reasoning":
            self._reasoning += _text(item.get("content") or item["summary"])
            self._turn = None
        elif kind == "message":
            self._add_message(item)
        elif kind in ("function_call", "custom_tool_call"):
            self._add_call(item)
        else:
            self._add_output(item)

    def _add_message(self, item: Item) -> None:
        if item["role"] == "assistant":
            self._begin_turn(_text(item["content"]))
        else:
            self._end_turn()
            self.messages.append({"role": item["role"], "content": _content(item["content"])})

    def _add_call(self, item: Item) -> None:
        if item.get("status") == "incomplete":
            self._cut_ids.add(item["call_id"])
            return
        turn = self._turn or self._begin_turn(None)
        arguments = arguments_of(item["input"]) if item["type"] == "custom_tool_call" else item["arguments"]
        function = {"name": full_name(item["name"], item.get("namespace")), "arguments": arguments}
        turn.setdefault("tool_calls", []).append({"id": item["call_id"], "type": "function", "function": function})
        self._call_ids.add(item["call_id"])

    def _add_output(self, item: Item) -> None:
        id_, output = item["call_id"], item["output"]
        if id_ in self._cut_ids:
            return
        if id_ not in self._call_ids:
            raise ApiError(
                400, f"No tool call found for function call output with call_id {id_}.", code="invalid_value",
                param="input",
            )  # fmt: skip
        self._end_turn()
        content = output if isinstance(output, str) else _content(output)
        self.messages.append({"role": "tool", "tool_call_id": id_, "content": content})

    def _begin_turn(self, content: str | None) -> dict[str, Any]:
        turn: dict[str, Any] = {"role": "assistant", "content": content}
        if self._reasoning:
            turn["reasoning_content"] = self._reasoning
        self._reasoning = ""
        self.messages.append(turn)
        self._turn = turn
        return turn

    def _end_turn(self) -> None:
        self._reasoning = ""
        self._turn = None


def _text(parts: Sequence[dict[str, Any]]) -> str:
    return "".join(part["text"] for part in parts)


def _content(parts: Sequence[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return texts, joined; among pictures and sounds, they are parts."""
    if all("text" in part for part in parts):
        return _text(parts)
    return [{"type": "text", "text": part["text"]} if "text" in part else part for part in parts]
