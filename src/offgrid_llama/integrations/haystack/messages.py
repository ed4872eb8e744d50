"""Haystack's messages as an Engine takes them, and its answers as Haystack's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from haystack.dataclasses import ChatMessage, TextContent, ToolCall

from offgrid_llama.chat.tools.tool import ToolCall as Call
from offgrid_llama.engine.chat_completion import ChatCompletion
from offgrid_llama.integrations.contents import content_of, media_part
from offgrid_llama.media.data_url import from_base64

__all__ = ["answer_of", "messages_of", "metadata"]


def messages_of(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """Return messages as ``Engine.chat`` takes them: each result of a tool is one of its own.

    Raises TypeError for what is no message, and ValueError for files; both name the place.
    """
    return [found for at, message in enumerate(messages) for found in _of(message, f"messages[{at}]")]


def _of(message: ChatMessage, where: str) -> Iterator[dict[str, Any]]:
    if not isinstance(message, ChatMessage):
        raise TypeError(f"{where} must be a ChatMessage, not {type(message).__name__}")
    if getattr(message, "files", None):  # older versions have none
        raise ValueError(f"{where}: a model takes texts and pictures, and no files")
    for result in message.tool_call_results:
        yield {
            "role": "tool", "tool_call_id": result.origin.id, "name": result.origin.tool_name,
            "content": _result(result.result, where),
        }  # fmt: skip
    if message.tool_call_results and not message.texts:
        return
    said = [part for part in map(_said, message._content) if part is not None]
    found: dict[str, Any] = {"role": message.role.value, "content": content_of(said, "")}
    if message.name:
        found["name"] = message.name
    if thoughts := "".join(each.reasoning_text for each in message.reasonings):
        found["reasoning_content"] = thoughts
    if message.tool_calls:
        found["tool_calls"] = [_call(call) for call in message.tool_calls]
    yield found


def _said(part: Any) -> str | dict[str, Any] | None:
    """Return a text, or the part of a message that a picture is; None for what is no content."""
    if isinstance(part, TextContent):
        return str(part.text)
    file = getattr(part, "base64_image", None)
    return None if file is None else media_part("image", from_base64(file))


def _result(result: Any, where: str) -> str:
    """Return the result of a tool as a text."""
    if isinstance(result, str):
        return result
    for part in result:
        if not isinstance(part, TextContent):
            raise ValueError(f"{where}: this model takes texts only, and a tool's result has a {type(part).__name__}")
    return "".join(part.text for part in result)


def _call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": call.id, "type": "function", "function": {"name": call.tool_name, "arguments": arguments}}


def answer_of(completion: ChatCompletion[Any], index: int, model_name: str) -> ChatMessage:
    """Return a whole answer. Calls that are cut off are in its ``meta``, as "cut_tool_calls"."""
    told = completion.message(index)
    calls = [Call(call["id"], **call["function"]) for call in told.get("tool_calls", ())]
    meta = metadata(completion, index, model_name)
    if cut := [call.as_dict() for call in calls if not call.is_whole]:
        meta["cut_tool_calls"] = cut
    return ChatMessage.from_assistant(
        told["content"] if told["content"] or not calls else None,
        meta=meta,
        tool_calls=[ToolCall(call.name, call.parsed, call.id) for call in calls if call.is_whole],
        reasoning=told.get("reasoning_content"),
    )


def metadata(completion: ChatCompletion[Any], index: int, model_name: str) -> dict[str, Any]:
    """Return what is told beside an answer that has ended: the model, why it ended, and the numbers of tokens."""
    usage = completion.usage
    n_answer = len(completion.completion.answers[index].tokens)
    reason = completion.finish_reason_of(index)
    found: dict[str, Any] = {
        "model": model_name, "index": index, "finish_reason": reason and str(reason),
        "usage": {
            "prompt_tokens": usage.prompt_tokens, "completion_tokens": n_answer,
            "total_tokens": usage.prompt_tokens + n_answer,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": completion.reasoning_tokens(index)},
        },
    }  # fmt: skip
    if warnings := completion.warnings:
        found["warnings"] = [*warnings]
    return found
