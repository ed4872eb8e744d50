"""Anthropic's API, as its own client and plain HTTP get it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import pytest

from helpers.requests import ASKED, post
from helpers.serving import ALIAS, MODEL, Served

TOOL: Any = {
    "name": "weather", "description": "The weather of a city.", "input_schema": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
    },
}  # fmt: skip
WEATHER: list[Any] = [{"role": "user", "content": "How is the weather in Bern?"}]
GREEDY: Any = {"temperature": 0}


@pytest.fixture(scope="module")
def claude(server: Served) -> Iterator[anthropic.Anthropic]:
    """Anthropic's own client of the server."""
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as found:
        yield found


def ask(claude: anthropic.Anthropic, **said: Any) -> anthropic.types.Message:
    body: dict[str, Any] = {"model": MODEL, "messages": ASKED, "max_tokens": 24, "extra_body": GREEDY, **said}
    found: anthropic.types.Message = claude.messages.create(**body)
    return found


def text(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def test_a_conversation_is_answered(claude: anthropic.Anthropic) -> None:
    """A real answer, with its usage, under the name that was asked for; the second comes from the cache but for a token."""
    for model in (MODEL, ALIAS):
        reply = ask(claude, model=model)
        assert (reply.model, reply.stop_reason) == (model, "end_turn")
        assert "4" in text(reply)
        assert 0 < reply.usage.output_tokens <= 24
    assert reply.usage.input_tokens == 1
    assert (reply.usage.cache_read_input_tokens or 0) > 10
    assert (reply._request_id or "").startswith("req_")


def test_a_stream_is_the_same_answer(claude: anthropic.Anthropic) -> None:
    """The client puts the events together to what it gets at once."""
    whole = ask(claude)
    with claude.messages.stream(model=MODEL, messages=ASKED, max_tokens=24, extra_body=GREEDY) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(texts) > 1
    assert "".join(texts) == text(final) == text(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    assert final.usage.input_tokens == 1


def test_many_at_once(server: Served) -> None:
    """Each of many requests of the asynchronous client gets its own answer."""
    words = ["one", "two", "three", "four"] * 2

    def only(word: str) -> Any:
        schema = {"type": "object", "properties": {"said": {"const": word}}, "required": ["said"]}
        return {"format": {"type": "json_schema", "schema": schema}}

    async def main() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=server.url, api_key="none", max_retries=0) as claude:
            asked = [
                claude.messages.create(
                    model=MODEL, messages=ASKED, max_tokens=24, extra_body=GREEDY, output_config=only(word)
                )
                for word in words
            ]
            return [json.loads(text(reply))["said"] for reply in await asyncio.gather(*asked)]

    assert asyncio.run(main()) == words


def test_stop_sequences(claude: anthropic.Anthropic) -> None:
    """The one that has ended the answer is told, and is not in it, streamed and whole."""
    said: Any = {"stop_sequences": ["zzz", "classic"]}
    whole = ask(claude, **said)
    with claude.messages.stream(model=MODEL, messages=ASKED, max_tokens=24, extra_body=GREEDY, **said) as stream:
        final = stream.get_final_message()
    for reply in (whole, final):
        assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", "classic")
        assert "classic" not in text(reply)
        assert text(reply)


def test_an_answer_that_goes_on(claude: anthropic.Anthropic) -> None:
    """A last message of the assistant's is continued."""
    begun = "The answer to this classic"
    assert text(ask(claude)) == begun + text(ask(claude, messages=[*ASKED, {"role": "assistant", "content": begun}]))


def test_tools(claude: anthropic.Anthropic) -> None:
    """The client's loop: a call with arguments that fit, its result, an answer; streamed, too."""
    said: Any = {"tools": [TOOL], "messages": WEATHER, "max_tokens": 64}
    for choice in ({"type": "any", "disable_parallel_tool_use": True}, {"type": "tool", "name": "weather"}):
        reply = ask(claude, tool_choice=choice, **said)
        calls = [block for block in reply.content if block.type == "tool_use"]
        assert reply.stop_reason == "tool_use"
        assert calls
        assert {call.name for call in calls} == {"weather"}
        assert all(list(call.input) == ["city"] for call in calls)
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "Sunny, 25 degrees."} for call in calls]
    told: list[Any] = [*WEATHER, reply.to_param(), {"role": "user", "content": results}]
    assert text(ask(claude, tools=[TOOL], messages=told))
    assert all(block.type == "text" for block in ask(claude, tool_choice={"type": "none"}, **said).content)
    with claude.messages.stream(
        model=MODEL, tool_choice={"type": "any", "disable_parallel_tool_use": True}, extra_body=GREEDY, **said
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_message()
    assert "input_json" in kinds
    (call,) = final.content
    assert call.type == "tool_use"
    assert list(call.input) == ["city"]


def test_structured_output(claude: anthropic.Anthropic) -> None:
    """A schema holds."""
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer", "minimum": 0, "maximum": 100}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    config: Any = {"format": {"type": "json_schema", "schema": schema}}
    assert json.loads(text(ask(claude, output_config=config))).keys() == {"sum"}


def test_counts_are_those_of_answers(claude: anthropic.Anthropic) -> None:
    """The tokens of a prompt are as many as its answer tells, with system prompt and tools."""
    for said in ({}, {"system": "Be terse."}, {"tools": [TOOL], "system": [{"type": "text", "text": "Be terse."}]}):
        more: Any = said
        usage = ask(claude, max_tokens=1, **more).usage
        n_tokens = usage.input_tokens + (usage.cache_read_input_tokens or 0)
        assert claude.messages.count_tokens(model=MODEL, messages=ASKED, **more).input_tokens == n_tokens


def test_marks_of_a_cache(claude: anthropic.Anthropic) -> None:
    """With a mark, what is computed counts as put into the cache, and is read from there by the next request."""
    said: Any = {"system": [{"type": "text", "text": "Be kind to all.", "cache_control": {"type": "ephemeral"}}]}
    first, second = (ask(claude, **said).usage for _ in range(2))
    assert first.input_tokens == second.input_tokens == 1
    assert (first.cache_creation_input_tokens or 0) > 0
    assert second.cache_creation_input_tokens == 0
    total = (first.cache_creation_input_tokens or 0) + (first.cache_read_input_tokens or 0)
    assert second.cache_read_input_tokens == total


SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}), "a stop sequence": ({"stop_sequences": ["classic"]}, {"stop": ["classic"]}),
    "system": ({"system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "terse."}]},
               {"messages": [{"role": "system", "content": "Be terse."}, *ASKED]}),
    "seeded": ({"temperature": 0, "top_k": 5, "top_p": 0.9}, {"temperature": 0, "top_k": 5, "top_p": 0.9}),
    "a call": (
        {"tools": [TOOL], "tool_choice": {"type": "any", "disable_parallel_tool_use": True}, "messages": WEATHER},
        {"tools": [{"type": "function", "function": {
            "name": TOOL["name"], "description": TOOL["description"], "parameters": TOOL["input_schema"],
        }}], "tool_choice": "required", "parallel_tool_calls": False, "messages": WEATHER},
    ),
    "a result": (
        {"messages": [
            *WEATHER,
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "a1", "name": "weather", "input": {"city": "Bern"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a1", "content": "Sunny."}, {"type": "text", "text": "And?"},
            ]},
        ]},
        {"messages": [
            *WEATHER,
            {"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": "a1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}},
            ]},
            {"role": "tool", "tool_call_id": "a1", "content": "Sunny."}, {"role": "user", "content": "And?"},
        ]},
    ),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "openais"), SAME.values(), ids=SAME)
