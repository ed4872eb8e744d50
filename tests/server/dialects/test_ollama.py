"""Ollama's API: requests as what a worker is asked for, and a worker's frames as lines, without a worker."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from ollama import ChatResponse, GenerateResponse

from helpers.official import check
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.choice import dialect_of
from offgrid_llama.server.dialects.ollama import (
    OLLAMA,
    OllamaChatWriter,
    OllamaTextWriter,
    loaded,
    read_generate,
    read_ollama_chat,
)
from offgrid_llama.server.dialects.ollama_schemas import ChatBody, GenerateBody
from offgrid_llama.worker import frames
from offgrid_llama.worker.generation import Constraint, Conversation, Texts

ANSWERED = frames.Answered(1, frames.TokenCounts(26, 20, 4), timings=frames.Timings(0.25, 0.5, 1.5))
LOGPROBS = [frames.TokenLogprob(b"\xff", -1.0, [(b"a", -2.0)]), frames.TokenLogprob(b"b", -0.5)]


def chat(**said: Any) -> Conversation:
    what = read_ollama_chat(ChatBody.model_validate({"model": "m", **said})).what
    assert isinstance(what, Conversation)
    return what


def generate(**said: Any) -> Conversation | Texts:
    what = read_generate(GenerateBody.model_validate({"model": "m", "prompt": "p", **said})).what
    assert isinstance(what, (Conversation, Texts))
    return what


def lines(data: bytes) -> list[Any]:
    assert data == b"" or data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


# Requests ---------------------------------------------------------------------------------------------------------------


def test_a_recorded_chat() -> None:
    """A client's conversation with a tool becomes one in OpenAI's terms."""
    parameters = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
    what = chat(
        messages=[
            {"role": "user", "content": "Weather in Bern?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "w", "arguments": {"city": "Bern"}}}]},
            {"role": "tool", "content": "11 degrees", "tool_name": "w"},
        ],
        tools=[{"type": "function", "function": {"name": "w", "description": "The weather.", "parameters": parameters}}],
        options={"temperature": 0, "num_ctx": 4096}, think=False, stream=False, keep_alive="10m",
    )  # fmt: skip
    assert [message["role"] for message in what.messages] == ["user", "assistant", "tool"]
    assert what.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Bern"}
    assert what.messages[2]["tool_call_id"] == what.messages[1]["tool_calls"][0]["id"]
    assert what.tools == [
        {"type": "function", "function": {"name": "w", "description": "The weather.", "parameters": parameters}}
    ]  # fmt: skip
    assert (what.options.sampling.temperature, what.reasoning_budget, what.reasons, what.truncate) == (
        0,
        0,
        False,
        True,
    )


def test_how_a_request_is_answered() -> None:
    """By default as a stream; a model stays loaded as is asked for."""
    asked = read_ollama_chat(ChatBody(model="m"))
    assert (asked.stream, asked.keep_alive, asked.model) == (True, None, "m")
    asked = read_generate(GenerateBody.model_validate({"model": "m", "stream": False, "keep_alive": "5m"}))
    assert (asked.stream, asked.keep_alive) == (False, 300)
    assert (chat(think=True).reasons, chat(think="low").reasons, chat().reasons) == (True, True, False)


def test_answers_that_are_begun() -> None:
    """The model goes on with a last message of the assistant, unless that has calls, or nothing in it."""
    user, call = {"role": "user", "content": "a"}, {"function": {"name": "f", "arguments": {}}}
    for last, goes_on in (
        ({"role": "Assistant", "content": "b"}, True), ({"role": "assistant", "content": ""}, False), (user, False),
        ({"role": "assistant", "content": "b", "tool_calls": [call]}, False),
    ):  # fmt: skip
        assert chat(messages=[user, last]).continue_final_message is goes_on
    assert not chat(messages=[]).continue_final_message


def test_prompts() -> None:
    """A prompt is a conversation, which a model without a template completes; raw, it is the text itself."""
    what = generate(system="s", context=[1, 2], format="json")
    assert isinstance(what, Conversation)
    assert what.messages == [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    assert (what.before, what.tell_tokens, what.or_text) == ([1, 2], True, "p")
    texts = what.as_texts()
    assert (texts.prompts, texts.tell_tokens) == ([[1, 2, "p"]], True)
    assert texts.options.constraint == Constraint("json_object", {})
    raw = generate(raw=True, suffix="s", format={"type": "integer"})
    assert isinstance(raw, Texts)
    assert (raw.prompts, raw.suffix, raw.parse_special, raw.tell_tokens) == (["p"], None, True, False)
    assert raw.options.constraint == Constraint("json_schema", {"type": "integer"})
    infill = generate(suffix="s", system="not used")
    assert isinstance(infill, Texts)
    assert (infill.prompts, infill.suffix, infill.parse_special) == (["p"], "s", False)


@pytest.mark.parametrize("more", [{"system": "s"}, {"template": "t"}, {"context": [1]}])
def test_raw_stands_alone(more: dict[str, Any]) -> None:
    """It is refused with what it would not use, in Ollama's words."""
    with pytest.raises(ApiError, match="raw mode does not support template, system, or context"):
        generate(raw=True, **more)


