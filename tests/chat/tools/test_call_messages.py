"""chat/tools/call_messages.py: conversations with calls and results, as a template takes them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from helpers.golden_chats import known
from helpers.tools import TOOLS, WRITTEN
from offgrid_llama.chat.tools.call_fitting import CallFitting
from offgrid_llama.chat.tools.call_format import JSON_IN_TAGS
from offgrid_llama.chat.tools.call_messages import read_calls, tool_messages


def test_templates_that_write_no_calls() -> None:
    """Calls become the text that the model would have written, and results one message of the user."""
    form = JSON_IN_TAGS
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "clock", "arguments": '{"utc": true}'}}
    made = tool_messages(
        [
            {"role": "user", "content": "Late?"},
            {"role": "assistant", "content": "I look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "10"},
            {"role": "tool", "tool_call_id": "abcdefghi", "content": "11"},
        ],
        form,
    )
    assert [message["role"] for message in made] == ["user", "assistant", "user"]
    assert made[1]["content"] == 'I look.\n<tool_call>\n{"name": "clock", "arguments": {"utc": true}}\n</tool_call>'
    assert made[2]["content"].count("<tool_response>") == 2


def calling(arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": arguments}}]}


@pytest.mark.parametrize(
    ("message", "error", "told"),
    [
        ({"role": "assistant", "tool_calls": 3}, TypeError, r"messages\[0\]\['tool_calls'\] must be a list"),
        ({"role": "assistant", "tool_calls": [{}]}, ValueError, r"\['tool_calls'\]\[0\] must be"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}, ValueError, "no JSON"),
        ({"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "[]"}}]}, TypeError, "an object"),
        ({"role": "tool", "tool_call_id": "x", "content": "1"}, ValueError, "no call before"),
        (calling({"a": {1: 2}}), TypeError, r"\['tool_calls'\]\[0\]: the arguments: names must be str, not int"),
        (calling({"a": {3}}), TypeError, r"\['tool_calls'\]\[0\]: the arguments: set is no type of JSON"),
        (calling({"a": 10**4400}), ValueError, r"\['tool_calls'\]\[0\]: the arguments: .* too many digits"),
        (calling('{"a":' * 66 + "1" + "}" * 66), ValueError, r"\['tool_calls'\]\[0\]: .* nested deeper than 64 levels"),
    ],
)
def test_messages_that_are_refused(message: dict[str, Any], error: type[Exception], told: str) -> None:
    """Calls of another shape, and a result of no call, are refused with their place."""
    with pytest.raises(error, match=told):
        read_calls([message])


@pytest.mark.parametrize("arguments", ["", " \n", "null", None, "{}", {}])
def test_calls_without_arguments(arguments: Any) -> None:
    """Clients write them in several ways, which all mean no arguments."""
    call = {"id": "a", "function": {"name": "clock", "arguments": arguments}}
    read = read_calls(
        [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "a", "content": "10"}]
    )
    assert read[0]["tool_calls"][0]["function"] == {"name": "clock", "arguments": {}}
    assert read[1]["name"] == "clock"


@pytest.mark.parametrize("name", [*WRITTEN, "google-gemma-2-2b-it.jinja"])
@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": 1e999}', '{"a": [NaN, -Infinity]}', {"a": float("inf")}, '{"a": "cut \\ud83d"}', {"\ud83d": "\udc00"},
        '{"a": %s}' % ("9" * 5000), '{"a": %s}' % ("[" * 64 + "]" * 64), '{"b":' * 64 + "1" + "}" * 64,
    ],
)  # fmt: skip
def test_arguments_that_are_odd(name: str, arguments: Any) -> None:
    """Whatever a model or a client wrote in a call is read as something that is JSON, and every template takes it."""
    template, form, _ = known(name)
    asked = {"role": "user", "content": "Go."}
    read = read_calls([calling(arguments)])
    json.dumps(read, allow_nan=False)
    messages = CallFitting(template, form).fit([asked, *read])
    variables: dict[str, Any] = {"tools": [tool.as_dict() for tool in TOOLS]} if form.lists_tools else {}
    assert "Go." in template.render(tool_messages(messages, form), **variables)
