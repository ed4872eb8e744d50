"""LangChain's messages as an Engine takes them, and its answers as LangChain's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk

from offgrid_llama.chat.tools.tool import ToolCall
from offgrid_llama.integrations.contents import content_of
from offgrid_llama.integrations.logprobs import told_logprobs

from .media import MEDIA, media_of

if TYPE_CHECKING:
    from offgrid_llama.engine.chat_completion import ChatCompletion, Delta
    from offgrid_llama.engine.prompt_logprobs import TokenLogprobs
    from offgrid_llama.model.vocab import Vocab

__all__ = ["PROVIDER", "answer_of", "chunk_of", "messages_of"]

PROVIDER = "offgrid-llama"
"""The name under which LangChain and its tracers know these models."""

_ROLES = (
    (HumanMessage, "user"), (AIMessage, "assistant"), (SystemMessage, "system"), (ToolMessage, "tool"),
    (FunctionMessage, "function"),
)  # fmt: skip
_TEXTS = {"text": "text", "text-plain": "text", "refusal": "refusal"}
"""The kinds of blocks that are texts, and the keys under which they have them."""
_THOUGHTS = {"reasoning": "reasoning", "thinking": "thinking", "reasoning_content": "reasoning_content"}
"""The same of reasoning."""
_ELSEWHERE = {"tool_call", "tool_call_chunk", "invalid_tool_call", "tool_use", "input_json_delta", "function_call"}
"""The kinds of blocks of an AIMessage that its ``tool_calls`` have, too."""


# To the engine ----------------------------------------------------------------------------------------------------------


def messages_of(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """Return messages as ``Engine.chat`` takes them.

    Raises ValueError that names the place of a message or a block, such as an image, that a model of texts cannot take.
    """
    return [_message(message, f"messages[{at}]") for at, message in enumerate(messages)]


def _message(message: BaseMessage, where: str) -> dict[str, Any]:
    content, thought = _content(message, where)
    found: dict[str, Any] = {"role": _role(message, where), "content": content}
    if message.name:
        found["name"] = message.name
    if isinstance(message, ToolMessage):
        found["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage):
        if thought := message.additional_kwargs.get("reasoning_content") or thought:
            found["reasoning_content"] = thought
        if calls := [*_calls(message)]:
            found["tool_calls"] = calls
    return found


def _role(message: BaseMessage, where: str) -> str:
    if isinstance(message, ChatMessage):
        return str(message.role)
    for kind, role in _ROLES:
        if isinstance(message, kind):
            return role
    raise ValueError(f"{where}: a {type(message).__name__} cannot be told to a model")


def _content(message: BaseMessage, where: str) -> tuple[str | list[dict[str, Any]], str]:
    """Return a message's text, or its parts where it has pictures or sound, and its reasoning."""
    if isinstance(message.content, str):
        return message.content, ""
    said: list[str | dict[str, Any]] = []
    thoughts: list[str] = []
    for at, block in enumerate(message.content):
        kind = "text" if isinstance(block, str) else block.get("type", "text")
        if isinstance(block, str):
            said.append(block)
        elif kind in _TEXTS:
            said.append(_text(block, _TEXTS[kind], f"{where}.content[{at}]"))
        elif kind in _THOUGHTS:
            thoughts.append(str(block.get(_THOUGHTS[kind]) or ""))
        elif kind in MEDIA:
            said.append(media_of(block, f"{where}.content[{at}]"))
        elif not (kind in _ELSEWHERE and isinstance(message, AIMessage)):
            raise ValueError(f"{where}.content[{at}]: a model takes texts, pictures and sound, and no {kind!r}")
    return content_of(said, ""), "".join(thoughts)


def _text(block: Mapping[str, Any], key: str, where: str) -> str:
    text = block.get(key)
    if not isinstance(text, str):
        raise ValueError(f"{where} must have a text as {key!r}")
    return text


def _calls(message: AIMessage) -> Iterator[dict[str, Any]]:
    """Yield the calls of a message; one whose arguments could not be read has the text that they were."""
    for call in message.tool_calls:
        yield _call(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False))
    for call in message.invalid_tool_calls:
        yield _call(call["id"], call["name"] or "", call["args"] or "")


def _call(call_id: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


# From the engine --------------------------------------------------------------------------------------------------------


def answer_of(completion: ChatCompletion[Any], index: int, model_name: str, vocab: Vocab) -> AIMessage:
    """Return a whole answer. Its reasoning is ``additional_kwargs["reasoning_content"]``, where LangChain looks for it.

    A call that is cut off is one of ``invalid_tool_calls``; logprobs are ``response_metadata["logprobs"]``.
    """
    answer = completion.completion.answers[index]
    told = completion.message(index)
    thought = told.get("reasoning_content")
    calls = [ToolCall(call["id"], **call["function"]) for call in told.get("tool_calls", ())]
    return AIMessage(
        content=told["content"],
        additional_kwargs={"reasoning_content": thought} if thought else {},
        tool_calls=[tool_call(name=call.name, args=call.parsed, id=call.id) for call in calls if call.is_whole],
        invalid_tool_calls=[
            invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error="the arguments are cut off")
            for call in calls
            if not call.is_whole
        ],
        usage_metadata=_usage(completion, index),
        response_metadata={
            **_metadata(completion.finish_reason_of(index), model_name, completion.warnings),
            **_logprobs(vocab, answer.tokens, answer.logprobs),
        },
    )


def chunk_of(delta: Delta, completion: ChatCompletion[Any], model_name: str, vocab: Vocab) -> AIMessageChunk:
    """Return some of an answer. The last one has the numbers of tokens, and why the answer ends."""
    metadata, ended = _logprobs(vocab, delta.tokens, delta.logprobs), dict[str, Any]()
    if delta.finish_reason is not None:
        ended["usage_metadata"] = _usage(completion, delta.index)
        metadata |= _metadata(delta.finish_reason, model_name, delta.warnings)
    return AIMessageChunk(
        content=delta.content,
        additional_kwargs={"reasoning_content": delta.reasoning} if delta.reasoning else {},
        tool_call_chunks=[
            tool_call_chunk(name=call.name or None, args=call.arguments, id=call.id or None, index=call.index)
            for call in delta.tool_calls
        ],
        response_metadata=metadata,
        **ended,
    )


def _logprobs(vocab: Vocab, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]) -> dict[str, Any]:
    found = told_logprobs(vocab, tokens, logprobs)
    return {} if found is None else {"logprobs": found}


def _usage(completion: ChatCompletion[Any], index: int) -> dict[str, Any]:
    """Return the numbers of tokens of the prompt and of one answer."""
    n_prompt, n_answer = completion.usage.prompt_tokens, len(completion.completion.answers[index].tokens)
    return {
        "input_tokens": n_prompt,
        "output_tokens": n_answer,
        "total_tokens": n_prompt + n_answer,
        "input_token_details": {"cache_read": completion.usage.cached_tokens},
        "output_token_details": {"reasoning": completion.reasoning_tokens(index)},
    }


def _metadata(reason: str | None, model_name: str, warnings: Sequence[str]) -> dict[str, Any]:
    found = {"finish_reason": reason and str(reason), "model_name": model_name, "model_provider": PROVIDER}
    return {**found, "warnings": [*warnings]} if warnings else found
