"""Parts of the server by themselves: who may come in, how many, and what goes between it and its workers."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from offgrid_llama.server.admission import Admission
from offgrid_llama.server.answers import ChatAnswer, TextAnswer
from offgrid_llama.server.app import _deeper
from offgrid_llama.server.errors import ApiError
from offgrid_llama.server.schemas import ChatRequest
from offgrid_llama.server.security import Guard
from offgrid_llama.server.settings import Settings
from offgrid_llama.server.streams import ABORT, WRITE, EventStream
from offgrid_llama.worker import frames
from offgrid_llama.worker.frames import Channel

KEYS = ["the-first-key", "the-second-key"]


async def through(settings: Settings, headers: dict[str, str], *, path: str = "/v1/models", method: str = "GET",
                  body: bytes = b"") -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Return the status that a request gets behind the guard, and what the app has seen of it."""
    seen: dict[str, Any] = {}
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(key=scope["key"], body=(await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path,
             "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}  # fmt: skip
    await Guard(app, settings)(scope, receive, send)
    return sent[0]["status"], seen


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:11611", 200), ("127.0.0.1:1", 200), ("[::1]:11611", 200), ("[::1]", 200),
     ("evil.example", 403), ("localhost.evil.example", 403), ("localhost:80@evil.example", 403), ("", 403)],
)  # fmt: skip
def test_hosts(host: str, status: int) -> None:
    """Only names of this machine get through, with whichever port."""
    assert asyncio.run(through(Settings(), {"host": host}))[0] == status


def test_keys() -> None:
    """Each key opens; what is like one does not; and the app is told which, by a digest."""
    settings = Settings(api_keys=KEYS)

    def status(shown: str | None, path: str = "/v1/models") -> int:
        headers = {"host": "localhost", **({} if shown is None else {"authorization": shown})}
        return asyncio.run(through(settings, headers, path=path))[0]

    assert [status(f"Bearer {key}") for key in KEYS] == [200, 200]
    for shown in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer the-first",
        f"Basic {KEYS[0]}",
        KEYS[0],
        "Bearer the-first-key2",
    ):
        assert status(shown) == 401
    assert status(None, "/health") == 200
    one, other = (
        asyncio.run(through(settings, {"host": "localhost", "authorization": f"Bearer {key}"}))[1]["key"]
        for key in KEYS
    )
    assert one != other
    assert not {one, other} & set(KEYS)


def test_bodies() -> None:
    """JSON only, and no more than is allowed, whatever the head says of it."""
    settings = Settings(max_body_bytes=1024)
    head = {"host": "localhost", "content-type": "application/json; charset=utf-8", "content-length": "2"}

    def status(body: bytes, **more: str) -> int:
        headers = {**head, **{name.replace("_", "-"): value for name, value in more.items()}}
        return asyncio.run(through(settings, headers, method="POST", body=body))[0]

    assert status(b"{}") == 200
    assert status(b"{}", content_type="text/plain") == 415
    assert status(b"{}", content_length="2000") == 413
    assert status(b"x" * 2000) == 413


def test_how_many() -> None:
    """One key cannot have all the room; what has ended makes room again; a server that stops takes nobody."""
    admission = Admission(Settings(max_queue=4, api_keys=KEYS))
    first, second, third = (admission.request(key) for key in ("a", "a", "b"))
    with first, second:
        with pytest.raises(ApiError) as refused, admission.request("a"):
            pass
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        with third, admission.request("c"), pytest.raises(ApiError) as full, admission.request("d"):
            pass
        assert full.value.status == 503
    assert admission.n == 0
    admission.stopping = True
    with pytest.raises(ApiError, match="stopping"), admission.request("a"):
        pass


def test_depth() -> None:
    """Levels are counted as they are written."""
    assert not _deeper(json.loads("[" * 64 + "]" * 64), 64)
    assert _deeper(json.loads("[" * 66 + "]" * 66), 64)
    assert not _deeper({"a": [1, 2, {"b": 3}]}, 64)


