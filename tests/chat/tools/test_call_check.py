"""Calls in every style are checked against the rules of their tool's schema that no grammar can hold."""

from __future__ import annotations

import sys
from typing import Any

import pytest

import offgrid_llama as og
from helpers.golden_chats import known
from offgrid_llama.chat.tools.call_reader import ToolReader
from offgrid_llama.chat.tools.deltas import gathered
from offgrid_llama.chat.tools.tool import Tool, ToolCall, read_tools

TEMPLATES = [
    "Qwen-Qwen2.5-7B-Instruct.jinja", "meta-llama-Llama-3.2-3B-Instruct.jinja", "Qwen3-Coder.jinja",
    "LFM2.5-8B-A1B.jinja", "GLM-4.6.jinja", "MiniMax-M2.jinja", "Kimi-K3.jinja", "deepseek-ai-DeepSeek-V3.2.jinja",
    "openbmb-MiniCPM5-1B.jinja", "google-gemma-4-31B-it.jinja", "openai-gpt-oss-120b.jinja",
]  # fmt: skip
INTEGER: dict[str, Any] = {"type": "integer"}
TAGS = {"type": "array", "items": {"type": "string"}}
RULES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "not": ({"properties": {"n": {**INTEGER, "not": {"const": 3}}}}, {"n": 3}, {"n": 4}, "/n: not: 3 should not be"),
    "uniqueItems": (
        {"properties": {"tags": {**TAGS, "uniqueItems": True}}}, {"tags": ["a", "b", "a"]}, {"tags": ["a", "b"]},
        "/tags: uniqueItems: has items that are equal",
    ),
    "contains": (
        {"properties": {"tags": {**TAGS, "contains": {"const": "b"}}}}, {"tags": ["a", "c"]}, {"tags": ["a", "b"]},
        "/tags: contains: ",
    ),
    "if and then": (
        {"properties": {"kind": {"enum": ["a", "b"]}, "n": INTEGER}, "required": ["kind"],
         "if": {"properties": {"kind": {"const": "a"}}}, "then": {"required": ["n"]}},
        {"kind": "a"}, {"kind": "b"}, "/: required: 'n' is a required property",
    ),
    "dependentRequired": (
        {"properties": {"a": INTEGER, "b": INTEGER}, "dependentRequired": {"a": ["b"]}}, {"a": 1}, {"a": 1, "b": 2},
        "/: dependentRequired: 'b' is a dependency of 'a'",
    ),
    "propertyNames": (
        {"additionalProperties": INTEGER, "propertyNames": {"maxLength": 3}}, {"abcd": 1}, {"abc": 1},
        "/: maxLength: 'abcd' is too long",
    ),
    "multipleOf": (
        {"properties": {"n": {**INTEGER, "multipleOf": 12_345}}}, {"n": 12_346}, {"n": 24_690},
        "/n: multipleOf: 12346 is not a multiple of 12345",
    ),
    "oneOf": (
        {"properties": {"n": {"oneOf": [{**INTEGER, "minimum": 1}, {**INTEGER, "maximum": 5}]}}}, {"n": 3}, {"n": 7},
        "/n: oneOf: 3 is valid under each of",
    ),
    "unevaluatedProperties": (
        {"allOf": [{"properties": {"a": INTEGER}, "additionalProperties": True}],
         "anyOf": [{"required": ["b"], "properties": {"b": INTEGER}}, {"required": ["a"]}], "unevaluatedProperties": False,
         "not": {"required": ["c"]}},
        {"a": 1, "c": 2}, {"a": 1, "b": 2}, "/: not: ",
    ),
    "a limit": (
        {"properties": {f"p{i}": INTEGER for i in range(500)}, "maxProperties": 1}, {"p1": 1, "p2": 2}, {"p1": 1},
        "/: maxProperties: ",
    ),
}  # fmt: skip


def tool_of(parameters: Any) -> Tool:
    """Return a tool with these parameters, as a client sends it."""
    return read_tools(
        [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", **parameters}}}]
    )[0]


def called(template: str, tool: Tool, arguments: dict[str, Any]) -> ToolCall:
    """Return a call that is written as a template has it, and read again."""
    form = known(template)[1]
    reader = ToolReader(form, [tool], lambda _: "id")
    text = form.write([("f", arguments, "abcdefghi")])
    (call,) = gathered(reader.push(text).followed_by(reader.finish()).calls)
    assert call.parsed == arguments
    return call


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("rule", RULES)
def test_rules_that_no_grammar_holds(rule: str, template: str) -> None:
    """A call that breaks one is found, and one that keeps it is not."""
    parameters, broken, kept, told = RULES[rule]
    tool = tool_of(parameters)
    assert tool.schema.left_out
    assert tool.fits(broken)
    assert tool.broken_rule(called(template, tool, broken).parsed).startswith(told)
    assert tool.broken_rule(called(template, tool, kept).parsed) == ""


def test_tools_whose_rules_are_all_held() -> None:
    """Their calls are not checked: the grammar has held them."""
    tool = tool_of({"properties": {"n": INTEGER}})
    assert not tool.is_checked
    assert tool.broken_rule({"n": "no integer"}) == ""


def test_functions_are_not_called() -> None:
    """A call that breaks a rule is an error with its place and the rule, and the function is not called."""
    seen: list[int] = []
    parameters = {"properties": {"n": {**INTEGER, "not": {"const": 3}}}}

    def f(n: int) -> None:
        seen.append(n)

    tool = Tool("f", "", parameters, f)
    with pytest.raises(
        ValueError, match="the arguments of f break a rule of its schema, at /n: not: 3 should not be valid"
    ):
        ToolCall("1", "f", '{"n": 3}').run([tool])
    ToolCall("1", "f", '{"n": 4}').run([tool])
    assert seen == [4]


def test_what_cannot_be_checked_is_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is given up, and one without the library, say so in the log, and the call goes on."""
    ways = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
    slow = tool_of({"not": {"$ref": "#/$defs/d0"}, "$defs": {**ways, "d60": {"required": ["a"]}}})
    assert slow.broken_rule({"a": 1}) == ""
    monkeypatch.setitem(sys.modules, "referencing", None)
    assert tool_of({"not": {"required": ["a"]}}).broken_rule({"a": 1}) == ""
    assert [record.getMessage() for record in caplog.records if "not checked" in record.getMessage()] == [
        "tool 'f': a call is not checked: checks take more than 1 s",
        "tool 'f': a call is not checked: it takes jsonschema: pip install 'offgrid-llama[chat]'",
    ]


def test_numbers_that_are_infinite() -> None:
    """A call without marks whose number is too large for a float is read, or is text; it is no error."""
    tool = og.Tool("f", "", {"type": "object", "properties": {"n": {"type": "number", "multipleOf": 2}}})
    for text, n_calls in (('{"n": 1e999}', 0), ('{"n": 1e300}', 1)):
        reader = ToolReader(known("Qwen3-Coder.jinja")[1], [tool], lambda _: "id", bare="one")
        told = reader.push(f'{{"name": "f", "arguments": {text}}}').followed_by(reader.finish())
        assert len(told.calls) == n_calls