def test_the_same_tokens_as_through_openais_api(
    server: Served, theirs: dict[str, Any], openais: dict[str, Any]
) -> None:
    """One conversation has one prompt and one answer, whichever API it comes through."""
    plain = {"model": MODEL, "messages": ASKED, "max_tokens": 48, "temperature": 0}
    for _ in range(2):  # the first one has the prompt cached for the others, which are rounded alike
        openai = post(server, "/v1/chat/completions", {**plain, **openais}).json()
    message = post(server, "/v1/messages", {**plain, **theirs}).json()
    choice, usage = openai["choices"][0]["message"], message["usage"]
    assert usage["output_tokens"] == openai["usage"]["completion_tokens"]
    n_prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert n_prompt == openai["usage"]["prompt_tokens"]
    assert usage["cache_read_input_tokens"] == n_prompt - 1  # computed for the other one
    assert "".join(block.get("text", "") for block in message["content"]) == (choice["content"] or "")
    calls = [json.loads(call["function"]["arguments"]) for call in choice.get("tool_calls", ())]
    assert [block["input"] for block in message["content"] if block["type"] == "tool_use"] == calls


@pytest.fixture(scope="module")
def thinking(thinker: Served) -> Iterator[anthropic.Anthropic]:
    """Anthropic's own client of a server whose model thinks."""
    with anthropic.Anthropic(base_url=thinker.url, api_key="none", max_retries=0) as found:
        yield found


BUDGET: Any = {"type": "enabled", "budget_tokens": 6}