def test_what_was_said() -> None:
    """Only what was said goes on, and nothing that has no effect."""
    described = {"type": "json_schema", "json_schema": {"name": "d", "schema": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "a", "name": "b"}], "user": "c", "seed": None, "temperature": 0,
            "response_format": described}  # fmt: skip
    said = ChatRequest.model_validate(body).said()
    assert said == {"messages": body["messages"], "temperature": 0, "response_format": body["response_format"]}


def test_frames_over_a_socket() -> None:
    """Whatever is sent comes out as it was, in its order; what is no frame ends the channel."""
    sent = [
        frames.Part(1, 0, "héllo", "thought", [frames.CallPart(0, "id", "f", "{}")],
                    [frames.TokenLogprob(b"\xff", -1.0, [(b"a", -2.0)])], "stop", 3),
        frames.Answered(1, frames.Usage(1, 2, 3), [frames.Message("a", "b", [], "length")], 0.5),
        frames.Failed(2, 400, "no", "code", "param"), frames.Loaded({"a": [1, None]}), frames.Heartbeat(7, {"n": 1.5}),
        frames.Result(3, {"data": b"\0\1"}), frames.Loading(0.25),
    ]  # fmt: skip

    async def main() -> tuple[list[Any], Any, Any]:
        ours, theirs = socket.socketpair()
        one = Channel(*await asyncio.open_connection(sock=ours), frames.FromWorker)
        other = Channel(*await asyncio.open_connection(sock=theirs), frames.FromWorker)
        for frame in sent:
            one.send(frame)
        found = await other.receive()
        one._writer.write(b"\0\0\0\1\xc1")
        nonsense = await other.receive()
        one.close()
        gone = await other.receive()
        other.close()
        return found or [], nonsense, gone

    assert asyncio.run(main()) == (sent, None, None)


def test_events() -> None:
    """Each event is JSON of OpenAI's shape; of texts the offsets of the tokens go on from chunk to chunk."""
    part = frames.Part(1, 0, "ab", logprobs=[frames.TokenLogprob(b"ab", -0.5, [(b"ab", -0.5)])], n_tokens=1)
    answer = TextAnswer("m")
    found = [msgspec.json.decode(answer.events([part]).removeprefix(b"data: ").strip()) for _ in range(2)]
    assert [each["choices"][0]["logprobs"]["text_offset"] for each in found] == [[0], [2]]
    chat = ChatAnswer('m"')
    begun = msgspec.json.decode(chat.begin(1).removeprefix(b"data: ").strip())
    assert (begun["model"], begun["choices"][0]["delta"]["role"]) == ('m"', "assistant")
    usage = msgspec.json.decode(
        chat.usage_event(frames.Answered(1, frames.Usage(5, 2, 3))).removeprefix(b"data: ").strip()
    )
    assert (usage["choices"], usage["usage"]["total_tokens"]) == ([], 8)


@pytest.mark.parametrize("stalls_at", ["http.response.start", "event", "end"])
def test_a_reader_that_takes_nothing_is_cut_off(stalls_at: str) -> None:
    """Wherever in a stream it stalls, at its very end, too; what the events hold is let go."""
    told: list[str] = []

    async def stream() -> None:
        async def events() -> AsyncIterator[bytes]:
            try:
                yield b"data: 1\n\n"
            finally:
                told.append("closed")

        async def at(place: str) -> None:
            told.append(place)
            if place == stalls_at:
                await asyncio.Event().wait()

        async def send(message: Any) -> None:
            await at("end" if message["type"] == "http.response.body" else message["type"])

        async def write(_: bytes) -> None:
            await at("event")

        async def receive() -> dict[str, Any]:
            return await asyncio.Future()

        scope = {ABORT: lambda: told.append("cut off"), WRITE: write}
        await asyncio.wait_for(EventStream(events(), 0.1)(scope, receive, send), 30)

    asyncio.run(stream())
    assert told.count("cut off") == 1
    assert stalls_at in told
    assert ("closed" in told) == (
        stalls_at != "http.response.start"
    )  # a generator that never began has nothing to close
