"""Custom tools: functions with one text, for both of OpenAI's APIs."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from pydantic import ValidationError

from helpers.official import check
from offgrid_llama.server.dialects.custom_tools import CustomCalls, InputReader, arguments_of, input_of, input_schema
from offgrid_llama.server.dialects.openai import read_chat
from offgrid_llama.server.dialects.openai_schemas import ChatRequest
from offgrid_llama.worker.frames import Answered, CallChunk, Message, TokenCounts
from offgrid_llama.worker.generation import Conversation

TEXT = 'a "b"\\ \n\t\u00e9 \U0001f999 \x00 {"input": "x"} \\u00e9'
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}]}
CUSTOM = {"type": "custom", "custom": {"name": "patch", "description": "d"}}
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
NAMED = {"type": "custom", "custom": {"name": "patch"}}


def with_format(form: Any) -> dict[str, Any]:
    return {"type": "custom", "custom": {"name": "patch", "format": form}}


def conversation(body: dict[str, Any]) -> Conversation:
    what = read_chat(ChatRequest.model_validate({**ASKED, **body})).what
    assert isinstance(what, Conversation)
    return what


@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_text_as_it_comes(ascii_only: bool) -> None:
    """However the arguments are cut, their parts give the text, and nothing that could still change."""
    arguments = json.dumps({"input": TEXT}, ensure_ascii=ascii_only)
    assert input_of(arguments) == input_of(arguments_of(TEXT)) == TEXT
    rng = random.Random(1)
    for _ in range(200):
        cuts = sorted(rng.choices(range(len(arguments) + 1), k=rng.randint(0, 20)))
        reader, read = InputReader(), ""
        for begin, end in zip([0, *cuts], [*cuts, len(arguments)], strict=True):
            read += reader.push(arguments[begin:end])
            assert TEXT.startswith(read)
        assert read == TEXT
    assert [input_of(text) for text in ("", "{", "[]", '{"other": "a"}', ' { "input" :\n"a" } ')] == [
        "",
        "",
        "",
        "",
        "a",
    ]


def test_grammars() -> None:
    """A regular expression holds for the text, and so does a grammar that is one; the model is told any."""
    assert input_schema()["properties"]["input"] == {"type": "string"}
    regex = input_schema("regex", "a|b")["properties"]["input"]
    assert re.search(regex["pattern"], "a")
    assert not re.search(regex["pattern"], "ab")
    assert "a|b" in regex["description"]
    assert re.search(input_schema("lark", 'start: "x"+')["properties"]["input"]["pattern"], "xx")
    recursive = input_schema("lark", 'start: "(" start ")" | "x"')["properties"]["input"]
    assert "pattern" not in recursive
    assert '"(" start ")"' in recursive["description"]


def test_requests() -> None:
    """A custom tool is a function for the model: among the tools, in the choice among them, and in the history."""
    grammar = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}
    found = conversation({"tools": [FUNCTION, with_format(grammar)], "tool_choice": NAMED})
    assert found.tools[0] == FUNCTION
    assert found.tools[1]["function"] == {"name": "patch", "parameters": input_schema("regex", "a+")}
    assert found.tool_choice == {"type": "function", "function": {"name": "patch"}}
    for form in (None, {"type": "text"}):
        (tool,) = conversation({"tools": [with_format(form)]}).tools
        assert tool["function"]["parameters"] == input_schema()
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    found = conversation({"tools": [FUNCTION, CUSTOM], "tool_choice": allowed})
    assert ([tool["function"]["name"] for tool in found.tools], found.tool_choice) == (["patch"], "required")
    call = {"id": "1", "type": "custom", "custom": {"name": "patch", "input": TEXT}}
    (message,) = conversation({"messages": [{"role": "assistant", "tool_calls": [call]}]}).messages
    function = {"name": "patch", "arguments": arguments_of(TEXT)}
    assert message["tool_calls"] == [{"id": "1", "type": "function", "function": function}]


@pytest.mark.parametrize(
    "body",
    [
        {"tools": [{"type": "custom", "custom": {"name": "a b"}}]}, {"tools": [{"type": "custom"}]},
        {"tools": [with_format({"type": "xml"})]}, {"tools": [with_format({"type": "grammar"})]},
        {"tools": [with_format({"type": "grammar", "grammar": {"syntax": "peg", "definition": "a"}})]},
        {"tools": [CUSTOM], "tool_choice": {"type": "custom", "function": {"name": "patch"}}},
        {"tools": [CUSTOM], "tool_choice": {"type": "custom"}},
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "custom": {"name": "patch"}}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}]},
    ],
)  # fmt: skip
def test_what_is_refused(body: dict[str, Any]) -> None:
    """Custom tools, choices and calls of another shape."""
    with pytest.raises(ValidationError):
        ChatRequest.model_validate({**ASKED, **body})


def test_answers() -> None:
    """Calls of custom tools have their type and their text, at once and in parts; those of functions are as before."""
    asked = read_chat(ChatRequest.model_validate({**ASKED, "tools": [FUNCTION, CUSTOM]}))
    calls = [CallChunk(0, "1", "f", '{"a":1}'), CallChunk(1, "2", "patch", arguments_of(TEXT))]
    whole = asked.writer("m").whole(Answered(1, TokenCounts(1, 0, 1), [Message("", "", calls, "tool_calls")]))
    check(ChatCompletion, whole)
    assert whole["choices"][0]["message"]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "2", "type": "custom", "custom": {"name": "patch", "input": TEXT}},
    ]
    told = CustomCalls({"patch"})
    first = told.deltas(0, [CallChunk(0, "1", "f", ""), CallChunk(1, "2", "patch", '{"inp')])
    assert first == [
        {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 1, "id": "2", "type": "custom", "custom": {"name": "patch", "input": ""}},
    ]
    then = told.deltas(0, [CallChunk(0, "", "", "{}"), CallChunk(1, "", "", 'ut": "a\\n')])
    assert then == [{"index": 0, "function": {"arguments": "{}"}}, {"index": 1, "custom": {"input": "a\n"}}]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (r"a\ud83d b", "a\ufffd b"), (r"\udc00", "\ufffd"), (r"\ud83d\ude00", "\U0001f600"),
        (r"\ud83d\ud83d\ude00", "\ufffd\U0001f600"), (r"\ud83d\u0041\ud83d\n", "\ufffdA\ufffd\n"),
    ],
)  # fmt: skip
def test_half_of_a_character(given: str, text: str) -> None:
    """Half of a character is U+FFFD, and what comes behind it is not lost, however the arguments are cut."""
    arguments = f'{{"input": "{given}"}}'
    for step in (1, 3, 100):
        reader = InputReader()
        assert "".join(reader.push(arguments[at : at + step]) for at in range(0, len(arguments), step)) == text