def test_templates() -> None:
    """A template of the request gets the system message and the prompt as its variables."""
    what = generate(system="s", template="{{ .System }}: {{ .Prompt }}", think=True)
    assert isinstance(what, Conversation)
    assert what.template == '{{ system }}{{ ": " }}{{ prompt }}'
    assert what.variables == {"system": "s", "prompt": "p", "response": "", "enable_thinking": True}


# Responses --------------------------------------------------------------------------------------------------------------


def test_errors() -> None:
    """They are one text, also in a stream that has begun."""
    error = ApiError(404, "there is no x", code="a", param="b")
    assert OLLAMA.error(error) == {"error": "there is no x"}
    assert lines(OllamaChatWriter("m").failed(error)) == [{"error": "there is no x"}]
    for path, found in (("/api/chat", OLLAMA), ("/app/api/tags", OLLAMA), ("/v1/models", None), ("/api", None)):
        scope = {"path": path, "root_path": "/app" if path.startswith("/app") else ""}
        assert (dialect_of(scope) is OLLAMA) is (found is OLLAMA)


def test_a_stream_of_a_chat() -> None:
    """Each chunk is a line; the last line has the reason, the times in nanoseconds, and the counts."""
    writer = OllamaChatWriter("m")
    writer.load_seconds = 2.0
    assert writer.media_type == "application/x-ndjson"
    assert writer.begin() == b""
    (line,) = lines(writer.sign_of_life)
    check(ChatResponse, line)
    assert (line["message"], line["done"]) == ({"role": "assistant", "content": ""}, False)
    (line,) = lines(writer.event(frames.Chunk(1, 0, "a", "b")))
    check(ChatResponse, line)
    assert (line["model"], line["done"]) == ("m", False)
    assert line["message"] == {"role": "assistant", "content": "a", "thinking": "b"}
    assert writer.event(frames.Chunk(1, 0, "", finish_reason="length")) == b""
    (line,) = lines(writer.end(ANSWERED))
    check(ChatResponse, line)
    assert (line["done"], line["done_reason"], line["message"]) == (
        True,
        "length",
        {"role": "assistant", "content": ""},
    )
    assert (line["prompt_eval_count"], line["eval_count"]) == (26, 4)
    assert (line["load_duration"], line["prompt_eval_duration"], line["eval_duration"]) == (
        2_250_000_000, 500_000_000, 1_500_000_000,
    )  # fmt: skip
    assert line["total_duration"] > 0
    created = datetime.fromisoformat(line["created_at"].replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - created) < timedelta(minutes=5)
    assert line["created_at"].endswith("Z")


