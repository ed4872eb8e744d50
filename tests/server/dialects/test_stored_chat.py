"""Chat completions that are kept, as they are gathered from a stream."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletion

from helpers.official import check
from offgrid_llama.server.dialects.stored_chat import StoredChatWriter, stored_messages
from offgrid_llama.worker.frames import Answered, CallChunk, Chunk, Measures, Message, TokenCounts, TokenLogprob

COUNTS = TokenCounts(9, 4, 3)
LOGPROBS = [TokenLogprob(b"a", -0.5, [], [1])]
CASES = {
    "text": (
        [Chunk(1, 0, "a", logprobs=LOGPROBS), Chunk(1, 0, "b", logprobs=LOGPROBS, finish_reason="length")],
        Message("ab", "", [], "length", LOGPROBS * 2),
    ),
    "reasoning": (
        [Chunk(1, 0, "", "r"), Chunk(1, 0, "a", "s"), Chunk(1, 0, "", finish_reason="stop")], Message("a", "rs", [], "stop"),
    ),
    "calls": (
        [Chunk(1, 0, "", calls=[CallChunk(0, "c", "f", "{")]),
         Chunk(1, 0, "", calls=[CallChunk(0, "", "", "}"), CallChunk(1, "d", "g", '{"input": "i"}')],
               finish_reason="tool_calls")],
        Message("", "", [CallChunk(0, "c", "f", "{}"), CallChunk(1, "d", "g", '{"input": "i"}')], "tool_calls"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("chunks", "message"), CASES.values(), ids=CASES)
def test_streamed_and_whole(chunks: list[Chunk], message: Message) -> None:
    """A stream is kept as the same body as a response that is not streamed."""
    whole, streamed = (StoredChatWriter("m", metadata={"a": "b"}, custom={"g"}) for _ in range(2))
    body = whole.whole(Answered(1, COUNTS, [message]))
    assert whole.stored == {**body, "metadata": {"a": "b"}}
    streamed.event(Chunk(1, 0, "", n_computed=3, measures=Measures(9, 4, 0)))
    for chunk in chunks:
        streamed.event(chunk)
    streamed.end(Answered(1, COUNTS))
    assert streamed.stored is not None
    assert {**streamed.stored, "id": "", "created": 0} == {**whole.stored, "id": "", "created": 0}
    check(ChatCompletion, streamed.stored, ("reasoning_content",))


def test_messages() -> None:
    """Each has an id, and its parts apart from its text."""
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    found = stored_messages(
        "i", [{"role": "user", "content": "a"}, {"role": "user", "content": parts}, {"role": "tool"}]
    )
    assert [(each["id"], each["content"], each["content_parts"]) for each in found] == [
        ("i-0", "a", None), ("i-1", "bc", parts), ("i-2", None, None),
    ]  # fmt: skip
