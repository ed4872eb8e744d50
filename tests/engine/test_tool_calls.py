"""Tool calls of a model, with an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest

import offgrid_llama as og
from helpers.golden_chats import TEMPLATES
from helpers.tools import CLOCK, WEATHER
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.tools.tool import Tool, ToolCall
from offgrid_llama.engine import Chat, FinishReason
from offgrid_llama.engine.tool_calls import result

ASKED = [{"role": "user", "content": "What is the weather in Bern?"}]
SHORT: dict[str, Any] = {"max_tokens": 100, "temperature": 0}


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_seq_max=4, n_ctx=8192) as engine:
        yield engine


@pytest.fixture(params=["its own template", "one that writes calls", "one with tags"])
def template(request: pytest.FixtureRequest) -> ChatTemplate | None:
    """Return a template that knows no tools, and ones that do."""
    names = {"one that writes calls": "Qwen-Qwen2.5-7B-Instruct.jinja", "one with tags": "Qwen3-Coder.jinja"}
    if request.param not in names:
        return None
    return ChatTemplate((TEMPLATES / names[request.param]).read_text(encoding="utf-8"), name=request.param)


def test_a_call(engine: og.Engine, template: ChatTemplate | None) -> None:
    """A required call is whole, streams as what it is, and its result can be told."""
    options = {**SHORT, "tools": [WEATHER, CLOCK], "tool_choice": "required", "template": template}
    reply = engine.chat(ASKED, parallel_tool_calls=False, **options).result()
    (call,) = reply.tool_calls
    assert call.name in ("get_weather", "clock")
    assert set(call.parsed) <= set({"get_weather": WEATHER, "clock": CLOCK}[call.name].parameters["properties"])
    assert reply.finish_reason is FinishReason.TOOL_CALLS
    message = reply.message()
    assert (message["content"], message["tool_calls"]) == ("", [call.as_dict()])
    assert len(call.id) == 9
    deltas = list(reply)
    assert "".join(piece.arguments for delta in deltas for piece in delta.tool_calls) == call.arguments
    assert [piece.name for delta in deltas for piece in delta.tool_calls if piece.name] == [call.name]
    assert [delta.finish_reason for delta in deltas][-1] is FinishReason.TOOL_CALLS
    assert sum(bool(piece.arguments) for delta in deltas for piece in delta.tool_calls) > 1 or len(call.arguments) < 12
    told = [*ASKED, message, {"role": "tool", "tool_call_id": call.id, "content": "It rains."}]
    assert engine.chat(told, **{**options, "tool_choice": "auto"}).result().usage.prompt_tokens > 0


def test_which_call(engine: og.Engine, template: ChatTemplate | None) -> None:
    """The tool that is named is called, none with "none", and what the model likes with "auto"."""
    options = {**SHORT, "tools": [WEATHER, CLOCK], "template": template}
    (call,) = engine.chat(ASKED, tool_choice="clock", parallel_tool_calls=False, **options).result().tool_calls
    assert call.name == "clock"
    silent = engine.chat(ASKED, tool_choice="none", **options).result()
    assert silent.tool_calls == []
    plain = engine.chat(ASKED, template=template, **SHORT).result()
    assert silent.content == plain.content
    free = engine.chat(ASKED, **options).result()
    assert all(call.name in ("get_weather", "clock") and call.parsed is not None for call in free.tool_calls)


def test_a_call_or_a_shape(engine: og.Engine) -> None:
    """With a response format the answer is of it, or a call."""
    shape = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]}
    described = {"type": "json_schema", "json_schema": {"schema": shape}}
    reply = engine.chat(ASKED, tools=[WEATHER], response_format=described, **SHORT).result()
    if reply.tool_calls:
        assert reply.tool_calls[0].parsed["city"]
    else:
        assert set(reply.parsed()) == {"rain"}
    with pytest.raises(ValueError, match="tools and grammar"):
        engine.chat(ASKED, tools=[WEATHER], grammar=og.Grammar.regex("a+"))


def test_results_are_fed_back(engine: og.Engine) -> None:
    """`Chat.run` calls functions, tells the model their results, or what they failed with, and ends with an answer."""
    seen: list[tuple[str, ...]] = []

    def weather(city: Literal["Bern", "Rome"]) -> str:
        """Return the weather."""
        seen.append((city,))
        if len(seen) > 1:
            raise RuntimeError("no satellite")
        return "sun"

    chat = Chat(engine, tools=[weather], **SHORT)
    reply = chat.run("What is the weather in Bern?", tool_choice="required", parallel_tool_calls=False, max_turns=2)
    assert len(seen) == 1
    assert reply.tool_calls == []
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["content"] == "sun"
    chat.run("And in Rome?", tool_choice="required", parallel_tool_calls=False, max_turns=2)
    assert chat.messages[-2]["content"] == "RuntimeError: no satellite"
    chat.undo()
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_call_that_is_cut_off(engine: og.Engine) -> None:
    """It is as far as it has come, and no part of the conversation that goes on."""
    chat = Chat(engine, tools=[WEATHER], temperature=0)
    reply = chat.say("What is the weather in Bern?", tool_choice="required", max_tokens=18).result()
    assert reply.finish_reason is FinishReason.LENGTH
    (call,) = reply.tool_calls
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        assert call.parsed
    assert chat.messages[-1] == {"role": "assistant", "content": ""}
    assert chat.say("Well?", tool_choice="none", max_tokens=4).result().finish_reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "stop", ["{", "\n", "name", '"', ":", " ", "e", "call", "arguments", "city", ": {", "}", "Bern", "</tool_call>"]
)
def test_a_stop_string_within_a_call(engine: og.Engine, stop: str) -> None:
    """Nothing of the call becomes content, in a stream either; it is a call where its arguments are whole."""
    asked: dict[str, Any] = {"tools": [WEATHER], "tool_choice": "required", "temperature": 0, "max_tokens": 60}
    reply = engine.chat([{"role": "user", "content": "The weather in Bern?"}], stop=stop, **asked)
    deltas = list(reply)
    assert reply.completion.stop == stop
    assert (reply.content, "".join(delta.content for delta in deltas)) == ("", "")
    whole = stop == "</tool_call>"
    assert [call.is_whole for call in reply.tool_calls] == [whole] * len(reply.tool_calls)
    assert reply.finish_reason is deltas[-1].finish_reason is (FinishReason.TOOL_CALLS if whole else FinishReason.STOP)


@pytest.mark.parametrize(
    ("text", "stop", "content"),
    [
        ("a <", "x", "a <"),
        ("a <", " >", "a <"),
        ("a <tool_", "call>", "a "),
        ("a ", "<tool", "a "),
        ("a <too", "l", "a "),
    ],
)
def test_a_stop_string_behind_what_is_like_a_mark(engine: og.Engine, text: str, stop: str, content: str) -> None:
    """Text that the stop string shows to be no mark is content; the beginning of what may be one is not."""
    reply = engine.chat(ASKED, tools=[WEATHER], max_tokens=2)
    answer = reply.result().completion.answers[0]
    answer.text, answer.stop, answer.finish_reason = text, stop, FinishReason.STOP
    assert reply.content == content


def test_many_at_once(engine: og.Engine) -> None:
    """Each of several answers has its own calls, with ids of their own."""
    replies = engine.chat(
        ASKED, tools=[WEATHER, CLOCK], tool_choice="required", n=3, max_tokens=100, temperature=1.0, seed=4
    ).result()
    found = [replies.message(index).get("tool_calls", []) for index in range(3)]
    ids = [call["id"] for calls in found for call in calls]
    assert len(set(ids)) == len(ids) >= 3


class _SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (_SilentError(), "_SilentError: no message"),
        (ValueError("x" * 10**6), "ValueError: xx"),
        (OSError(2, "a\ud83d"), "FileNotFound"),
    ],
)
def test_errors_of_any_text(error: Exception, told: str) -> None:
    """The model is told of an error without a text, and of the beginning of a long one; neither ends the conversation."""

    def fail() -> None:
        raise error

    found = result(ToolCall("1", "fail", "{}"), [Tool.of(fail)])
    assert found.startswith(told)
    assert len(found) < 3000


def test_an_answer_that_calls_tools_is_not_parsed(engine: og.Engine) -> None:
    """It has no content, and its error says why."""
    reply = engine.chat(ASKED, tools=[CLOCK], tool_choice="required", response_format={"type": "json_object"}, **SHORT)
    with pytest.raises(ValueError, match="has no content: it calls tools"):
        reply.parsed()
