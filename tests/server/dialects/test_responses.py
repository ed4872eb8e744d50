"""Requests of the Responses API: they ask for what the same chat completion asks for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from helpers.apps import ask
from offgrid_llama.server import create_app
from offgrid_llama.server.dialects.openai import read_chat
from offgrid_llama.server.dialects.openai_schemas import ChatRequest
from offgrid_llama.server.dialects.responses import Turn, read_response
from offgrid_llama.server.dialects.responses_items import input_items
from offgrid_llama.server.dialects.responses_schemas import ResponseRequest
from offgrid_llama.worker.generation import Conversation

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
FUNCTION = {"name": "f", "description": "d", "parameters": SCHEMA}
FLAT, NESTED = {"type": "function", **FUNCTION}, {"type": "function", "function": FUNCTION}
NAMED, NESTED_NAME = {"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}


def asked(body: dict[str, Any]) -> Conversation:
    request = ResponseRequest.model_validate({"input": "a", **body})
    what = read_response(request, Turn("resp_ab", [], input_items(request.input, "resp_ab", {}))).what
    assert isinstance(what, Conversation)
    return what


@pytest.mark.parametrize(
    ("body", "chat"),
    [
        ({}, {}), ({"instructions": "i"}, {"messages": [{"role": "system", "content": "i"}, *ASKED["messages"]]}),
        ({"max_output_tokens": 5, "temperature": 0, "top_p": 0.5}, {"max_tokens": 5, "temperature": 0, "top_p": 0.5}),
        ({"top_k": 3, "seed": 7, "stop": ["x"]}, {"top_k": 3, "seed": 7, "stop": ["x"]}),
        ({"tools": [FLAT]}, {"tools": [NESTED]}), ({"tools": [{**FLAT, "strict": True}]}, {"tools": [NESTED]}),
        ({"tools": [FLAT], "tool_choice": NAMED}, {"tools": [NESTED], "tool_choice": NESTED_NAME}),
        *[({"tools": [FLAT], "tool_choice": each}, {"tools": [NESTED], "tool_choice": each})
          for each in ("none", "auto", "required")],
        ({"tools": [FLAT], "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}},
         {"tools": [NESTED], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "required",
                                                                                        "tools": [NESTED_NAME]}}}),
        ({"parallel_tool_calls": False, "bare_calls": False}, {"parallel_tool_calls": False, "bare_calls": False}),
        ({"text": {"format": {"type": "text"}, "verbosity": "low"}}, {}),
        ({"text": {"format": {"type": "json_object"}}}, {"response_format": {"type": "json_object"}}),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA, "strict": True}}},
         {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}}),
        ({"reasoning": {"effort": "none"}}, {"reasoning_effort": "none"}),
        ({"reasoning": {"effort": "low", "summary": "auto"}}, {"reasoning_effort": "low"}),
        *[(each, each) for each in ({"reasoning_budget": 5}, {"chat_template_kwargs": {"a": 1}}, {"min_tokens": 3},
                                    {"dry_multiplier": 0.5, "samplers": "kt", "ignore_eos": True, "n_keep": 4},
                                    {"priority": 5, "cache_prompt": False}, {"timings_per_token": True},
                                    {"structured_outputs": {"regex": "a+"}}, {"guided_json": {"type": "object"}},
                                    {"stream": True, "return_progress": True})],
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"include": ["message.output_text.logprobs"]}, {"logprobs": True}), ({"top_logprobs": 2}, {}),
    ],
)  # fmt: skip
def test_the_same_as_chat_completions(body: dict[str, Any], chat: dict[str, Any]) -> None:
    """A worker is asked for the same, but for where errors say that the client has given it."""
    what = read_chat(ChatRequest.model_validate({**ASKED, **chat})).what
    assert msgspec.structs.replace(asked(body), names={}) == msgspec.structs.replace(what, names={})


def test_names_in_errors() -> None:
    """Errors name the fields of this API."""
    shape = {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}}
    names = asked({"max_output_tokens": 5, "tools": [FLAT], "text": shape}).names
    assert (names["messages"], names["prompt"], names["max_tokens"]) == ("input", "input", "max_output_tokens")
    assert (names["response_format"], names["schema"]) == ("text.format", "text.format")
    assert asked({"tools": [FLAT]}).names["schema"] == "tools"


def test_truncation() -> None:
    """A conversation that is too long is refused unless the client says otherwise."""
    assert [asked(each).truncate for each in ({}, {"truncation": "disabled"}, {"truncation": "auto"})] == [
        False, False, True,
    ]  # fmt: skip


def test_custom_tools() -> None:
    """A custom tool is a function of one text, whose grammar the model is told."""
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: X"}
    (tool,) = asked({"tools": [{"type": "custom", "name": "g", "description": "d", "format": grammar}]}).tools
    properties = tool["function"]["parameters"]["properties"]
    assert tool["function"]["name"] == "g"
    assert list(properties) == ["input"]
    assert "start: X" in properties["input"]["description"]
    choice = {"type": "custom", "name": "g"}
    assert asked({"tools": [{"type": "custom", "name": "g"}], "tool_choice": choice}).tool_choice == NESTED_NAME | {
        "function": {"name": "g"}
    }


def test_tools_in_a_namespace() -> None:
    """The model is told of them by their whole names."""
    inside = [FLAT, {"type": "custom", "name": "g"}]
    tools = asked({"tools": [FLAT, {"type": "namespace", "name": "n", "tools": inside}]}).tools
    assert [tool["function"]["name"] for tool in tools] == ["f", "n.f", "n.g"]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "'web_search'"), ({"tools": ["a"]}, "tools.0", "a tool"),
        ({"tools": [{"type": "mcp", "server_label": "a"}]}, "tools.0.type", "'mcp'"),
        ({"tools": [{"type": "function", "function": FUNCTION}]}, "tools.0.function", "Unrecognized"),
        ({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]}, "tools.0.tools.0.type", "'mcp'"),
        ({"tools": [{"type": "namespace", "name": "n" * 60, "tools": [{**FLAT, "name": "long"}]}]}, "tools.0.name", "64"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "'function'"),
        ({"tool_choice": "any"}, "tool_choice", "'none'"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.mode", "required"),
        ({"conversation": "conv_a"}, "conversation", "does not support"),
        ({"prompt": {"id": "a"}}, "prompt", "does not support"),
        ({"prompt_logprobs": 1}, "prompt_logprobs", "does not support"), ({"mirostat": 3}, "mirostat", "2"),
        ({"regex": "a", "choices": ["a"]}, "choices", "not allowed together"),
        ({"context_management": []}, "context_management", "does not support"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "required"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "required"),
        ({"reasoning": {"effort": "wild"}}, "reasoning.effort", "'none'"), ({"include": ["a"]}, "include.0", "'"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"stream_options": {}}, "stream_options", "stream is true"), ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"background": True, "store": False}, "background", "store is true"),
        ({"max_output_tokens": 0}, "max_output_tokens", "1"),
        ({"max_tokens": 5}, "max_tokens", "here it is called max_output_tokens"),
        ({"messages": ASKED["messages"]}, "messages", "here it is called input"),
        ({"response_format": {}}, "response_format", "here it is called text"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "here it is called reasoning"),
        ({"wibble": 1}, "wibble", "Unrecognized"),
    ],
)  # fmt: skip
def test_what_is_refused(body: dict[str, Any], param: str, says: str) -> None:
    """A parameter that is wrong, unknown or not supported is refused by its name."""
    found = ask(create_app(models=[]), "POST", "/v1/responses", json={"input": "a", **body})
    error = found.json()["error"]
    assert (found.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert says in error["message"]


def test_what_means_nothing_here() -> None:
    """Parameters that other programs send as a matter of course are accepted."""
    body = {
        "input": "a", "conversation": None, "prompt": None, "service_tier": "auto", "prompt_cache_retention": "24h",
        "include": ["reasoning.encrypted_content", "web_search_call.action.sources"], "client_metadata": {"a": "b"},
        "prompt_cache_options": {"mode": "implicit"}, "stream": True, "stream_options": {"include_obfuscation": False},
    }  # fmt: skip
    assert ask(create_app(models=[]), "POST", "/v1/responses", json=body).json()["error"]["code"] == "model_not_found"


def test_tools_that_only_openai_runs() -> None:
    """With ``ignore_unknown`` they are left out, and the others stay."""
    body = {"input": "a", "tools": [{"type": "web_search"}, FLAT]}
    found = ask(create_app(models=[], ignore_unknown=True), "POST", "/v1/responses", json=body)
    assert found.json()["error"]["code"] == "model_not_found"
    request = ResponseRequest.model_validate(body, context={"ignore_unknown": True})
    assert [tool.name for tool in request.tools or ()] == ["f"]
