"""Responses, streams, errors and lists of models in Anthropic's shape."""

from __future__ import annotations

import json
from typing import Any

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.anthropic import ANTHROPIC, MessageWriter, Wanted
from offgrid_llama.server.dialects.anthropic_models import models_page
from offgrid_llama.server.dialects.anthropic_signature import SHOWN, hidden
from offgrid_llama.server.dialects.choice import dialect_of
from offgrid_llama.server.dialects.openai import OPENAI
from offgrid_llama.worker.frames import Answered, CallChunk, Chunk, Message, TokenCounts

COUNTS = TokenCounts(9, 4, 3)


def read(stream: bytes) -> list[dict[str, Any]]:
    """Return the data of events, each of the kind that its name says."""
    found = []
    for each in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = each.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def streamed(wanted: Wanted, *chunks: Chunk, ended: str = "stop", stop: str = "") -> list[dict[str, Any]]:
    writer = MessageWriter("m", wanted)
    first, *_ = chunks
    first.tokens = TokenCounts(9, 4, 1)
    chunks[-1].finish_reason, chunks[-1].stop = ended, stop
    return read(writer.begin() + b"".join(map(writer.event, chunks)) + writer.end(Answered(1, COUNTS)))


def whole(wanted: Wanted, message: Message, **more: Any) -> dict[str, Any]:
    return MessageWriter("m", wanted).whole(Answered(1, COUNTS, [message], **more))


def gathered(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the content blocks of a stream, as a client puts them together; each ends before the next begins."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert (is_open, event["index"]) == (False, len(blocks))
            blocks.append(dict(event["content_block"]))
            is_open = True
        elif event["type"] == "content_block_delta":
            assert (is_open, event["index"]) == (True, len(blocks) - 1)
            (field, more), = ((name, more) for name, more in event["delta"].items() if name != "type")  # fmt: skip
            if field == "partial_json":
                blocks[-1]["json"] = blocks[-1].get("json", "") + more
            else:
                blocks[-1][field] += more
        elif event["type"] == "content_block_stop":
            assert (is_open, event["index"]) == (True, len(blocks) - 1)
            is_open = False
    assert not is_open
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block.pop("json", "") or "{}")
    return blocks


def test_the_order_of_events() -> None:
    """The message, its blocks one after the other, why it ends, the end; a ping when the first block has begun."""
    calls = [CallChunk(0, "c0", "f", '{"a":')]
    rest = [CallChunk(0, "", "", "1}"), CallChunk(1, "c1", "g", "")]
    found = streamed(
        Wanted(8), Chunk(1, 0, "", "Hm"), Chunk(1, 0, "", "."), Chunk(1, 0, "I "), Chunk(1, 0, "look.", calls=calls),
        Chunk(1, 0, "So.", calls=rest), ended="tool_calls",
    )  # fmt: skip
    block, delta = "content_block_start", "content_block_delta"
    assert [event["type"] for event in found] == [
        "message_start", block, "ping", delta, delta, delta, "content_block_stop", block, delta, delta, "content_block_stop",
        block, delta, delta, "content_block_stop", block, delta, "content_block_stop", block, "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert gathered(found) == [
        {"type": "thinking", "thinking": "Hm.", "signature": SHOWN}, {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}}, {"type": "text", "text": "So."},
        {"type": "tool_use", "id": "c1", "name": "g", "input": {}},
    ]  # fmt: skip
    message = found[0]["message"]
    assert (message["content"], message["stop_reason"], message["role"]) == ([], None, "assistant")
    assert message["usage"]["input_tokens"] == 5
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == 3


def test_an_empty_answer() -> None:
    """It has no block, streamed and whole."""
    assert [event["type"] for event in streamed(Wanted(8), Chunk(1, 0, ""))] == [
        "message_start", "message_delta", "message_stop",
    ]  # fmt: skip
    assert whole(Wanted(8), Message("", "", [], "stop"))["content"] == []


