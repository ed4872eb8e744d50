"""Conversations in requests: what is refused before a worker sees it, by name and place."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.apps import ask
from helpers.requests import ASKED, post
from helpers.serving import MODEL, Served
from offgrid_llama.server import create_app
from offgrid_llama.server.dialects.openai_schemas import ChatRequest

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
}
NAMED = {"type": "function", "function": {"name": "f"}}


def called(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "a", "type": "function",
                                                 "function": {"name": "f", "arguments": arguments}}]}  # fmt: skip


def allowed(**told: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": told}


@pytest.mark.parametrize(
    ("choice", "param", "says"),
    [
        ({"type": "allowed_tools"}, "allowed_tools", "required"), (allowed(), "allowed_tools.tools", "required"),
        (allowed(tools=[{}]), "allowed_tools.tools.0.function", "required"),
        (allowed(tools=["f"]), "allowed_tools.tools.0", "an object"),
        (allowed(mode="all", tools=[]), "allowed_tools.mode", "'auto'"), ({"type": "function"}, "function", "required"),
        ({"type": "function", "function": "f"}, "function", "an object"), ({}, "function", "required"),
        ({"type": "function", "function": {}}, "function.name", "required"),
        ({"type": "custom", "function": {"name": "f"}}, "function", "not allowed"),
        ({"type": "custom"}, "custom", "required"),
    ],
)  # fmt: skip
def test_tool_choices(choice: Any, param: str, says: str) -> None:
    """An object of another shape than OpenAI's is refused where it differs."""
    body = {"messages": ASKED, "tools": [TOOL], "tool_choice": choice}
    error = ask(create_app(models=[]), "POST", "/v1/chat/completions", json=body).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", f"tool_choice.{param}")
    assert says in error["message"]


@pytest.mark.parametrize(
    ("message", "param", "says"),
    [
        (called("[" * 2000), "tool_calls.0.function.arguments", "deeper than 64"),
        (called("[" * 2000 + "]" * 2000), "tool_calls.0.function.arguments", "deeper than 64"),
        (called('{"a":' * 70 + "1" + "}" * 70), "tool_calls.0.function.arguments", "deeper than 64"),
        (called("{"), "tool_calls.0.function.arguments", "not valid JSON"),
        (called("[]"), "tool_calls.0.function.arguments", "must be a JSON object"),
        (called(5), "tool_calls.0.function.arguments", "JSON of an object, or an object"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "tool_calls.0.function", "required"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, "tool_calls.0.function.name", "required"),
        ({"role": "assistant", "tool_calls": [{"id": 5, "function": {"name": "f"}}]}, "tool_calls.0.id", "string"),
        ({"role": "assistant", "tool_calls": ["a"]}, "tool_calls.0", "an object"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "content.0.image_url.url", "required"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, "content.0.type", "not 'file'"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "content.0.text", "string"),
        ({"role": "user", "content": [{"type": "text"}]}, "content.0.text", "required"),
        ({"role": "user", "content": [{}]}, "content.0.text", "required"),
        ({"role": "user", "content": [{"type": "video", "text": "a", "video": {}}]}, "content.0.type", "video"),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, "content.0.text", "required"),
        ({"role": "assistant", "function_call": {"arguments": "{}"}}, "function_call.name", "required"),
        ({"role": "assistant", "function_call": {"name": "f", "arguments": "[]"}}, "function_call.arguments", "object"),
    ],
)  # fmt: skip
def test_messages(message: dict[str, Any], param: str, says: str) -> None:
    """A call or a part in the history that cannot be read is refused, with its place."""
    for path in ("/v1/chat/completions", "/apply-template"):
        found = ask(create_app(models=[]), "POST", path, json={"messages": [*ASKED, message]})
        error = found.json()["error"]
        assert (found.status_code, error["param"]) == (400, f"messages.1.{param}")
        assert says in error["message"]


