"""LlamaIndex's messages as an Engine takes them, and the calls that they have."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from offgrid_llama.chat.tools.tool import ToolCall
from offgrid_llama.integrations.contents import content_of, media_part

__all__ = ["calls_of", "messages_of"]

_ROLES = {"chatbot": "assistant", "model": "assistant"}
"""Roles that other services have under other names."""
_RESULTS = ("function", "tool")
"""The roles of the results of calls."""
_NESTED = {"citable": "content", "citation": "cited_content"}
"""The kinds of blocks with blocks in them, and the names under which they have them."""
_MEDIA = ("image", "audio")
"""The kinds of blocks that are pictures and sounds."""
_SILENT = {"cache", "tool_call"}
"""The kinds of blocks that are no content: marks for a service's cache, and calls, which ``calls_of`` reads."""


def messages_of(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as ``Engine.chat`` takes them.

    Raises TypeError and ValueError that name the place of a message or a block, such as a video, that a model cannot
    take.
    """
    return [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, ChatMessage):
        raise TypeError(f"{where} must be a ChatMessage, not {type(message).__name__}")
    said: list[str | dict[str, Any]] = []
    thoughts: list[str] = []
    for at, block in enumerate(message.blocks):
        _read(block, f"{where}.blocks[{at}]", said, thoughts)
    others, role = message.additional_kwargs, str(getattr(message.role, "value", message.role))
    found: dict[str, Any] = {"role": _ROLES.get(role, role), "content": content_of(said, "\n")}
    if others.get("name"):
        found["name"] = others["name"]
    if role in _RESULTS and others.get("tool_call_id"):  # LlamaIndex has it in some messages of the assistant, too
        found["tool_call_id"] = others["tool_call_id"]
    return {**found, **_of_assistant(message, "".join(thoughts))} if found["role"] == "assistant" else found


def _of_assistant(message: ChatMessage, thought: str) -> dict[str, Any]:
    """Return the reasoning and the calls of a message, where there are any."""
    found: dict[str, Any] = {}
    if thought := thought or message.additional_kwargs.get("reasoning_content"):
        found["reasoning_content"] = thought
    if calls := calls_of(message):
        found["tool_calls"] = [call.as_dict() for call in calls]
    return found


def _read(block: Any, where: str, said: list[str | dict[str, Any]], thoughts: list[str]) -> None:
    """Add what a block says to what its message says, or its reasoning to that."""
    kind = block.block_type
    if kind == "text":
        said.append(block.text)
    elif kind in _MEDIA:
        if str(getattr(block, "url", None) or "").startswith(("http:", "https:")):
            raise ValueError(f"{where}: a model of this process fetches no {kind}; give the file, or its path")
        said.append(media_part(kind, getattr(block, f"resolve_{kind}")().read()))
    elif kind == "thinking":
        thoughts.append(block.content or "")
    elif kind in _NESTED:
        inner = getattr(block, _NESTED[kind])
        for at, each in enumerate(inner if isinstance(inner, list) else [inner]):
            _read(each, f"{where}.{_NESTED[kind]}[{at}]", said, thoughts)
    elif kind not in _SILENT:
        raise ValueError(f"{where}: a model takes texts, pictures and sounds, and no {kind!r}")


def calls_of(message: ChatMessage) -> list[ToolCall]:
    """Return the calls of a message: those of its blocks, or else its ``additional_kwargs["tool_calls"]``.

    The latter may be dicts or objects of OpenAI's shape, as services and earlier versions have them, or LlamaIndex's
    ToolSelections.
    """
    blocks = [block for block in message.blocks if block.block_type == "tool_call"]
    if blocks:
        return [_call(block.tool_call_id, block.tool_name, block.tool_kwargs) for block in blocks]
    return [_told_call(told) for told in message.additional_kwargs.get("tool_calls") or ()]


def _told_call(told: Any) -> ToolCall:
    function = _of(told, "function")
    if function is None:
        return _call(_of(told, "tool_id"), _of(told, "tool_name"), _of(told, "tool_kwargs"))
    return _call(_of(told, "id"), _of(function, "name"), _of(function, "arguments"))


def _of(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _call(call_id: str | None, name: str | None, arguments: Any) -> ToolCall:
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(call_id or "", name or "", arguments)
