"""Requests that generate, in a worker without a process."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

import offgrid_llama as og
from helpers.pools import Watched
from offgrid_llama.worker.fair_pool import FairPool
from offgrid_llama.worker.frames import Generate
from offgrid_llama.worker.generation import Conversation, Options, Sampling, Texts
from offgrid_llama.worker.requests import ChatRequests, TextRequests


class Sent:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def send(self, frame: Any) -> None:
        self.frames.append(frame)


def test_prompts_are_submitted_one_by_one(smollm2: og.Model) -> None:
    """Between two prompts of a request other clients have their turn; of a client that has left, no further one is taken."""

    async def main(engine: og.Engine) -> None:
        threads = Watched(20, 60)
        requests = TextRequests(engine, {}, threads)
        many = Texts(prompts=[[7, 8, 9]] * 300, options=Options(max_tokens=1))
        asked = Generate(1, many, False, "a")
        first = asyncio.ensure_future(requests.answer(asked, many, None))  # type: ignore[arg-type]
        await threads.reached(20)
        other = asyncio.ensure_future(threads.run("b", int))
        await threads.called("b")
        threads.go_on()
        await other
        assert threads.log.index("b") < 100
        await threads.reached(60)
        first.cancel()
        threads.go_on()
        with pytest.raises(asyncio.CancelledError):
            await first
        n = len(threads.log)
        await threads.run("b", int)
        assert len(threads.log) <= n + 2
        threads.shutdown()

    with og.Engine(smollm2, n_seq_max=1, n_ctx=64, n_threads=1) as engine:
        asyncio.run(main(engine))


def test_stops_of_a_model(smollm2: og.Model) -> None:
    """A model's own stop texts end answers to conversations, besides those of a request; not completions."""

    async def main(engine: og.Engine) -> None:
        threads = FairPool(1, "requests")
        options = Options(sampling=Sampling(temperature=0), max_tokens=32, stop=["zzz"])
        said = [{"role": "user", "content": "Repeat: 1 2 3 4 5 6 7 8 9"}]
        sent = Sent()
        conversation = Conversation(messages=said, options=options)
        asker = ChatRequests(engine, None, {}, threads, (), [" 6"])
        await asker.answer(Generate(1, conversation, False, ""), conversation, sent)  # type: ignore[arg-type]
        assert sent.frames[-1].messages[0].stop == " 6"
        texts = Texts(prompts=["1 2 3 4 5"], options=options)
        await TextRequests(engine, {}, threads).answer(Generate(2, texts, False, ""), texts, sent)  # type: ignore[arg-type]
        assert " 6" in sent.frames[-1].messages[0].content
        threads.shutdown()

    with og.Engine(smollm2, n_seq_max=1, n_ctx=256) as engine:
        asyncio.run(main(engine))


def test_stops_and_timings(smollm2: og.Model) -> None:
    """An answer says which stop text has ended it, and how long it took, whole and in its last chunk."""

    async def main(engine: og.Engine) -> None:
        threads = FairPool(1, "requests")
        options = Options(sampling=Sampling(temperature=0), max_tokens=32, stop=["zzz", " 9"])
        texts = Texts(prompts=["1 2 3 4 5 6"], options=options)
        messages = [{"role": "user", "content": "Repeat: 1 2 3 4 5 6 7 8 9"}]
        for asker, what in (
            (TextRequests(engine, {}, threads), texts),
            (ChatRequests(engine, None, {}, threads), Conversation(messages=messages, options=options)),
        ):
            whole, streamed = Sent(), Sent()
            for stream, sent in ((False, whole), (True, streamed)):
                await asker.answer(Generate(1, what, stream, ""), what, sent)  # type: ignore[arg-type]
            answered = whole.frames[-1]
            *chunks, last, end = streamed.frames
            assert (answered.messages[0].stop, last.stop) == (" 9", " 9")
            assert {chunk.stop for chunk in chunks} <= {""}
            for each in (answered, end):
                assert each.timings is not None
                assert min(each.timings.prompt, each.timings.completion) > 0
        threads.shutdown()

    with og.Engine(smollm2, n_seq_max=1, n_ctx=256, n_threads=1) as engine:
        asyncio.run(main(engine))


def test_the_first_chunk_of_a_conversation_has_the_tokens_of_its_prompt(smollm2: og.Model) -> None:
    """They are those that the end tells, with how many of them were in the prefix cache; no other chunk has any."""

    async def main(engine: og.Engine) -> None:
        threads = FairPool(1, "requests")
        asked = Conversation(messages=[{"role": "user", "content": "Count."}], options=Options(max_tokens=8))
        for n_cached in (0, None):
            sent = Sent()
            await ChatRequests(engine, None, {}, threads).answer(Generate(1, asked, True, ""), asked, sent)  # type: ignore[arg-type]
            first, *others, end = sent.frames
            assert (first.tokens.prompt, first.tokens.cached) == (end.tokens.prompt, end.tokens.cached)
            assert first.tokens.cached == n_cached or first.tokens.cached > 1
            assert {chunk.tokens for chunk in others} == {None}
        threads.shutdown()

    with og.Engine(smollm2, n_seq_max=1, n_ctx=256, n_threads=1) as engine:
        asyncio.run(main(engine))


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_checked_in_the_threads_of_requests(
    smollm2: og.Model, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    """The check of an answer's calls is one more turn of its client, beside the event loop."""
    checked_in: list[str] = []
    check = og.Tool.broken_rule

    def noted(tool: og.Tool, *arguments: Any) -> str:
        checked_in.append(threading.current_thread().name)
        return check(tool, *arguments)

    monkeypatch.setattr(og.Tool, "broken_rule", noted)
    parameters = {"type": "object", "properties": {"n": {"enum": [3], "not": {"const": 3}}}, "required": ["n"]}
    what = Conversation(
        messages=[{"role": "user", "content": "Count."}], options=Options(sampling=Sampling(temperature=0), max_tokens=40),
        tool_choice="required",
        tools=[{"type": "function", "function": {"name": "count", "parameters": parameters}}], parallel_tool_calls=False,
    )  # fmt: skip

    async def main(engine: og.Engine) -> list[Any]:
        threads, channel = Watched(), Sent()
        asker = ChatRequests(engine, None, {}, threads)
        await asker.answer(Generate(1, what, stream, "a"), what, channel)  # type: ignore[arg-type]
        assert threads.log == ["a", "a"]
        threads.shutdown()
        return channel.frames

    with og.Engine(smollm2, n_seq_max=1, n_ctx=1024, n_threads=1) as engine:
        *others, last = asyncio.run(main(engine))
    assert len(checked_in) == 1
    assert checked_in[0].startswith("test")
    told = [each.warnings for each in (others[-1:] if stream else [last])]
    assert [line.partition(":")[0] for line in told[0]] == ["tool count", "tool count"]
    assert "/n: not: 3 should not be valid" in told[0][1]
