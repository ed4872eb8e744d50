"""Bodies of Anthropic's requests: what is refused, and with which words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from pydantic import ValidationError

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects import anthropic_schemas as schemas
from offgrid_llama.server.dialects.anthropic_schemas import CountRequest, MessageRequest
from offgrid_llama.server.validation import validated

ASKED: list[Any] = [{"role": "user", "content": "Hi."}]
TOOL = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
N = 500


def body(**said: Any) -> dict[str, Any]:
    return {"model": "m", "messages": ASKED, "max_tokens": 5, **said}


def of_user(*blocks: Any) -> list[Any]:
    return [{"role": "user", "content": list(blocks)}]


@pytest.mark.parametrize(
    ("said", "param", "says"),
    [
        ({"max_tokens": None}, "max_tokens", "valid integer"), ({"max_tokens": 0}, "max_tokens", "greater than"),
        ({"messages": []}, "messages", "at least 1 item"), ({"messages": ASKED * 4097}, "messages", "at most 4096"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "Field required"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0", "'tool'"),
        ({"messages": [{"content": "a"}]}, "messages.0", "role"), ({"messages": "a"}, "messages", "valid list"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "a list of blocks"),
        ({"messages": of_user("a")}, "messages.0.content.0", "object"),
        ({"messages": of_user({"text": "a"})}, "messages.0.content.0", "type"),
        ({"messages": of_user({"type": "text"})}, "messages.0.content.0.text", "Field required"),
        ({"messages": of_user({"type": "image", "source": {"type": "file"}})}, "messages.0.content.0.source", "'base64'"),
        ({"messages": of_user({"type": "document"})}, "messages.0.content.0.type", "'document' is not supported"),
        ({"messages": of_user({"type": "tool_use"})}, "messages.0.content.0.type", "'tool_use' is not supported"),
        ({"messages": of_user({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "document"}]})},
         "messages.0.content.0.content.0.type", "'document' is not supported"),
        ({"messages": of_user({"type": "text", "text": "a", "cache_control": {"type": "x"}})},
         "messages.0.content.0.cache_control.type", "'ephemeral'"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use"}]}]},
         "messages.0.content.0.type", "'server_tool_use' is not supported"),
        ({"system": 5}, "system", "a list of blocks"), ({"system": [{"type": "image"}]}, "system.0.type", "'image'"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type", "'web_search_20250305'"),
        ({"messages": [{"role": "system", "content": [{"type": "tool_removal", "tool": {"type": "mcp_tool_reference"}}]}]},
         "messages.0.content.0.tool.type", "'mcp_tool_reference' is not supported"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools.0.name", "pattern"),
        ({"tools": [{"name": "a"}]}, "tools.0.input_schema", "Field required"),
        ({"tools": [{"name": "a", "parameters": {}}]}, "tools.0.parameters", "here it is called input_schema"),
        ({"tools": [{**TOOL, "allowed_callers": ["x"]}]}, "tools.0.allowed_callers", "only direct calls"),
        ({"tools": [TOOL] * 513}, "tools", "at most 512"),
        ({"tool_choice": {"type": "any"}}, "tool_choice", "there are no tools"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name", "required by the type tool"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice", "object"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "required by the type enabled"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.budget_tokens", "by no other"),
        ({"thinking": {"type": "often"}}, "thinking.type", "'enabled'"),
        ({"output_config": {"effort": "little"}}, "output_config.effort", "'low'"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema", "Field required"),
        ({"output_format": {"type": "json_schema", "schema": {}},
          "output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_format", "not allowed with"),
        ({"container": "a"}, "container", "not supported"), ({"thread": {"type": "create"}}, "thread", "not supported"),
        ({"mcp_servers": [{"name": "a"}]}, "mcp_servers", "not supported"),
        ({"compaction": {"type": "summarize"}}, "compaction", "not supported"),
        ({"stop_sequences": "a"}, "stop_sequences", "valid list"),
        ({"stop_sequences": [""]}, "stop_sequences.0", "at least 1"),
        ({"temperature": 3}, "temperature", "less than or equal"), ({"top_k": -1}, "top_k", "greater than"),
        ({"wibble": 1}, "wibble", "Unrecognized"), ({"stop": ["a"]}, "stop", "here it is called stop_sequences"),
        ({"response_format": {}}, "response_format", "here it is called output_config"),
    ],
)  # fmt: skip
def test_what_is_refused(said: dict[str, Any], param: str, says: str) -> None:
    """A wrong parameter is told with its place, and what is not supported with its name."""
    with pytest.raises(ApiError, match=re.escape(says)) as refused:
        validated(MessageRequest, body(**said), {})
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    "said",
    [
        {"metadata": {"user_id": "a"}, "service_tier": "auto", "betas": ["a"], "speed": "fast", "inference_geo": "eu"},
        {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}},
        {"diagnostics": {"previous_message_id": None}, "fallbacks": [], "container": None, "mcp_servers": []},
        {"tool_choice": {"type": "auto"}}, {"tools": []}, {"system": []}, {"stop_sequences": []}, {"stream": False},
        {"messages": [{**ASKED[0], "id": "a", "name": None}]}, {"thinking": {"type": "adaptive", "display": "summarized"}},
        {"messages": of_user({"type": "text", "text": "", "citations": None, "parsed_output": None})},
    ],
)  # fmt: skip
def test_what_is_accepted(said: dict[str, Any]) -> None:
    """Fields that the official clients may send and that do not change the answer are accepted."""
    validated(MessageRequest, body(**said), {})


def test_what_counts_tokens() -> None:
    """A count takes what the prompt is made of, and nothing else, as Anthropic's does."""
    validated(CountRequest, {"messages": ASKED, "tools": [TOOL], "system": "a"}, {})
    with pytest.raises(ApiError, match="max_tokens"):
        validated(CountRequest, body(), {})
    validated(CountRequest, body(), {"ignore_unknown": True})


WRONG: dict[str, Any] = {
    "numbers": [1.5] * N, "texts": ["a b"] * N, "nulls": [None] * N, "objects": [{}] * N, "full": [{"a b": 1.5}] * N,
    "types": [{"type": "x"}] * N, "roles": [{"role": "x"}] * N, "users": [{"role": "user", "content": [{}] * N}] * N,
    "blocks": [{"type": "text"}] * N, "names": {f"name {i}": None for i in range(N)},
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_few_errors(wrong: str) -> None:
    """A list of wrong items and an object of wrong names make few errors, wherever in a body they are."""
    value = WRONG[wrong]
    result = {"type": "tool_result", "tool_use_id": "a"}
    bodies: list[Any] = [
        value, *(body(**{name: value}) for name in MessageRequest.model_fields),
        *(body(messages=[{"role": role, "content": value}] * 9) for role in ("user", "assistant", "system")),
        *(body(messages=of_user(*[{**result, name: value}] * 9)) for name in ("content", "tool_use_id", "is_error")),
        *(body(tools=[{**TOOL, name: value}] * 9) for name in (*TOOL, "type", "cache_control", "input_examples")),
        *(body(**{name: {"type": value, "name": value}}) for name in ("thinking", "tool_choice", "output_format")),
    ]  # fmt: skip
    assert max(map(n_errors, bodies)) <= 5


def n_errors(given: Any) -> int:
    try:
        MessageRequest.model_validate(given)
    except ValidationError as error:
        return error.error_count()
    return 0


def test_names() -> None:
    """The ignored names and those that are not supported are parameters that the schema knows."""
    assert {*schemas.IGNORED, *schemas.UNSUPPORTED} <= CountRequest.model_fields.keys()
