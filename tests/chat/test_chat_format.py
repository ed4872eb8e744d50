"""ChatFormat: what a caller gives for a prompt, refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

import offgrid_llama as og
from helpers.golden_chats import TEMPLATES
from helpers.tools import WRITTEN
from offgrid_llama.chat.chat_format import ChatFormat
from offgrid_llama.chat.chat_formats import ChatFormats

FORMATS: dict[str, ChatFormat] = {}
"""Of templates, by the names of their files."""
ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "bos_token"])
def test_variables_that_are_taken(smollm2: og.Model, name: str) -> None:
    """A variable of a name that the template gets anyway is refused by this name."""
    with pytest.raises(TypeError, match=rf"^variables: {name} is no variable that can be passed"):
        ChatFormats(smollm2).of().parts(ASKED, {name: 5})


TOLD = og.Tool("clock", "The time.")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"role": "tool", "tool_call_id": "x", "content": "1"}, r"messages\[1\]\['tool_call_id'\] belongs to no call"),
        ({"role": "assistant", "tool_calls": 3}, r"messages\[1\]\['tool_calls'\] must be a list"),
        ({"role": "user", "content": None}, r"messages\[1\] has no content"),
    ],
)
@pytest.mark.parametrize("tools", [[], [TOLD]], ids=["no tools", "tools"])
def test_places_in_errors(smollm2: og.Model, tools: list[og.Tool], message: dict[str, Any], told: str) -> None:
    """They are the caller's, also where a system message tells the model of tools before all others."""
    with pytest.raises((TypeError, ValueError), match=told):
        ChatFormats(smollm2).of().parts([*ASKED, message], {}, tools)


def test_calls_are_not_continued(smollm2: og.Model) -> None:
    """A message with calls has no text to go on with, but for the calls."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    with pytest.raises(ValueError, match="has calls, and only a text can be continued"):
        ChatFormats(smollm2).of().parts(
            [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}], {}, continue_final_message=True
        )


def test_calls_of_earlier_clients(smollm2: og.Model) -> None:
    """The one call of a message and its result, as OpenAI's clients wrote them first, are told to the model."""
    called = {"name": "clock", "arguments": '{"utc": true}'}
    earlier = [
        {"role": "assistant", "content": None, "function_call": called},
        {"role": "function", "name": "clock", "content": "10"},
    ]
    today: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": called}]},
        {"role": "tool", "tool_call_id": "1", "content": "10"},
    ]
    formats = ChatFormats(smollm2).of()
    texts = ["".join(part.text for part in formats.parts([*ASKED, *each], {})) for each in (earlier, today)]
    assert texts[0] == texts[1]
    assert '"utc": true' in texts[0]


def test_arguments_that_are_nested_deeply(smollm2: og.Model) -> None:
    """A call in the history whose arguments are nested too deeply is a ValueError, as are all other faults of messages."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
    messages = [*ASKED, {"role": "assistant", "content": None, "tool_calls": [call]}]
    with pytest.raises(ValueError, match=r"messages.*(nested too deeply|no JSON)"):
        ChatFormats(smollm2).of().parts(messages, {})


REFERRED = {"properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"enum": ["r", "g"], "description": "Which."}}}
LOOP = {"properties": {"x": {"$ref": "#"}, "y": {"type": ["integer", "null"]}}}


@pytest.mark.parametrize(
    "parameters",
    [
        {"properties": {"x": {"type": "string"}}}, {"properties": {"x": {}}}, {"properties": {"x": True}}, REFERRED, LOOP,
        {"properties": {"x": {"type": ["null", "boolean"]}}}, {"properties": {"x": {"type": "file", "description": None}}},
        {"properties": {"x": {"type": "array", "items": [{"type": "string"}]}}}, {"properties": {"x": {"type": "array"}}},
        {"properties": {"x": {"type": "object"}}, "required": None}, {"properties": {"x": {"type": "null"}}},
        {"anyOf": [{"properties": {"x": {"const": 1}}}, {"properties": {"y": {"description": 3}}}]},
        {"properties": {"x": {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None}}}, {"properties": None},
        {"type": "object", "additionalProperties": {"type": "number"}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [*WRITTEN, "CohereForAI-c4ai-command-r-plus-tool_use.jinja"])
def test_templates_that_read_what_a_schema_lacks(smollm2: og.Model, name: str, parameters: dict[str, Any]) -> None:
    """Whatever a third party's schema has and lacks, every template describes the tool, and its arguments."""
    tool = og.Tool("clock", "The time.", parameters)
    formats = FORMATS.setdefault(name, ChatFormats(smollm2).of((TEMPLATES / name).read_text(encoding="utf-8")))
    told = "".join(part.text for part in formats.parts(ASKED, {}, [tool]))
    assert "clock" in told
    assert all(argument in told for argument in tool.argument_names)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_user_who_does_not_wait_for_the_answer(smollm2: og.Model, name: str) -> None:
    """A message of the user may follow the result of a call, even where the template wants turns to alternate."""
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "AAA"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "abcdefghi", "content": "BBB"}, {"role": "user", "content": "CCC"},
    ]  # fmt: skip
    formats = FORMATS.setdefault(name, ChatFormats(smollm2).of((TEMPLATES / name).read_text(encoding="utf-8")))
    told = "".join(part.text for part in formats.parts(messages, {}, [TOLD]))
    places = [told.find(text) for text in ("AAA", "BBB", "CCC")]
    assert -1 not in places
    assert places == sorted(places)
