"""Responses and their events: in OpenAI's shapes and order, with any frames of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from helpers.official import check
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.responses import Turn, read_response
from offgrid_llama.server.dialects.responses_items import input_items, sealed
from offgrid_llama.server.dialects.responses_schemas import ResponseRequest
from offgrid_llama.server.dialects.responses_writer import ResponsesWriter, replayed
from offgrid_llama.worker.frames import Answered, CallChunk, Chunk, Measures, TokenCounts, TokenLogprob

OWN = ("store", "warnings", "timings", "prompt_progress")
LOGPROBS = [TokenLogprob(b"a\xff", -0.5, [(b"a\xff", -0.5), (b"b", -1.0)])]
ANSWERS: dict[str, list[Chunk]] = {
    "text": [Chunk(1, 0, "a", logprobs=LOGPROBS), Chunk(1, 0, "b", finish_reason="stop")],
    "reasoning": [
        Chunk(1, 0, "", "r", n_tokens=2), Chunk(1, 0, "", "s", n_tokens=1), Chunk(1, 0, "a", n_tokens=1),
        Chunk(1, 0, "", finish_reason="stop", warnings=["w"]),
    ],
    "calls": [
        Chunk(1, 0, "a", "r", [CallChunk(0, "c", "f", "")]), Chunk(1, 0, "", calls=[CallChunk(0, "", "", '{"x": 1}')]),
        Chunk(1, 0, "", calls=[CallChunk(1, "d", "g", '{"input": "i"}')], finish_reason="tool_calls"),
    ],
    "a call in a namespace": [Chunk(1, 0, "", calls=[CallChunk(0, "c", "n.f", "{}")], finish_reason="tool_calls")],
    "a call of a tool that is not known": [Chunk(1, 0, "", calls=[CallChunk(0, "c", "x", "{}")], finish_reason="stop")],
    "cut": [Chunk(1, 0, "a"), Chunk(1, 0, "", finish_reason="length")],
    "cut in reasoning": [Chunk(1, 0, "", "r"), Chunk(1, 0, "", finish_reason="length")],
    "cut in a call": [Chunk(1, 0, "", calls=[CallChunk(0, "d", "g", '{"inp')], finish_reason="length")],
    "nothing": [Chunk(1, 0, "", finish_reason="stop")],
}  # fmt: skip
REQUEST: dict[str, Any] = {
    "model": "m", "input": "a", "instructions": "i", "metadata": {"a": "b"}, "user": "u", "temperature": 0.5, "top_p": 1,
    "max_output_tokens": 7, "max_tool_calls": 3, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k",
    "reasoning": {"effort": "low", "summary": "auto"}, "safety_identifier": "s", "truncation": "auto", "stream": True,
    "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}, "verbosity": "low"},
    "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True},
              {"type": "custom", "name": "g", "format": {"type": "grammar", "syntax": "lark", "definition": "start: X"}},
              {"type": "namespace", "name": "n", "description": "d", "tools": [{"type": "function", "name": "f"}]}],
    "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
}  # fmt: skip


def writer(**more: Any) -> ResponsesWriter:
    body = ResponseRequest.model_validate({**REQUEST, **more})
    made = read_response(body, Turn("resp_ab", [], input_items("a", "resp_ab", {}))).writer("m")
    assert isinstance(made, ResponsesWriter)
    return made


def parsed(data: bytes) -> list[Any]:
    found = []
    for event in data.split(b"\n\n")[:-1]:
        kind, _, body = event.partition(b"\n")
        value = msgspec.json.decode(body.removeprefix(b"data: "))
        assert kind == f"event: {value['type']}".encode()
        check(ResponseStreamEvent, value, OWN)
        found.append(value)
    return found


def written(made: ResponsesWriter, chunks: Sequence[Chunk]) -> list[Any]:
    data = made.begin() + b"".join(made.event(chunk) for chunk in chunks)
    return parsed(data + made.end(Answered(1, TokenCounts(5, 2, 4, reasoning=3))))


@pytest.mark.parametrize("chunks", ANSWERS.values(), ids=ANSWERS)
def test_events(chunks: list[Chunk]) -> None:
    """Events are numbered, each item begins and ends once, and its deltas are its text; the last event has all of them."""
    events = written(writer(), chunks)
    assert [event["sequence_number"] for event in events] == [*range(len(events))]
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    last = events[-1]["response"]
    assert events[-1]["type"] == f"response.{last['status']}"
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == last["output"]
    for index, item in enumerate(last["output"]):
        own = [event for event in events if event.get("output_index") == index]
        assert own[0]["type"] == "response.output_item.added"
        assert own[0]["item"]["id"] == item["id"]
        assert {event.get("item_id", item["id"]) for event in own} == {item["id"]}
        text = "".join(event["delta"] for event in own if event["type"].endswith(".delta"))
        assert text == (item["content"][0]["text"] if "content" in item else item.get("arguments", item.get("input")))


@pytest.mark.parametrize("chunks", ANSWERS.values(), ids=ANSWERS)
def test_whole_responses(chunks: list[Chunk]) -> None:
    """A response that is not streamed is the one that ends a stream, and its events can be made from it later."""
    made = writer(stream=False)
    for chunk in chunks:
        assert made.event(chunk) == b""
    found = made.whole(Answered(1, TokenCounts(5, 2, 4, reasoning=3)))
    check(Response, found, OWN)
    streamed = written(writer(), chunks)[-1]["response"]
    changing = ("created_at", "completed_at")
    assert {**found, **dict.fromkeys(changing)} == {**streamed, **dict.fromkeys(changing)}
    assert made.events == []
    again = parsed(b"".join(replayed(found)))
    assert again[-1]["response"] == found
    assert [event["sequence_number"] for event in again] == [*range(len(again))]


def test_what_is_told_again() -> None:
    """A response has the parameters of its request, and says how it ended."""
    found = written(writer(), ANSWERS["reasoning"])[-1]["response"]
    told = ("instructions", "metadata", "user", "temperature", "top_p", "max_output_tokens", "max_tool_calls", "text",
            "prompt_cache_key", "reasoning", "safety_identifier", "truncation", "tools", "tool_choice")  # fmt: skip
    assert {name: found[name] for name in told} == {name: REQUEST[name] for name in told}
    assert (found["error"], found["incomplete_details"], found["warnings"]) == (None, None, ["w"])
    assert found["usage"] == {
        "input_tokens": 5, "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 3}, "output_tokens": 4,
        "output_tokens_details": {"reasoning_tokens": 3}, "total_tokens": 9,
    }  # fmt: skip
    reasoning, text = found["output"]
    assert (reasoning["id"], text["id"]) == ("rs_ab0001", "msg_ab0002")
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "rs"}]
    assert reasoning["encrypted_content"] == sealed("rs")
    plain = written(writer(include=None), ANSWERS["reasoning"])[-1]["response"]["output"][0]
    assert "encrypted_content" not in plain


def test_tools_in_a_namespace() -> None:
    """An item has the name and the namespace of its tool."""
    for case, wanted in (("a call in a namespace", ("f", "n")), ("a call of a tool that is not known", ("x", None))):
        (found,) = written(writer(), ANSWERS[case])[-1]["response"]["output"]
        assert (found["name"], found.get("namespace")) == wanted


def test_answers_that_are_cut() -> None:
    """They are incomplete, and so is their last item; a whole answer has a text, if only an empty one."""
    found = written(writer(), ANSWERS["cut"])[-1]["response"]
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (found["completed_at"], found["output"][-1]["status"]) == (None, "incomplete")
    assert len(written(writer(), ANSWERS["cut in reasoning"])[-1]["response"]["output"]) == 1
    assert written(writer(), ANSWERS["nothing"])[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_logprobs() -> None:
    """Those of the text, in the events as they come and in the whole."""
    events = written(writer(), ANSWERS["text"])
    first = next(event for event in events if event["type"] == "response.output_text.delta")
    top = [{"token": "a\ufffd", "logprob": -0.5}, {"token": "b", "logprob": -1.0}]
    assert first["logprobs"] == [{**top[0], "top_logprobs": top}]
    whole = events[-1]["response"]["output"][0]["content"][0]["logprobs"]
    assert (whole[0]["bytes"], len(whole)) == ([97, 255], 1)


def test_progress_and_timings() -> None:
    """Progress is told before the first item; from the first token on, all events have the timings so far."""
    chunks = [
        Chunk(1, 0, "", n_computed=6, measures=Measures(9, 4, 0)), Chunk(1, 0, "a", measures=Measures(9, 4, 1)),
        Chunk(1, 0, "b", finish_reason="stop", measures=Measures(9, 4, 2)),
    ]  # fmt: skip
    events = written(writer(), chunks)
    assert [event["type"] for event in events[2:4]] == ["response.in_progress", "response.output_item.added"]
    assert events[2]["prompt_progress"] == {"total": 9, "cache": 4, "processed": 6, "time_ms": 0.0}
    assert ["timings" in event for event in events] == [at > 2 for at in range(len(events))]
    assert [event["timings"]["predicted_n"] for event in events if event["type"].endswith("delta")] == [1, 2]
    assert events[-1]["response"]["timings"]["predicted_n"] == events[-1]["timings"]["predicted_n"] == 2
    assert "timings" not in written(writer(), ANSWERS["text"])[-1]["response"]


def test_warnings_of_the_whole() -> None:
    """Warnings of all answers come with the last event."""
    made = writer()
    made.begin()
    made.event(Chunk(1, 0, "a", finish_reason="stop", warnings=["v"]))
    (last,) = parsed(made.end(Answered(1, TokenCounts(5, 2, 4), warnings=["v", "w"])))
    assert last["response"]["warnings"] == ["v", "w"]


@pytest.mark.parametrize(
    ("status", "code"), [(400, "invalid_prompt"), (429, "rate_limit_exceeded"), (503, "server_error")]
)
def test_failures(status: int, code: str) -> None:
    """An event with the error, and then one with the response as far as it has come."""
    made = writer()
    data = made.begin() + made.event(Chunk(1, 0, "a"))
    *_, error, last = parsed(data + made.failed(ApiError(status, "why", code="own", param="input")))
    assert (error["type"], error["message"], error["code"], error["param"]) == ("error", "why", "own", "input")
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": code, "message": "why"}
    assert last["response"]["output"][0]["status"] == "incomplete"
    check(Response, last["response"], OWN)


def test_in_the_background() -> None:
    """A response waits before it begins, keeps its events, and may be cancelled."""
    made = writer(background=True, stream=False)
    assert made.status == "queued"
    events = parsed(made.queue() + made.begin() + made.event(Chunk(1, 0, "a")) + made.cancelled())
    assert [event["type"] for event in events][:3] == ["response.created", "response.queued", "response.in_progress"]
    assert [event["response"]["status"] for event in events[:3]] == ["queued", "queued", "in_progress"]
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.incomplete", "cancelled")
    assert parsed(b"".join(made.events)) == events
    assert len(made.events) == len(events)
    assert writer(store=False).events == []
