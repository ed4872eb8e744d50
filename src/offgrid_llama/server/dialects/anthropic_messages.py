"""Conversations of Anthropic's API as OpenAI has them, which is what templates know."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from offgrid_llama.server.api_error import ApiError

from .anthropic_blocks import (
    AssistantMessage,
    ImageBlock,
    Message,
    NamedTool,
    SystemPrompt,
    TextBlock,
    ThinkingBlock,
    ToolReference,
    ToolRemovalBlock,
    ToolResultBlock,
    ToolUseBlock,
    UserMessage,
    changes_of_tools,
)
from .anthropic_signature import hidden
from .anthropic_tools import MAX_TOOLS, Tool

__all__ = ["blocks_of", "offered_tools", "openai_messages"]

BILLING_HEADER = "x-anthropic-billing-header:"
"""The beginning of a line that Claude Code puts before its system prompt. It is not for the model, and it differs in each
request, so that no prompt would have the beginning of an earlier one."""


def blocks_of(content: str | Sequence[Any] | None) -> Sequence[Any]:
    """Return a content as blocks: a text is one."""
    return [TextBlock(type="text", text=content)] if isinstance(content, str) else content or ()


def openai_messages(system: SystemPrompt | None, messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return a conversation in OpenAI's shape. Raises ApiError for the result of a call that is not there."""
    made: list[dict[str, Any]] = [{"role": "system", "content": _system_text(system)}] if system else []
    called: set[str] = set()
    for at, message in enumerate(messages):
        if isinstance(message, UserMessage):
            _check_results(message, called, f"messages.{at}.content")
            made += _of_user(message)
        elif isinstance(message, AssistantMessage):
            calls = [block for block in blocks_of(message.content) if isinstance(block, ToolUseBlock)]
            called.update(call.id for call in calls)
            made.append(_of_assistant(message, calls))
        elif not message.content or len(changes_of_tools(message)) < len(blocks_of(message.content)):
            made.append({"role": "system", "content": _text(message.content)})
    return made


def offered_tools(tools: Iterable[Tool], messages: Iterable[Message]) -> list[Tool]:
    """Return the tools that a model has at the end of a conversation.

    Raises ApiError for a name that no tool has, and for more than MAX_TOOLS tools.

    Args:
        tools: those of the request. Also those with ``defer_loading`` are offered, as nothing here would find them.
        messages: of the conversation, some of which may add and remove tools.
    """
    known = {tool.name: tool for tool in tools}
    offered = dict(known)
    for at, message in enumerate(messages):
        for i, block in changes_of_tools(message):
            if not isinstance(block.tool, NamedTool):
                tool = block.tool.definition
                known[tool.name] = offered[tool.name] = tool
            elif block.tool.name not in known:
                param = f"messages.{at}.content.{i}.tool.name"
                raise ApiError(400, f"{param}: there is no tool {block.tool.name!r}", code="invalid_value", param=param)
            elif isinstance(block, ToolRemovalBlock):
                offered.pop(block.tool.name, None)
            else:
                offered[block.tool.name] = known[block.tool.name]
    if len(offered) > MAX_TOOLS:
        raise ApiError(400, f"messages: they make more than {MAX_TOOLS} tools", code="invalid_value", param="messages")
    return list(offered.values())


def _check_results(message: UserMessage, called: set[str], place: str) -> None:
    for at, block in enumerate(blocks_of(message.content)):
        if isinstance(block, ToolResultBlock) and block.tool_use_id not in called:
            param = f"{place}.{at}.tool_use_id"
            why = f"no tool_use block before it has the id {block.tool_use_id!r}"
            raise ApiError(400, f"{param}: {why}", code="invalid_value", param=param)


def _of_user(message: UserMessage) -> list[dict[str, Any]]:
    """Return the results of calls, which follow the calls, and then what the user says."""
    blocks = blocks_of(message.content)
    made = [
        {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block)}
        for block in blocks
        if isinstance(block, ToolResultBlock)
    ]
    if len(made) < len(blocks) or not blocks:
        made.append({"role": "user", "content": _content([_part(block) for block in blocks])})
    return made


def _result(block: ToolResultBlock) -> str | list[dict[str, Any]]:
    """Return the content of a result. Templates know no errors, so a text says that it is one."""
    parts = [_part(each) for each in blocks_of(block.content)]
    return _content(["Error: ", *parts] if block.is_error else parts)


def _part(block: Any) -> str | dict[str, Any]:
    """Return a block of a user, or of a result, as a text or as OpenAI's part with a picture."""
    if isinstance(block, ImageBlock):
        return {"type": "image_url", "image_url": {"url": block.source.url}}
    if isinstance(block, ToolReference):
        return block.tool_name
    return block.text if isinstance(block, TextBlock) else ""


def _content(parts: Sequence[str | dict[str, Any]]) -> str | list[dict[str, Any]]:
    """Return texts, joined; among pictures, they are parts."""
    if all(isinstance(part, str) for part in parts):
        return "".join(map(str, parts))
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts if part]


def _of_assistant(message: AssistantMessage, calls: Sequence[ToolUseBlock]) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": _text(message.content)}
    thinking = [
        block.thinking or hidden(block.signature)
        for block in blocks_of(message.content)
        if isinstance(block, ThinkingBlock)
    ]
    if any(thinking):
        made["reasoning_content"] = "\n".join(thinking)
    if calls:
        made["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.input or {}}}
            for call in calls
        ]
    return made


def _text(content: str | Sequence[Any]) -> str:
    """Return the texts of a content, joined."""
    return "".join(block.text for block in blocks_of(content) if isinstance(block, TextBlock))


def _system_text(system: SystemPrompt) -> str:
    texts = [block.text for block in blocks_of(system)]
    return "".join(text.partition("\n")[2] if text.startswith(BILLING_HEADER) else text for text in texts)
