"""Calls without marks: JSON that is the whole answer, of a known tool, with arguments that fit."""

from __future__ import annotations

import json

import pytest

from helpers.golden_chats import known
from helpers.tools import TOOLS
from offgrid_llama.chat.tools.bare_calls import MAX_CHARACTERS
from offgrid_llama.chat.tools.call_reader import ToolReader
from offgrid_llama.chat.tools.deltas import gathered

FORM = known("Qwen-Qwen2.5-7B-Instruct.jinja")[1]
CALL = '{"name": "get_weather", "arguments": {"city": "Bern"}}'
WEATHER = ("get_weather", {"city": "Bern"})
CLOCK: tuple[str, dict[str, object]] = ("clock", {})


def read(text: str, step: int, *, parallel: bool = True) -> tuple[str, list[tuple[str, object]]]:
    """Return content and calls of an answer that arrives in pieces."""
    reader = ToolReader(FORM, TOOLS, lambda index: f"id{index}", bare="many" if parallel else "one")
    told = [reader.push(text[at : at + step]) for at in range(0, len(text), step)] + [reader.finish()]
    calls = gathered(delta for each in told for delta in each.calls)
    "".join(call.arguments for call in calls).encode()
    return "".join(each.content for each in told), [(call.name, call.parsed) for call in calls]


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (CALL, [WEATHER]),
        (f"\n {CALL}\n", [WEATHER]),
        (f"```json\n{CALL}\n```", [WEATHER]),
        (f"```\n{CALL}```\n", [WEATHER]),
        (f"[{CALL}, {CALL}]", [WEATHER, WEATHER]),
        (f"{CALL}\n{CALL}", [WEATHER, WEATHER]),
        ('{"arguments": {}, "name": "clock"}', [CLOCK]),
        ('{"name": "clock", "parameters": {"utc": true}}', [("clock", {"utc": True})]),
        ('{"type": "function", "function": {"name": "clock", "arguments": "{}"}}', [CLOCK]),
        ('{ "name" : "clock" , "arguments" : { } }', [CLOCK]),
        ('{"id": "1", "name": "clock", "arguments": {}}', [CLOCK]),
        ('<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>', [CLOCK]),
        (f"```JSON\n{CALL}\n```", [WEATHER]),
        (CALL.replace("Bern", r"B\ud83d"), [("get_weather", {"city": "B\ufffd"})]),
        (CALL.replace("Bern", r"\ud83d\ude00"), [("get_weather", {"city": "\U0001f600"})]),
    ],
)
def test_calls(text: str, calls: list[tuple[str, object]], step: int) -> None:
    """An answer that is JSON of a call, bare or in a block of Markdown, is a call, and no content."""
    assert read(text, step) == ("", calls)


@pytest.mark.parametrize("step", [1, 5, 1000])
@pytest.mark.parametrize(
    "text",
    [
        f"Here: {CALL}",
        f"{CALL} is what I would call.",
        f"```json\n{CALL}\n``` and so on",
        '{"name": "get_time", "arguments": {}}',
        '{"name": "get_weather", "arguments": {"town": "Bern"}}',
        '{"name": "get_weather", "arguments": {"city": 3}}',
        '{"name": "clock"}',
        '{"city": "Bern"}',
        '{"name": 3}',
        "{",
        "[1, 2]",
        "```python\nprint(1)\n```",
        "``",
        "",
        "{}",
        CALL[:-1],
        '{"name": "clock", "arguments": []}',
        f"[{CALL}, 3]",
        '{"name": "clock", "arguments": "{"}',
        "It is late.",
    ],
)
def test_texts(text: str, step: int) -> None:
    """Any other answer is content, as it is written."""
    assert read(text, step) == (text, [])


def test_several_where_one_is_allowed() -> None:
    """Without parallel calls, an answer of several is content."""
    assert read(f"{CALL}\n{CALL}", 4, parallel=False) == (f"{CALL}\n{CALL}", [])
    assert read(CALL, 4, parallel=False) == ("", [WEATHER])


def test_held_back_no_longer_than_it_may_be_a_call() -> None:
    """Text comes as soon as it cannot be a call any more."""
    for text in (
        "I",
        "{'",
        '{"names',
        '{"name": "get_x',
        "```py",
        '{"nam"',
        "[1",
        f"{CALL} i",
        "x" * (MAX_CHARACTERS + 1),
    ):
        reader = ToolReader(FORM, TOOLS, lambda index: f"id{index}", bare="many")
        held = reader.push(text[:-1]).content
        assert held == "" or len(text) > MAX_CHARACTERS
        assert held + reader.push(text[-1]).content + reader.push(" more").content == f"{text} more"


def test_only_where_it_is_asked_for() -> None:
    """Without the setting, and in formats whose calls are bare JSON themselves, nothing changes."""
    reader = ToolReader(FORM, TOOLS, lambda index: f"id{index}")
    assert reader.push(CALL).content + reader.finish().content == CALL
    bare = known("meta-llama-Llama-3.2-3B-Instruct.jinja")[1]
    reader = ToolReader(bare, TOOLS, lambda index: f"id{index}", bare="many")
    calls = gathered([*reader.push(json.dumps({"name": "clock", "parameters": {}})).calls, *reader.finish().calls])
    assert [call.name for call in calls] == ["clock"]