@pytest.mark.parametrize("more", [{"returns": {}, "cache_control": {"type": "a"}}, {"annotations": {}, "title": "a"}])
def test_what_third_parties_say_of_tools(more: dict[str, Any]) -> None:
    """It is left out; a name that may be meant for one of ours is refused, so that no parameters are lost."""
    tool = {**TOOL, **more, "function": {**TOOL["function"], **more}}
    said = ChatRequest.model_validate({"messages": ASKED, "tools": [tool]}).said()
    assert said["tools"] == [TOOL]
    for name, told in (
        ("input_schema", "called parameters"),
        ("inputSchema", "parameters"),
        ("paramters", "mean parameters"),
    ):
        wrong = {"type": "function", "function": {"name": "f", **more, name: {"type": "object"}}}
        body = {"messages": ASKED, "tools": [wrong]}
        error = ask(create_app(models=[]), "POST", "/v1/chat/completions", json=body).json()["error"]
        assert error["param"] == f"tools.0.function.{name}"
        assert told in error["message"]


def test_many_names_in_a_tool() -> None:
    """They are refused at the first: to compare each with those that are known takes time."""
    tool = {"type": "function", "function": {"name": "f", **{f"x-{i}": i for i in range(33)}}}
    body = {"messages": ASKED, "tools": [tool]}
    error = ask(create_app(models=[]), "POST", "/v1/chat/completions", json=body).json()["error"]
    assert error["param"] == "tools.0.function.x-0"


@pytest.mark.parametrize(
    "arguments",
    [
        "", " ", "null", "{}", '{"a": [1, {"b": null}]}', {"a": 1}, None, '{"a": 1e999}', '{"a": [NaN]}', r'{"a": "\ud83d"}',
        '{"a": %s}' % ("9" * 5000),
    ],
)  # fmt: skip
def test_what_goes_on(arguments: Any) -> None:
    """Valid messages go to the worker as they came, with names that only a template knows."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "a", "b": 1}], "c": 2},
                {**called(arguments), "d": {"e": []}}, {"role": "tool", "tool_call_id": "a", "content": "f"},
                {"role": "assistant", "content": "a", "tool_calls": []}]  # fmt: skip
    for one in (allowed(mode="required", tools=[NAMED]), NAMED, "required", {"function": {"name": "f"}}):
        body = {"messages": messages, "tools": [TOOL], "tool_choice": one}
        said = ChatRequest.model_validate(body).said()
        assert said["tool_choice"] == one
        for given, kept in zip(messages, said["messages"], strict=True):
            assert {name: value for name, value in given.items() if name != "tool_calls"}.items() <= kept.items()


def chain(n: int, end: dict[str, Any]) -> dict[str, Any]:
    """Return a schema in which each definition refers to the next."""
    links: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(n)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{n}": end}}


@pytest.mark.parametrize(
    "schema",
    [
        chain(1500, {"type": "integer"}), {"$ref": "#/const", "const": {"type": "number", "multipleOf": "x"}},
        {"$ref": "#/const", "const": {"multipleOf": [1]}}, {"$ref": "#/const/0", "const": [5]}, {"$ref": "#/a/b/c"},
        {"type": "number", "multipleOf": 0}, {"type": "string", "pattern": "(" * 2000}, {"properties": 5}, {"enum": {}},
        {"type": [[]]}, {"$defs": 5, "$ref": "#/$defs/a"}, {"anyOf": [{"anyOf": 5}]}, {"minimum": "a", "type": "integer"},
        {"required": [[]], "type": "object"}, {"items": {"$ref": "#"}},
    ],
)  # fmt: skip
def test_schemas_that_make_no_sense(server: Served, schema: dict[str, Any]) -> None:
    """Whatever a client's schema does to its readers, that is no failure of the server."""
    shape = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    for more in ({"response_format": shape}, {"tools": [tool], "tool_choice": "required"}):
        found = post(server, "/v1/chat/completions", {"model": MODEL, "messages": ASKED, "max_tokens": 1, **more})
        assert found.status_code in (200, 400), found.text