def test_a_whole_answer() -> None:
    """It has the blocks that a stream has. A call that is cut off is none: it must not be carried out."""
    calls = [CallChunk(0, "c0", "f", '{"a": 1}'), CallChunk(1, "c1", "g", ""), CallChunk(2, "c2", "h", '{"a": "b')]
    found = whole(Wanted(8), Message("Hi.", "Hm.", calls, "tool_calls"))
    assert found["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": SHOWN}, {"type": "text", "text": "Hi."},
        {"type": "tool_use", "id": "c0", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "c1", "name": "g", "input": {}},
    ]  # fmt: skip
    assert (found["type"], found["model"], found["id"][:4]) == ("message", "m", "msg_")


@pytest.mark.parametrize(
    ("reason", "stop", "max_tokens", "expected"),
    [
        ("stop", "", 8, ("end_turn", None)), ("stop", "END", 8, ("stop_sequence", "END")),
        ("length", "", 3, ("max_tokens", None)), ("length", "", 8, ("model_context_window_exceeded", None)),
        ("tool_calls", "", 8, ("tool_use", None)), ("tool_calls", "END", 8, ("tool_use", None)),
    ],
)  # fmt: skip
def test_why_an_answer_ends(reason: str, stop: str, max_tokens: int, expected: tuple[str, str | None]) -> None:
    """The reason is Anthropic's, with the stop sequence if one has ended the answer, streamed and whole."""
    *_, delta, _ = streamed(Wanted(max_tokens), Chunk(1, 0, "a"), ended=reason, stop=stop)
    message = whole(Wanted(max_tokens), Message("a", "", [], reason, stop=stop))
    for found in (delta["delta"], message):
        assert (found["stop_reason"], found["stop_sequence"]) == expected


def test_tokens_of_thinking() -> None:
    """They are among the tokens of the output, and told where there are any, streamed and whole."""
    counts = TokenCounts(9, 4, 3, reasoning=2)
    message = MessageWriter("m", Wanted(8)).whole(Answered(1, counts, [Message("a", "r", [], "stop")]))
    *_, delta, _ = read(MessageWriter("m", Wanted(8)).end(Answered(1, counts)))
    for usage in (message["usage"], delta["usage"]):
        assert (usage["output_tokens"], usage["output_tokens_details"]) == (3, {"thinking_tokens": 2})


def test_tokens() -> None:
    """All tokens of a prompt are counted once. Computed ones are put into the cache, but for the last one."""
    plain, marked = (whole(Wanted(8, caches=caches), Message("a", "", [], "stop"))["usage"] for caches in (False, True))
    assert plain == {
        "input_tokens": 5, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 3,
    }  # fmt: skip
    assert marked == {**plain, "input_tokens": 1, "cache_creation_input_tokens": 4}
    for usage in (plain, marked):
        assert sum(usage.values()) == COUNTS.prompt + COUNTS.completion


def test_thinking_that_is_left_out() -> None:
    """Its signature has it, so that the next request does."""
    wanted = Wanted(8, hides_thinking=True)
    blocks = gathered(streamed(wanted, Chunk(1, 0, "", "Hö"), Chunk(1, 0, "", "m."), Chunk(1, 0, "Hi.")))
    for thinking, said in (blocks, whole(wanted, Message("Hi.", "Höm.", [], "stop"))["content"]):
        assert (thinking["type"], thinking["thinking"], hidden(thinking["signature"])) == ("thinking", "", "Höm.")
        assert said == {"type": "text", "text": "Hi."}


def test_what_only_some_responses_have() -> None:
    """Edits of the context are told where they were asked for: none. So is what of the tools' schemas is not held."""
    wanted, warnings = Wanted(8, edits=True), ["tool f: not held: /not"]
    message = whole(wanted, Message("a", "", [], "stop"), warnings=warnings)
    writer = MessageWriter("m", wanted)
    *_, delta, _ = read(writer.event(Chunk(1, 0, "a")) + writer.end(Answered(1, COUNTS, warnings=warnings)))
    for found in (message, delta):
        assert (found["context_management"], found["warnings"]) == ({"applied_edits": []}, warnings)
    plain = whole(Wanted(8), Message("a", "", [], "stop"))
    assert not {"context_management", "warnings"} & plain.keys()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"), (404, "not_found_error"),
        (405, "invalid_request_error"), (408, "timeout_error"), (413, "invalid_request_error"),
        (415, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error"), (503, "overloaded_error"),
    ],
)  # fmt: skip
def test_errors(status: int, kind: str) -> None:
    """Each status has its type; within a stream an error is the last event, with the id of its request."""
    error = ApiError(status, "why", code="code", param="param")
    assert ANTHROPIC.error(error) == {"type": "error", "error": {"type": kind, "message": "why"}, "request_id": None}
    [event] = read(MessageWriter("m", Wanted(8, request_id="req_1")).failed(error))
    assert (event["error"], event["request_id"]) == ({"type": kind, "message": "why"}, "req_1")