def test_calls_come_complete() -> None:
    """The parts of a call are one call, with its arguments as an object, once it is complete."""
    writer = OllamaChatWriter("m")
    part = frames.CallChunk
    assert writer.event(frames.Chunk(1, 0, "", calls=[part(0, "x", "f", ""), part(0, "", "", '{"a"')])) == b""
    assert writer.event(frames.Chunk(1, 0, "", calls=[part(0, "", "", ": [1]}")])) == b""
    (line,) = lines(writer.event(frames.Chunk(1, 0, "", calls=[part(1, "y", "g", '{"b": 2}')])))
    check(ChatResponse, line, ("id", "index"))
    assert line["message"]["tool_calls"] == [
        {"id": "x", "function": {"index": 0, "name": "f", "arguments": {"a": [1]}}}
    ]
    (line,) = lines(writer.event(frames.Chunk(1, 0, "", finish_reason="tool_calls")))
    assert line["message"]["tool_calls"] == [{"id": "y", "function": {"index": 1, "name": "g", "arguments": {"b": 2}}}]
    assert lines(writer.end(ANSWERED))[0]["done_reason"] == "stop"
    cut = OllamaChatWriter("m")
    assert cut.event(frames.Chunk(1, 0, "", calls=[part(0, "x", "f", '{"a')], finish_reason="length")) == b""


def test_whole_chats() -> None:
    """All at once, with calls, thoughts and logprobs."""
    calls = [frames.CallChunk(0, "x", "f", '{"a": 1}'), frames.CallChunk(1, "y", "g", "")]
    message = frames.Message("c", "t", calls, "tool_calls", LOGPROBS)
    whole = OllamaChatWriter("m").whole(frames.Answered(1, ANSWERED.tokens, [message], ANSWERED.timings, ["w"]))
    check(ChatResponse, whole, ("id", "index", "bytes", "warnings"))
    assert [call["function"]["arguments"] for call in whole["message"]["tool_calls"]] == [{"a": 1}, {}]
    assert (whole["message"]["thinking"], whole["done_reason"], whole["warnings"]) == ("t", "stop", ["w"])
    assert whole["logprobs"] == [
        {"token": "\ufffd", "logprob": -1.0, "bytes": [255],
         "top_logprobs": [{"token": "a", "logprob": -2.0, "bytes": [97]}]},
        {"token": "b", "logprob": -0.5, "bytes": [98]},
    ]  # fmt: skip


def test_texts() -> None:
    """The same for a prompt, whose answer tells the tokens that a next request may give as its context."""
    writer = OllamaTextWriter("m")
    (line,) = lines(writer.event(frames.Chunk(1, 0, "a", "b", logprobs=LOGPROBS)))
    check(GenerateResponse, line, ("bytes",))
    assert (line["response"], line["thinking"], line["done"], len(line["logprobs"])) == ("a", "b", False, 2)
    answered = frames.Answered(1, ANSWERED.tokens, timings=None, told_tokens=[1, 2])
    (line,) = lines(writer.end(answered))
    check(GenerateResponse, line)
    assert (line["response"], line["context"], line["done_reason"]) == ("", [1, 2], "stop")
    assert line["eval_duration"] == 1  # clients divide by it
    message = frames.Message("c", "", [], "length")
    whole = OllamaTextWriter("m").whole(frames.Answered(1, ANSWERED.tokens, [message], ANSWERED.timings))
    check(GenerateResponse, whole)
    assert (whole["response"], whole["done_reason"], "context" in whole) == ("c", "length", False)


@pytest.mark.parametrize("reason", ["load", "unload"])
def test_loads(reason: str) -> None:
    """A request that only loads a model has an empty answer."""
    for kind, field in ((ChatResponse, "message"), (GenerateResponse, "response")):
        told = loaded("m", field, reason)
        check(kind, told)
        assert (told["done"], told["done_reason"]) == (True, reason)
