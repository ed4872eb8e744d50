"""Answers to clients that take them slowly, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Request, Response

from helpers.apps import ask, listening
from helpers.serving import wait_until
from offgrid_llama.server import create_app, sending
from offgrid_llama.server.parts import admit
from offgrid_llama.server.sending import CONNECTION, PIECE_BYTES, Sending
from offgrid_llama.server.streams import EventStream


class Stalling:
    """A connection whose client takes some messages, and then nothing until it is cut off."""

    takes_chunks = True

    def __init__(self, n_taken: int) -> None:
        self.told: list[str] = []
        self.sizes: list[int] = []
        self._n_taken = n_taken
        self._ended = asyncio.Event()

    @property
    def is_blocked(self) -> bool:
        return len(self.sizes) >= self._n_taken and not self._ended.is_set()

    async def sent(self) -> None:
        await self._ended.wait()

    def cut_off(self) -> None:
        self.told.append("cut off")
        self._ended.set()

    def write_chunk(self, data: bytes) -> None:
        self.sizes.append(len(data))

    async def send(self, message: Any) -> None:
        if self.is_blocked:
            await self._ended.wait()
        self.sizes.append(len(message.get("body", b"")))


async def served(app: Any, connection: Stalling, seconds: float = 0.1) -> Stalling:

    async def receive() -> dict[str, Any]:
        return await asyncio.Future()

    scope = {"type": "http", "method": "GET", CONNECTION: connection}
    await asyncio.wait_for(Sending(app, seconds)(scope, receive, connection.send), 30)
    return connection


@pytest.mark.parametrize("n_taken", range(4))
def test_a_reader_that_takes_nothing_of_a_stream(n_taken: int) -> None:
    """Wherever in a stream it stalls, at its very end, too, it is cut off; what the events hold is let go."""
    closed: list[bool] = []

    async def events() -> AsyncIterator[bytes]:
        try:
            yield b"data: 1\n\n"
            yield b"data: 2\n\n"
        finally:
            closed.append(True)

    connection = asyncio.run(served(EventStream(events()), Stalling(n_taken)))
    assert connection.told == ["cut off"]
    assert closed == [True] * (n_taken > 0)  # a generator that never began has nothing to close


@pytest.mark.parametrize("n_taken", range(4))
def test_a_reader_that_takes_nothing_of_an_answer(n_taken: int) -> None:
    """The same with an answer that is not streamed. A large one goes in pieces, each of which has its time."""
    connection = asyncio.run(served(Response(b"x" * (3 * PIECE_BYTES + 1)), Stalling(n_taken)))
    assert connection.told == ["cut off"]
    assert connection.sizes[:n_taken] == [0, PIECE_BYTES, PIECE_BYTES][:n_taken]
    assert asyncio.run(served(Response(b"x" * (3 * PIECE_BYTES + 1)), Stalling(9))).sizes == [0, *[PIECE_BYTES] * 3, 1]


@pytest.mark.parametrize(("n_events", "event_bytes", "ends"), [(40, 10, True), (40, PIECE_BYTES, False)])
def test_a_reader_that_takes_a_little_now_and_then(
    monkeypatch: pytest.MonkeyPatch, n_events: int, event_bytes: int, ends: bool
) -> None:
    """The waits of an answer add up: a client keeps its connection by taking much, and not by taking a little in time."""
    now = 0.0  # by a clock of its own, so that no other program makes a wait longer
    monkeypatch.setattr(sending, "monotonic", lambda: now)

    class Dripping(Stalling):
        is_blocked = True

        async def sent(self) -> None:
            nonlocal now
            if not self.told:
                now += 1  # a tenth of the time that an answer may wait
                await asyncio.sleep(0)

        async def send(self, message: Any) -> None:
            del message
            await self.sent()

    async def events() -> AsyncIterator[bytes]:
        for _ in range(n_events):
            yield b"x" * event_bytes

    connection = asyncio.run(served(EventStream(events()), Dripping(0), 10))
    assert connection.told == ["cut off"] * ends
    assert (len(connection.sizes) < n_events) == ends


def test_a_request_counts_until_its_answer_is_sent() -> None:
    """While its client has not taken the answer, a request counts; when the client is cut off, it counts no more."""
    app = create_app(models=[], write_seconds=0.2)
    counts: list[int] = []

    def counted(request: Request) -> Response:
        admit(request, "a")
        return Response(b"x")

    app.add_api_route("/counted", counted)

    async def asked(takes: bool) -> None:
        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                counts.append(app.state.server.admission.n)
                if not takes:
                    await asyncio.Event().wait()

        async def receive() -> Any:
            return await asyncio.Future()

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": "/counted", "query_string": b"", "headers": headers}
        await asyncio.wait_for(app(scope, receive, send), 30)
        counts.append(app.state.server.admission.n)

    for takes in (True, False):
        asyncio.run(asked(takes))
    assert counts == [1, 0, 1, 0]


def test_a_client_that_never_reads() -> None:
    """On a real connection it is cut off as soon as the system's buffers are full and ``write_seconds`` have passed."""
    with listening(write_seconds=0.3) as server, server.connect(receive_bytes=2048) as client:
        ask_for_much = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
        with contextlib.suppress(ConnectionError):
            client.sendall(ask_for_much)  # about 50 MB of answers
        wait_until(lambda: server.server.server_state.total_requests > 0)
        wait_until(lambda: not server.server.server_state.connections)
        wait_until(
            lambda: client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        )  # the kernel holds nothing for it


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/", "/page/page.js", "/metrics", "/openapi.json"])
def test_head(path: str) -> None:
    """HEAD works wherever GET does, with the same head and no body; elsewhere it is no method."""
    app = create_app(models=[])
    head, got = ask(app, "HEAD", path), ask(app, "GET", path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]
    assert ask(app, "HEAD", "/v1/completions").status_code == 405
    assert ask(app, "HEAD", "/nothing").status_code == 404


def test_head_and_get_of_a_model() -> None:
    """A path with a parameter is no exception."""
    app = create_app(models=["a"])
    assert ask(app, "HEAD", "/v1/models/a").status_code == ask(app, "GET", "/v1/models/a").status_code == 200


def test_head_of_an_endless_stream() -> None:
    """It is whole with its head, and what the events hold is let go."""
    closed: list[bool] = []

    async def events() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b": listening\n\n"
                await asyncio.sleep(0.01)
        finally:
            closed.append(True)

    async def main() -> list[Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return await asyncio.Future()

        async def send(message: Any) -> None:
            sent.append(message)

        sending = Sending(EventStream(events()), 1.0)
        await asyncio.wait_for(sending({"type": "http", "method": "HEAD"}, receive, send), 30)
        return sent

    start, end = asyncio.run(main())
    assert start["status"] == 200
    assert (end["body"], end["more_body"]) == (b"", False)
    assert closed == [True]
