"""Responses in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from offgrid_llama.server.dialects.openai import ChatWriter, CompletionWriter
from offgrid_llama.worker import frames


def data(event: bytes) -> Any:
    assert event.endswith(b"\n\n")
    return msgspec.json.decode(event.removeprefix(b"data: ").strip())


def test_events() -> None:
    """Each event is JSON of OpenAI's shape; of texts the offsets of the tokens go on from chunk to chunk."""
    chunk = frames.Chunk(1, 0, "ab", logprobs=[frames.TokenLogprob(b"ab", -0.5, [(b"ab", -0.5)])], n_tokens=1)
    text = CompletionWriter("m")
    found = [data(text.event(chunk)) for _ in range(2)]
    assert [each["choices"][0]["logprobs"]["text_offset"] for each in found] == [[0], [2]]
    chat = ChatWriter('m"', with_usage=True)
    begun = data(chat.begin())
    assert (begun["model"], begun["choices"][0]["delta"]["role"]) == ('m"', "assistant")
    answered = frames.Answered(1, frames.TokenCounts(5, 2, 3))
    usage, done = chat.end(answered).split(b"\n\n", 1)
    usage = data(usage + b"\n\n")
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 8)
    assert done == ChatWriter("m").end(answered) == b"data: [DONE]\n\n"
    assert ChatWriter("m", n=3).begin().count(b'"role":"assistant"') == 3


PIECES = [b"a", b" \xf0\x9f", b"\x98", b"\x80", b"\xf0", b"\x9f\x98\x81b", b"c", b"\xff", b"d", b"", b"e"]
OFFSETS = [0, 1, 2, 2, 3, 3, 5, 6, 7, 8, 8]


@pytest.mark.parametrize("held", [0, 3])
def test_offsets_of_tokens(held: int) -> None:
    """Offsets count characters, not tokens of a character, and never go back, whichever text a chunk brings."""
    logprobs = [frames.TokenLogprob(piece, -1.0) for piece in PIECES]
    text = b"".join(PIECES).decode("utf-8", "replace")
    whole = CompletionWriter("m").whole(
        frames.Answered(1, frames.TokenCounts(1, 0, 11), [frames.Message(text, "", [], "stop", logprobs)])
    )
    assert whole["choices"][0]["logprobs"]["text_offset"] == OFFSETS
    assert [text[offset : offset + 1] for offset in OFFSETS[:7]] == [*"a \U0001f600\U0001f600\U0001f601\U0001f601c"]
    writer, found = CompletionWriter("m"), []
    for at in range(0, len(PIECES), 2):
        chunk = frames.Chunk(1, 0, text[at : max(at + 2 - held, at)], logprobs=logprobs[at : at + 2])
        found += data(writer.event(chunk))["choices"][0]["logprobs"]["text_offset"]
    assert found == OFFSETS


def test_chunks_of_a_chat() -> None:
    """An event has what its chunk has: text, reasoning, the parts of calls, and at the end the reason."""
    chat = ChatWriter("m")
    calls = [frames.CallChunk(0, "id", "f", ""), frames.CallChunk(0, "", "", "{}")]
    choice = data(chat.event(frames.Chunk(1, 2, "a", "b", calls, None, "stop")))["choices"][0]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (2, "stop", None)
    assert choice["delta"] == {
        "reasoning_content": "b", "content": "a",
        "tool_calls": [
            {"index": 0, "id": "id", "type": "function", "function": {"name": "f", "arguments": ""}},
            {"index": 0, "function": {"arguments": "{}"}},
        ],
    }  # fmt: skip
    assert data(chat.event(frames.Chunk(1, 0, "")))["choices"][0]["delta"] == {}


def test_whole_answers() -> None:
    """All choices at once, with the usage; a message with calls and no text has no content."""
    message = frames.Message("", "b", [frames.CallChunk(0, "id", "f", "{}")], "tool_calls")
    logprobs = [frames.TokenLogprob(b"\xff", -1.0, [(b"a", -2.0)])]
    answered = frames.Answered(1, frames.TokenCounts(5, 2, 3), [message, frames.Message("c", "", [], "stop", logprobs)])
    whole = ChatWriter("m").whole(answered)
    one, other = (choice["message"] for choice in whole["choices"])
    assert one == {
        "role": "assistant", "content": None, "refusal": None, "reasoning_content": "b",
        "tool_calls": [{"id": "id", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }  # fmt: skip
    assert other == {"role": "assistant", "content": "c", "refusal": None}
    (token,) = whole["choices"][1]["logprobs"]["content"]
    assert (token["token"], token["bytes"], token["top_logprobs"][0]["token"]) == ("\ufffd", [255], "a")
    assert whole["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2}
    }  # fmt: skip
    text = CompletionWriter("m").whole(answered)
    assert (text["object"], [choice["text"] for choice in text["choices"]]) == ("text_completion", ["", "c"])
