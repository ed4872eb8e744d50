"""The Responses API of a real model, by OpenAI's own client: conversations, tools, and responses to come back for."""

from __future__ import annotations

import json
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_item import ResponseItem
from openai.types.responses.response_item_list import ResponseItemList
from pydantic import BaseModel, Field

from helpers.long_responses import LONG
from helpers.official import check
from helpers.requests import ASKED, post
from helpers.serving import MODEL, Served, events, wait_until

OWN = ("store", "warnings", "timings", "prompt_progress")
OPTIONS: Any = {"model": MODEL, "temperature": 0, "max_output_tokens": 24}
QUESTION = "What is 2+2?"
WEATHER: Any = {
    "type": "function", "name": "weather", "description": "The weather of a city.", "strict": True,
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"],
        "additionalProperties": False,
    },
}  # fmt: skip
CALLING: Any = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_output_tokens": 64}


def raw(server: Served, path: str, **options: Any) -> httpx.Response:
    return httpx.get(f"{server.url}/v1/responses/{path}", timeout=60, **options)


def streamed(server: Served, **more: Any) -> list[Any]:
    """Return the events of a stream, each checked against OpenAI's types."""
    body = {**OPTIONS, "input": QUESTION, "stream": True, **more}
    with httpx.stream("POST", f"{server.url}/v1/responses", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        found = [json.loads(each) for each in events(response)]
    for each in found:
        check(ResponseStreamEvent, each, OWN)
    return found


CASES: dict[str, dict[str, Any]] = {
    "plain": {}, "instructions": {"instructions": "Answer in French."}, "a call": CALLING, "cut": {"max_output_tokens": 2},
    "an object": {"text": {"format": {"type": "json_object"}}, "max_output_tokens": 40},
    "a schema": {"text": {"format": {"type": "json_schema", "name": "n", "schema": {"enum": ["a", "b"]}}}},
    "logprobs": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    "messages": {"input": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": QUESTION}]},
    "parts": {"input": [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]},
    "a tool that is not held": {
        **CALLING, "tools": [{**WEATHER, "parameters": {**WEATHER["parameters"], "not": {"maxProperties": 0}}}],
    },
}  # fmt: skip


@pytest.mark.parametrize("more", CASES.values(), ids=CASES)
def test_types_of_responses(server: Served, more: dict[str, Any]) -> None:
    """Responses and all events are of OpenAI's types; a stream ends with the same response, which is kept."""
    post(
        server, "/v1/responses", {**OPTIONS, "input": QUESTION, **more}
    )  # the prompt is cached for both, rounded alike
    whole = post(server, "/v1/responses", {**OPTIONS, "input": QUESTION, **more}).json()
    found = streamed(server, **more)
    last = found[-1]["response"]
    for each in (whole, last):
        check(Response, each, OWN)
        assert raw(server, each["id"]).json() == each
        listed = raw(server, f"{each['id']}/input_items").json()
        check(ResponseItemList, listed)
    assert [text(item) for item in last["output"]] == [text(item) for item in whole["output"]]
    assert (last["status"], last["usage"], last.get("warnings")) == (
        whole["status"], whole["usage"], whole.get("warnings"),
    )  # fmt: skip
    kept = raw(server, last["id"], params={"stream": True, "starting_after": 3})
    assert [json.loads(each) for each in events(kept)] == found[4:]


def text(item: dict[str, Any]) -> str:
    return str(item["content"][0]["text"] if "content" in item else item["arguments"])


def test_the_same_tokens_as_chat_completions(client: openai.OpenAI) -> None:
    """A conversation of three turns with a call in it, through both APIs, by items and by previous responses."""
    first = client.responses.create(**{**OPTIONS, **CALLING}, instructions="Be brief.", input="Weather in Bern?")
    (call,) = first.output
    assert call.type == "function_call"
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    then: Any = {**OPTIONS, "tools": [WEATHER], "tool_choice": "none", "instructions": "Be brief."}
    second = client.responses.create(**then, input=[result], previous_response_id=first.id)
    items: Any = [{"role": "user", "content": "Weather in Bern?"}, call.model_dump(exclude_none=True), result]
    by_items = client.responses.create(**then, input=items, store=False)
    function = {name: value for name, value in WEATHER.items() if name != "type"}
    called = {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
    messages: Any = [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Bern?"},
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": call.call_id, "content": "rain"},
    ]  # fmt: skip
    tools: Any = [{"type": "function", "function": function}]
    chat = client.chat.completions.create(
        model=MODEL, messages=messages, tools=tools, tool_choice="none", temperature=0, max_tokens=24
    )
    assert chat.usage is not None
    assert second.output_text
    assert second.output_text == by_items.output_text == chat.choices[0].message.content
    assert second.usage is not None
    assert by_items.usage is not None
    assert second.usage.input_tokens == by_items.usage.input_tokens == chat.usage.prompt_tokens


def test_instructions_are_not_carried_on(client: openai.OpenAI) -> None:
    """A response that goes on from another has its own instructions; the rest of the conversation stays."""
    first = client.responses.create(**OPTIONS, input=QUESTION, instructions="Talk like a pirate.")
    second = client.responses.create(**OPTIONS, input="And 3+3?", previous_response_id=first.id)
    assert (second.previous_response_id, second.instructions) == (first.id, None)
    prompt = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": first.output_text}]
    counted = client.responses.input_tokens.count(model=MODEL, input=[*prompt, {"role": "user", "content": "And 3+3?"}])  # type: ignore[list-item]
    assert second.usage is not None
    assert counted.input_tokens == second.usage.input_tokens
    more = client.responses.input_tokens.count(
        model=MODEL, input="And?", previous_response_id=second.id, tools=[WEATHER]
    )
    assert more.input_tokens > counted.input_tokens
    assert more.object == "response.input_tokens"


def test_items_by_reference(client: openai.OpenAI) -> None:
    """An item of an earlier response can be named instead of sent again."""
    first = client.responses.create(**OPTIONS, input=QUESTION)
    question = client.responses.input_items.list(first.id).data[0].id
    assert question is not None
    assert first.output[0].id is not None
    references: Any = [{"type": "item_reference", "id": id_} for id_ in (question, first.output[0].id)]
    found = client.responses.create(**OPTIONS, input=[*references, {"role": "user", "content": "And 3+3?"}])
    chained = client.responses.create(**OPTIONS, input="And 3+3?", previous_response_id=first.id)
    assert found.output_text == chained.output_text
    assert chained.usage is not None
    assert chained.usage.input_tokens_details.cached_tokens > 40
    with pytest.raises(openai.NotFoundError, match="Item with id 'msg_x' not found"):
        client.responses.create(**OPTIONS, input=[{"type": "item_reference", "id": "msg_x"}])


def test_conversations_that_are_too_long(client: openai.OpenAI, server: Served) -> None:
    """With ``truncation`` their oldest items are left out, and a warning says so. All of them are kept."""
    turn: Any = [{"role": "user", "content": "cat " * 100}, {"role": "assistant", "content": "b"}]
    body: Any = {**OPTIONS, "input": [*turn * 100, *ASKED], "instructions": "Be terse."}
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        client.responses.create(**body, truncation="disabled")
    found = post(server, "/v1/responses", {**body, "truncation": "auto"}).json()
    check(Response, found, OWN)
    assert (found["truncation"], found["output"][0]["type"]) == ("auto", "message")
    assert found["warnings"][0].startswith("input: the oldest")
    assert streamed(server, **body, truncation="auto")[-1]["response"]["warnings"] == found["warnings"]
    assert len(list(client.responses.input_items.list(found["id"], limit=100))) == 201
    then = client.responses.create(**OPTIONS, input="And 3+3?", previous_response_id=found["id"], truncation="auto")
    assert then.output_text


def test_progress_and_timings(server: Served) -> None:
    """A stream tells how much of the prompt is computed, and how fast tokens come; the response has the timings, too."""
    found = streamed(server, return_progress=True, cache_prompt=False, ignore_eos=True, min_tokens=24)
    told = [event["prompt_progress"] for event in found if "prompt_progress" in event]
    last = found[-1]["response"]
    assert told[-1]["total"] == last["usage"]["input_tokens"]
    assert last["timings"]["predicted_n"] == last["usage"]["output_tokens"] == 24
    assert raw(server, last["id"]).json() == last
    whole = post(server, "/v1/responses", {**OPTIONS, "input": QUESTION, "timings_per_token": True}).json()
    check(Response, whole, OWN)
    assert whole["timings"]["predicted_n"] == whole["usage"]["output_tokens"]


def test_conversations_are_not_compacted(client: openai.OpenAI) -> None:
    """A client is told so, and what to do instead."""
    with pytest.raises(openai.NotFoundError, match="truncation") as refused:
        client.responses.compact(model=MODEL, input=QUESTION)
    assert refused.value.code == "not_supported"


def test_pages_of_input_items(client: openai.OpenAI) -> None:
    """All items that a response answers, in both orders, page by page."""
    first = client.responses.create(**OPTIONS, input=[{"role": "user", "content": str(i)} for i in range(5)])
    second = client.responses.create(**OPTIONS, input="b", previous_response_id=first.id)
    ascending = [item.id for item in client.responses.input_items.list(second.id, order="asc", limit=100)]
    assert len(set(ascending)) == 7
    assert [item.id for item in client.responses.input_items.list(second.id, limit=2)] == ascending[::-1]
    page = client.responses.input_items.list(second.id, order="asc", limit=2, after=ascending[2] or "")
    assert ([item.id for item in page.data], page.has_more) == (ascending[3:5], True)
    for options, param in (({"after": "x"}, "after"), ({"limit": 0}, "limit"), ({"order": "up"}, "order")):
        with pytest.raises(openai.BadRequestError, match=param):
            client.responses.input_items.list(second.id, **options)


def test_a_tools_loop(client: openai.OpenAI) -> None:
    """A streamed call is whole for the client, and its result is answered."""
    with client.responses.stream(**{**OPTIONS, **CALLING}, input="Weather in Bern?") as stream:
        kinds = [event.type for event in stream]
        call = stream.get_final_response().output[0]
    assert kinds[2:4] == ["response.output_item.added", "response.function_call_arguments.delta"]
    assert kinds[-3:] == ["response.function_call_arguments.done", "response.output_item.done", "response.completed"]
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"city"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    last = client.responses.create(**OPTIONS, input=[{"role": "user", "content": "a"}, call.to_dict(), result])  # type: ignore[list-item]
    assert last.output_text


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=20)


def test_answers_as_objects(client: openai.OpenAI) -> None:
    """The client's own schema holds, whole and streamed."""
    parsed = client.responses.parse(**OPTIONS, input="Name a city.", text_format=City).output_parsed
    assert isinstance(parsed, City)
    with client.responses.stream(**OPTIONS, input="Name a city.", text_format=City) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == parsed


def test_what_is_not_kept(client: openai.OpenAI) -> None:
    """A response that is deleted, or not stored, is not there, and no conversation goes on from it."""
    kept = client.responses.create(**OPTIONS, input=QUESTION, metadata={"a": "b"})
    assert client.responses.retrieve(kept.id).metadata == {"a": "b"}
    client.responses.delete(kept.id)
    passing = client.responses.create(**OPTIONS, input=QUESTION, store=False)
    for id_ in (kept.id, passing.id, "resp_x"):
        for ask in (client.responses.retrieve, client.responses.delete, client.responses.cancel,
                    client.responses.input_items.list):  # fmt: skip
            with pytest.raises(openai.NotFoundError, match=f"Response with id '{id_}' not found"):
                ask(id_)
        with pytest.raises(openai.BadRequestError, match="not found") as refused:
            client.responses.create(**OPTIONS, input="b", previous_response_id=id_)
        assert refused.value.code == "previous_response_not_found"


def test_in_the_background(client: openai.OpenAI, server: Served) -> None:
    """It goes on without a client; one that comes back gets what it has missed, and then the rest."""
    begun = client.responses.create(**{**LONG, "max_output_tokens": 150})
    assert begun.status == "queued"
    check(Response, raw(server, begun.id).json(), OWN)
    seen = []
    with client.responses.retrieve(begun.id, stream=True) as stream:
        for event in stream:
            seen.append(event.sequence_number)
            if event.sequence_number == 8:
                break
    rest = list(client.responses.retrieve(begun.id, stream=True, starting_after=8))
    assert [*seen, *(event.sequence_number for event in rest)] == [*range(len(seen) + len(rest))]
    last = rest[-1]
    assert last.type in ("response.completed", "response.incomplete")
    assert client.responses.retrieve(begun.id).to_dict() == last.response.to_dict()
    again = list(client.responses.retrieve(begun.id, stream=True, starting_after=8))
    assert [event.to_dict() for event in again] == [event.to_dict() for event in rest]
    assert client.responses.cancel(begun.id).status == last.response.status
    going_on = client.responses.create(**OPTIONS, input="Thanks.", previous_response_id=begun.id)
    assert going_on.output_text


def test_a_stream_in_the_background(client: openai.OpenAI) -> None:
    """Its first events come at once, and it can be cancelled, which keeps its output so far."""
    with client.responses.create(**LONG, stream=True) as stream:
        kinds = []
        for event in stream:
            kinds.append(event.type)
            if event.type == "response.created":
                id_ = event.response.id
            if event.type == "response.output_text.delta":
                break
        assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
        with pytest.raises(openai.BadRequestError, match="still in progress"):
            client.responses.create(**OPTIONS, input="b", previous_response_id=id_)
        cancelled = client.responses.cancel(id_)
        *_, last = stream
    assert (cancelled.status, last.type) == ("cancelled", "response.incomplete")
    assert cancelled.output[-1].status == "incomplete"  # type: ignore[union-attr]
    assert client.responses.retrieve(id_).to_dict() == cancelled.to_dict() == last.response.to_dict()


def test_what_runs_is_ended_by_its_end(client: openai.OpenAI, server: Served) -> None:
    """Deleting a response that runs, and leaving one that is not in the background, free their sequences."""
    begun = client.responses.create(**LONG)
    wait_until(lambda: server.models()[MODEL]["requests"] == 1)
    client.responses.delete(begun.id)
    wait_until(lambda: server.models()[MODEL]["requests"] == 0)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(begun.id)
    with client.responses.create(**{**LONG, "background": False}, stream=True) as stream:
        id_ = next(iter(stream)).response.id
    wait_until(lambda: server.models()[MODEL]["requests"] == 0)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(id_)
    whole = client.responses.create(**OPTIONS, input=QUESTION)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(whole.id)


def test_failures(client: openai.OpenAI, server: Served) -> None:
    """An input that is too long is refused by its name; in the background it fails, and says why."""
    long = "hello world " * 5000
    with pytest.raises(openai.BadRequestError, match=r"in the input, 24 in the completion") as refused:
        client.responses.create(**OPTIONS, input=long)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")
    begun = client.responses.create(**OPTIONS, input=long, background=True)
    wait_until(lambda: client.responses.retrieve(begun.id).status == "failed")
    failed = client.responses.retrieve(begun.id)
    assert failed.error is not None
    assert (failed.error.code, "maximum context length" in failed.error.message) == ("invalid_prompt", True)
    kinds = [event.type for event in client.responses.retrieve(begun.id, stream=True)]
    assert kinds == ["response.created", "response.queued", "error", "response.failed"]
    check(Response, raw(server, begun.id).json(), OWN)
    with pytest.raises(openai.NotFoundError, match="does not exist here"):
        client.responses.create(model="x", input="a", background=True)


def test_what_codex_sends(server: Served) -> None:
    """Requests of other programs have much that means nothing here, and tools that take a text."""
    patch = {"type": "custom", "name": "apply_patch", "description": "Edit.",
             "format": {"type": "grammar", "syntax": "lark", "definition": "start: /.+/"}}  # fmt: skip
    body = {
        "model": MODEL, "instructions": "You are a coding agent.", "store": False, "stream": True,
        "input": [{"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "<permissions/>"}]},
                  {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "<environment/>"}]},
                  {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi."}]}],
        "tools": [{**WEATHER, "strict": False}, patch], "tool_choice": {"type": "custom", "name": "apply_patch"},
        "reasoning": {"effort": "medium", "summary": "auto"}, "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0199", "text": {"verbosity": "medium"}, "max_output_tokens": 60, "temperature": 0,
        "parallel_tool_calls": False, "client_metadata": {"a": "b"},
    }  # fmt: skip
    found = streamed(server, **body)
    item = found[-1]["response"]["output"][0]
    check(ResponseItem, {"status": "completed", **item})
    assert (item["type"], item["name"]) == ("custom_tool_call", "apply_patch")
    output = {"type": "custom_tool_call_output", "call_id": item["call_id"], "output": "Done."}
    body["input"] = [*body["input"], item, output]  # type: ignore[misc]
    body |= {"tool_choice": "auto"}
    assert streamed(server, **body)[-1]["response"]["output"]


def test_the_same_answer_as_a_chat(client: openai.OpenAI) -> None:
    """A question is answered with the same text, whole and streamed."""
    chat = client.chat.completions.create(model=MODEL, messages=ASKED, temperature=0, max_tokens=24)
    found = client.responses.create(**OPTIONS, input=QUESTION)
    assert found.output_text == chat.choices[0].message.content
    with client.responses.stream(**OPTIONS, input=QUESTION) as stream:
        assert (
            "".join(event.delta for event in stream if event.type == "response.output_text.delta") == found.output_text
        )
