"""OpenAI's Responses API: what its requests ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.worker.generation import Conversation

from .dialect import Asked
from .further_schemas import FurtherFields
from .openai_options import conversation, names
from .openai_schemas import SamplingFields
from .responses_items import Item, input_items, new_response_id, references
from .responses_messages import messages_of
from .responses_schemas import ConversationFields, InputTokensRequest, ResponseRequest
from .responses_tools import called_tools, chat_choice, chat_tools
from .responses_writer import Form, ResponsesWriter

__all__ = ["Turn", "read_alone", "read_input_tokens", "read_response"]

_AS_IN_CHATS = {*SamplingFields.model_fields, *FurtherFields.model_fields}
_LOGPROBS, _ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"


@dataclass(frozen=True)
class Turn:
    """A request's turn in a conversation.

    Attributes:
        response_id: of the response.
        context: the items of the responses before it.
        input: the items of the request.
    """

    response_id: str
    context: Sequence[Item]
    input: Sequence[Item]


def read_response(body: ResponseRequest, turn: Turn) -> Asked:
    """Return what a request of ``/v1/responses`` asks for. Raises ApiError."""
    include = body.include or ()
    said = body.model_dump(include=_AS_IN_CHATS, exclude_unset=True, exclude_none=True, by_alias=True)
    for name in ("bare_calls", "reasoning_budget", "stream"):
        if getattr(body, name) is not None:
            said[name] = getattr(body, name)
    if body.max_output_tokens is not None:
        said["max_tokens"] = body.max_output_tokens
    if _LOGPROBS in include:
        said |= {"logprobs": True, "top_logprobs": body.top_logprobs or 0}
    form = Form(
        turn.response_id, _settings(body), len(turn.input),
        tools=called_tools(body.tools or ()),
        with_encrypted=_ENCRYPTED in include, with_events=bool(body.stream or body.background),
        keep_events=body.stored, queued=bool(body.background),
    )  # fmt: skip
    what = _conversation(body, turn, said)
    return Asked(body.model, what, bool(body.stream), partial(ResponsesWriter, form), in_chunks=True)


def read_alone(body: ResponseRequest) -> Asked:
    """Return what a request of a batch asks for: an answer to a whole conversation, which is not kept. Raises ApiError."""
    for name in ("previous_response_id", "background"):
        if getattr(body, name):
            raise ApiError(
                400, f"{name}: not in a batch, of which no response is kept", code="invalid_value", param=name
            )
    if references(body.input):
        raise ApiError(400, "input: no item_reference in a batch, of which no response is kept", param="input")
    id_ = new_response_id()
    return read_response(body.model_copy(update={"store": False}), Turn(id_, [], input_items(body.input, id_, {})))


def read_input_tokens(body: InputTokensRequest, turn: Turn) -> Conversation:
    """Return the conversation whose tokens a request of ``/v1/responses/input_tokens`` counts. Raises ApiError."""
    return _conversation(body, turn, {})


def _conversation(body: ConversationFields, turn: Turn, said: dict[str, Any]) -> Conversation:
    """Return the conversation, as chat completions have it with the same parameters."""
    shape = _response_format(body)
    more = {
        "messages": messages_of([*turn.context, *turn.input], body.instructions), "response_format": shape,
        "tools": chat_tools(body.tools or []), "tool_choice": chat_choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls, "chat_template_kwargs": body.chat_template_kwargs,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
    }  # fmt: skip
    said = {**said, **{name: value for name, value in more.items() if value is not None}}
    found = conversation(said)
    where = {**names(said, "input"), **_NAMES, "schema": _place_of_schema(shape)}
    return msgspec.structs.replace(found, names=where, truncate=body.truncation == "auto")


_NAMES = {
    "messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}  # fmt: skip
"""Where a request gives what chat completions call otherwise, for errors."""


def _place_of_schema(shape: dict[str, Any] | None) -> str:
    return "tools" if shape is None else "text.format"


def _response_format(body: ConversationFields) -> dict[str, Any] | None:
    shape = None if body.text is None else body.text.format
    if shape is None or shape.type == "text":
        return None
    if shape.type == "json_object":
        return {"type": "json_object"}
    fields = shape.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
    return {"type": "json_schema", "json_schema": fields}


def _settings(body: ResponseRequest) -> dict[str, Any]:
    """Return what of a request its response tells again."""
    reasoning, text = body.reasoning, body.text
    shape = text.format if text is not None and text.format is not None else None
    choice = body.tool_choice
    return {
        "background": bool(body.background), "instructions": body.instructions, "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls, "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False, "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {
            "effort": reasoning.effort if reasoning is not None else None,
            "summary": reasoning.summary if reasoning is not None else None,
        },
        "safety_identifier": body.safety_identifier, "service_tier": "default", "store": body.stored,
        "temperature": body.temperature,
        "text": {
            "format": {"type": "text"} if shape is None else shape.model_dump(exclude_none=True, by_alias=True),
            "verbosity": (text.verbosity if text is not None else None) or "medium",
        },
        "tool_choice": "auto" if choice is None else _dumped(choice),
        "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0, "top_p": body.top_p, "truncation": body.truncation or "disabled",
        "user": body.user,
    }  # fmt: skip


def _dumped(choice: Any) -> Any:
    return choice if isinstance(choice, str) else choice.model_dump(exclude_none=True)