def test_a_prompt_that_is_too_long() -> None:
    """It is told in Anthropic's words, by which clients know that they must shorten the conversation."""
    details = {"n_tokens": 2100, "n_ctx": 2048}
    error = ApiError(400, "OpenAI's words", code="context_length_exceeded", details=details)
    assert ANTHROPIC.error(error)["error"]["message"] == "prompt is too long: 2100 tokens > 2047 maximum"


def test_which_requests_are_anthropics() -> None:
    """Those of its paths, and those of others that its clients send, also where the app is mounted."""

    def of(path: str, *headers: tuple[bytes, bytes], root: str = "") -> Any:
        return dialect_of({"path": root + path, "root_path": root, "headers": list(headers)})

    version = (b"anthropic-version", b"2023-06-01")
    for path in ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches"):
        assert of(path) is of(path, root="/llm") is ANTHROPIC
    for path in ("/v1/models", "/v1/chat/completions", "/llm/v1/messages"):
        assert of(path) is OPENAI
        assert of(path, (b"host", b"a"), version) is ANTHROPIC


MODELS = [{"id": name, "created": 0, "meta": {"n_ctx": 64}} for name in "abcde"]


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ({}, "abcde", False), ({"limit": "2"}, "ab", True), ({"limit": "2", "after_id": "b"}, "cd", True),
        ({"limit": "2", "after_id": "c"}, "de", False), ({"after_id": "e"}, "", False),
        ({"limit": "2", "before_id": "d"}, "bc", True), ({"before_id": "c"}, "ab", False), ({"before_id": "a"}, "", False),
        ({"after_id": "a", "before_id": "d"}, "bc", False), ({"limit": "1000"}, "abcde", False),
    ],
)  # fmt: skip
def test_pages_of_models(query: dict[str, str], ids: str, more: bool) -> None:
    """A page is next to the model that the query names, and says whether there are more beyond it."""
    page = models_page(MODELS, query)
    assert "".join(model["id"] for model in page["data"]) == ids
    assert (page["has_more"], page["first_id"], page["last_id"]) == (more, ids[:1] or None, ids[-1:] or None)


@pytest.mark.parametrize(
    "query",
    [{"after_id": "x"}, {"before_id": ""}, *({"limit": each} for each in ("0", "1001", "-1", "x", "", "²", "9" * 5000))],
)  # fmt: skip
def test_pages_that_there_are_not(query: dict[str, str]) -> None:
    """A limit out of range and a model that is not there are refused by name."""
    with pytest.raises(ApiError, match=next(iter(query))) as refused:
        models_page(MODELS, query)
    assert refused.value.status == 400


def test_a_model() -> None:
    """It has a date in Anthropic's form, and its limits once it is loaded."""
    loaded, unloaded = models_page([MODELS[0], {"id": "x", "created": 86_400}], {})["data"]
    assert (loaded["created_at"], loaded["max_input_tokens"]) == ("1970-01-01T00:00:00Z", 64)
    assert (unloaded["created_at"], unloaded["max_tokens"]) == ("1970-01-02T00:00:00Z", None)


def test_arguments_that_not_every_parser_reads() -> None:
    """A call is told whose arguments are JSON, but have a number that is too large, or half of a character."""
    calls = [
        CallChunk(0, "c0", "f", r'{"a": 1e999, "b": "\ud83d"}'),
        CallChunk(1, "c1", "f", '{"a": %s}' % ("[" * 9999)),
    ]
    content = whole(Wanted(8), Message("", "", calls, "tool_calls"))["content"]
    assert [block["input"] for block in content] == [{"a": "1e999", "b": "\ufffd"}]