def test_thinking(thinking: anthropic.Anthropic) -> None:
    """A budget ends it, streamed and whole; it may be left out, and switched off."""
    shown, unseen = (ask(thinking, thinking={**BUDGET, **more}) for more in ({}, {"display": "omitted"}))
    (thought, _), (hidden, _) = shown.content, unseen.content
    assert thought.type == hidden.type == "thinking"
    assert (bool(thought.thinking), hidden.thinking) == (True, "")
    assert text(shown) == text(unseen) != ""
    said: Any = {"model": MODEL, "messages": ASKED, "max_tokens": 24, "extra_body": GREEDY, "thinking": BUDGET}
    with thinking.messages.stream(**said) as stream:
        final = stream.get_final_message()
    assert (final.content[0], text(final)) == (thought, text(shown))
    for usage in (shown.usage, unseen.usage, final.usage):
        details = usage.output_tokens_details
        assert details is not None
        assert 6 <= details.thinking_tokens < usage.output_tokens
    assert [block.type for block in ask(thinking, thinking={"type": "disabled"}).content] == ["text"]


def test_thinking_goes_back_to_the_model(thinking: anthropic.Anthropic) -> None:
    """The next request has it, also where the client has not seen it."""

    def n_tokens(*content: Any) -> int:
        then: list[Any] = [*ASKED, {"role": "assistant", "content": content}, {"role": "user", "content": "Sure?"}]
        return thinking.messages.count_tokens(model=MODEL, messages=then).input_tokens

    shown, unseen = (ask(thinking, thinking={**BUDGET, **more}).content for more in ({}, {"display": "omitted"}))
    assert n_tokens(*shown) == n_tokens(*unseen) > n_tokens(*shown[1:])


def test_what_coding_agents_send(server: Served) -> None:
    """A request with all that Claude Code adds to one; its second one finds the prompt of the first in the cache."""

    def usage(cch: str) -> Any:
        header = f"x-anthropic-billing-header: cc_version=2.1.177; cc_entrypoint=cli; cch={cch};"
        body = {
            "model": MODEL, "max_tokens": 8, "stream": True, "temperature": 1, "metadata": {"user_id": "user_x_session_y"},
            "system": [{"type": "text", "text": header}, *(
                {"type": "text", "text": each, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
                for each in ("You are a coding agent.", "\nBe terse.")
            )],
            "messages": [{"role": "user", "content": [
                {"type": "text", "text": "<system-reminder>\nToday is a day.\n</system-reminder>\n"},
                {"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}},
            ]}],
            "tools": [{**TOOL, "eager_input_streaming": True, "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema", **TOOL["input_schema"],
                "additionalProperties": False,
            }}],
            "thinking": {"type": "adaptive"}, "output_config": {"effort": "high"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        }  # fmt: skip
        headers = {
            "anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219,context-management-2025-06-27",
            "anthropic-dangerous-direct-browser-access": "true", "authorization": "Bearer none", "x-api-key": "none",
        }  # fmt: skip
        answered = post(server, "/v1/messages?beta=true", body, headers=headers)
        assert answered.status_code == 200, answered.text
        return json.loads(answered.text.partition("data: ")[2].partition("\n")[0])["message"]["usage"]

    usage("36ee5")
    assert usage("0aaa9")["input_tokens"] == 1


def test_errors(claude: anthropic.Anthropic) -> None:
    """The client raises its own exception for each, with the type and the id of the request."""
    cases: list[tuple[type[anthropic.APIStatusError], str, dict[str, Any], str]] = [
        (anthropic.NotFoundError, "not_found_error", {"model": "nobody"}, "does not exist"),
        (anthropic.BadRequestError, "invalid_request_error", {"messages": []}, "messages: "),
        (anthropic.BadRequestError, "invalid_request_error", {"messages": [{"role": "user", "content": "a " * 6000}]},
         "prompt is too long: "),
        (anthropic.BadRequestError, "invalid_request_error", {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "x"}},
         "tool_choice"),
    ]  # fmt: skip
    for kind, name, said, words in cases:
        with pytest.raises(kind, match=words) as raised:
            ask(claude, **said)
        assert raised.value.type == name
        assert raised.value.request_id == raised.value.body["request_id"]  # type: ignore[index]


def test_models(claude: anthropic.Anthropic, server: Served) -> None:
    """Its client lists them all, page by page; others get OpenAI's list from the same path."""
    assert [model.id for model in claude.models.list(limit=1)] == [MODEL, "gemma-3-270m", ALIAS]
    found = claude.models.retrieve(MODEL)
    assert (found.display_name, found.max_input_tokens) == (MODEL, server.models()[MODEL]["meta"]["n_ctx"])
    assert httpx.get(f"{server.url}/v1/models", timeout=10).json()["object"] == "list"
