"""Connections: half-closed ones, and heads that contradict themselves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import Request, Response

from helpers.apps import Listening, answer, listening
from helpers.serving import head, wait_until
from offgrid_llama.server.sending import CONNECTION
from offgrid_llama.server.streams import EventStream, while_connected

GET = b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Slow:
    """A route that takes its time, and what happened to its requests."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.may_end = False

    async def answer(self, request: Request) -> Response:
        """Answer when the test says so."""

        async def work() -> Response:
            self.told.append("begun")
            try:
                while not self.may_end:
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.told.append("cancelled")
                raise
            return Response(b"the answer")

        return await while_connected(request, work())

    async def events(self) -> AsyncIterator[bytes]:
        """Yield events until the test says that it may end."""
        self.told.append("begun")
        try:
            while not self.may_end:
                yield b"data: 1\n\n"
                await asyncio.sleep(0.01)
            yield b"data: last\n\n"
        finally:
            self.told.append("closed")


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def served(slow: Slow) -> Iterator[Listening]:
    with listening() as found:
        app: Any = found.server.config.app
        app.add_api_route("/slow", slow.answer)
        app.add_api_route("/events", lambda: EventStream(slow.events()), response_class=Response)
        yield found


@pytest.mark.parametrize("requests", [1, 3])
def test_a_half_closed_client_is_answered(served: Listening, slow: Slow, requests: int) -> None:
    """A client that says it sends no more gets its answers, however long they take, and then the end."""
    with served.connect() as client:
        client.sendall(GET % b"/slow" * requests)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: slow.told == ["begun"])
        slow.may_end = True
        assert answer(client).count(b"the answer") == requests


def test_a_half_closed_client_of_http_1_0(served: Listening) -> None:
    """It is answered, and is sent nothing that its version does not know."""
    with served.connect() as client:
        client.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        assert answer(client).startswith(b"HTTP/1.1 200")


def test_a_client_that_has_gone(served: Listening, slow: Slow) -> None:
    """A client that closes its connection looks half-closed at first; its request is cancelled all the same."""
    with served.connect() as client:
        client.sendall(GET % b"/slow")
        wait_until(lambda: slow.told == ["begun"])
    wait_until(lambda: slow.told == ["begun", "cancelled"])
    wait_until(lambda: not served.server.server_state.connections)


def test_a_stream_to_a_half_closed_client(served: Listening, slow: Slow) -> None:
    """It comes to its end; that of a client that has gone in its middle is closed."""
    with served.connect() as client:
        client.sendall(GET % b"/events")
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: slow.told == ["begun"])
        slow.may_end = True
        assert b"data: last" in answer(client)
    slow.told, slow.may_end = [], False
    with served.connect() as client:
        client.sendall(GET % b"/events")
        assert client.recv(10)
    wait_until(lambda: slow.told == ["begun", "closed"])


def test_an_event_without_a_byte(served: Listening) -> None:
    """It is not sent: a part of a body without a byte would be taken for the end of the body."""

    async def events() -> AsyncIterator[bytes]:
        for data in (b"data: 1\n\n", b"", b"data: 2\n\n"):
            yield data

    app: Any = served.server.config.app
    app.add_api_route("/gaps", lambda: EventStream(events()), response_class=Response)
    assert httpx.get(f"{served.url}/gaps", timeout=10).text == "data: 1\n\ndata: 2\n\n"


def test_a_body_that_breaks_as_its_request_is_answered(served: Listening, caplog: pytest.LogCaptureFixture) -> None:
    """The client is told what is wrong with it; the answer to the request is dropped without a word in the log."""
    before = set(served.server.server_state.tasks)
    running: set[Any] = set()

    async def late(request: Request) -> Response:
        running.update(served.server.server_state.tasks - before)
        request.scope[CONNECTION].data_received(b"no number\r\n")  # the loop may get it just now
        return Response(b"too late")

    app: Any = served.server.config.app
    app.add_api_route("/late", late, methods=["POST"])
    with served.connect() as client:
        client.sendall(b"POST /late HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert b" 400 " in answer(client).partition(b"\r\n")[0]
    wait_until(lambda: bool(running) and all(task.done() for task in running))
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize("data", [b"GET /heal", head("/tokenize", 9) + b"{"])
def test_half_a_request(served: Listening, data: bytes) -> None:
    """A client that ends in the middle of a request is gone."""
    with served.connect() as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        answer(client)
        wait_until(lambda: not served.server.server_state.connections)


LENGTH, CHUNKED = b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("first", "fields"),
    [
        (b"POST /tokenize HTTP/1.1", LENGTH + CHUNKED), (b"POST /tokenize HTTP/1.1", CHUNKED + LENGTH.lower()),
        (b"GET /health HTTP/1.1", LENGTH + CHUNKED), (b"POST /tokenize HTTP/1.0", CHUNKED),
        (b"POST /tokenize HTTP/1.1", LENGTH + b"Content-Length: 5\r\n"),
        (b"GET /health HTTP/1.1", b"Host: localhost\r\n"),
    ],
)  # fmt: skip
def test_a_head_that_says_two_things(served: Listening, first: bytes, fields: bytes) -> None:
    """Where a body ends is said once. Else the request is refused, and what comes after it is no further request."""
    with served.connect() as client:
        client.sendall(first + b"\r\nHost: localhost\r\n" + fields + b"\r\n0\r\n\r\n" + GET % b"/health")
        told = answer(client)
    assert told.startswith(b"HTTP/1.1 400")
    assert told.count(b"HTTP/1.1") == 1


def test_a_body_in_tiny_parts(served: Listening) -> None:
    """A body of many chunks of a byte is refused soon; many chunks of a usual size, and a few tiny ones, are read."""
    begin = b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + CHUNKED + b"\r\n"
    large = b"400\r\n" + b" " * 1024 + b"\r\n"
    for parts, status in ((b"1\r\n \r\n" * 100_000, b"400"), (large * 6000, b"404"), (b"1\r\n \r\n" * 4000, b"404")):
        with served.connect() as client:
            client.sendall(begin)
            with contextlib.suppress(ConnectionError):
                client.sendall(parts + b'10\r\n{"content": "a"}\r\n0\r\n\r\n')
            assert client.recv(12) == b"HTTP/1.1 " + status


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        (b"Host: b", 400, b"multiple Host"), (b"Content-Length: +5", 400, b"bad Content-Length"),
        (b"Transfer-Encoding: gzip", 501, b"Only Transfer-Encoding: chunked"), (b"nothing", 400, b"illegal header line"),
        (b"X: " + b"y" * 70_000, 431, b"Too Large"),
    ],
)  # fmt: skip
def test_why_it_is_no_http(served: Listening, fields: bytes, status: int, told: bytes) -> None:
    """A client is told what h11 has found in its request."""
    with served.connect() as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + fields + b"\r\n\r\n")
        found = b""
        with contextlib.suppress(ConnectionError):  # the rest of a long head is not read
            while part := client.recv(4096):
                found += part
    assert found.startswith(b"HTTP/1.1 %d" % status)
    assert told in found


@pytest.mark.parametrize(
    ("first", "fields", "status"),
    [
        (b"OPTIONS *", b"", 404), (b"CONNECT a:443", b"", 405), (b"GET http://other.example/x", b"", 404),
        (b"GET /x", b"Host: [\r\n", 404), (b"GET /x", b"Host: \xff\r\n", 404), (b"GET /x", b"Host: a b\r\n", 404),
        (b"GET /%ff", b"", 404), (b"GET /v1/models/%00", b"", 400), (b"GET /\xff", b"", 400),
        (b"GET /health?%ff=%00", b"", 200), (b"A" * 15_000 + b" /x", b"", 404), (b"A" * 15_000 + b" /health", b"", 405),
        (b"GET /health", b"Connection: upgrade\r\nUpgrade: websocket\r\n", 200),
        (b"POST /tokenize", b"Content-Length: 99999999999999999999\r\n", 413),
        (b"POST /tokenize", b"Content-Length: 1\r\nContent-Type: \xff\r\n", 415),
        (b"POST /tokenize", b"Content-Length: 0\r\nAuthorization: \xff\r\n", 400),
        (b"POST /tokenize", b"Content-Length: 0\r\nOrigin: http://\xff\r\n", 403),
    ],
)  # fmt: skip
def test_odd_heads(first: bytes, fields: bytes, status: int, caplog: pytest.LogCaptureFixture) -> None:
    """A head that is odd, but HTTP, has an answer; nothing fails, and the log repeats little of it."""
    fields = fields if b"Host" in fields else b"Host: localhost\r\n" + fields
    with listening(allowed_hosts=["*"]) as served, served.connect() as client:
        client.sendall(first + b" HTTP/1.1\r\n" + fields + b"\r\n")
        assert client.recv(12) == b"HTTP/1.1 %d" % status
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert all(len(record.getMessage()) < 500 for record in caplog.records)


@pytest.mark.parametrize(
    ("first", "host", "status"),
    [
        (b"GET http://localhost/health", b"localhost", 200), (b"GET HTTP://LOCALHOST:80/health?a=/", b"evil.example", 200),
        (b"GET https://[::1]:443/health", b"", 200), (b"GET http://127.0.0.1", b"localhost", 200),
        (b"HEAD http://localhost?a", b"localhost", 200), (b"POST http://localhost/tokenize", b"localhost", 415),
        (b"GET http://evil.example/health", b"localhost", 403), (b"GET http://localhost.evil.example", b"localhost", 403),
        (b"GET http://local%68ost/health", b"localhost", 403), (b"GET //evil.example/health", b"localhost", 404),
        (b"GET http://user:key@localhost/", b"localhost", 400), (b"GET http:///health", b"localhost", 400),
        (b"GET http://localhost:port/health", b"localhost", 400), (b"GET http://[::1/health", b"localhost", 400),
        (b"GET ftp://localhost/", b"localhost", 400), (b"GET health", b"localhost", 400), (b"GET *", b"localhost", 400),
        (b"GET ?a", b"localhost", 400), (b"GET localhost:80", b"localhost", 400), (b"CONNECT a:80", b"localhost", 405),
    ],
)  # fmt: skip
def test_targets(first: bytes, host: bytes, status: int) -> None:
    """A proxy may send a URL: its host counts, and not the Host header's. No other target is a path by chance."""
    with listening() as served, served.connect() as client:
        version, host = (b"1.1", b"Host: " + host + b"\r\n") if host else (b"1.0", b"")
        body = b"Content-Length: 1\r\n\r\n1" if first.startswith(b"POST") else b"\r\n"
        client.sendall(first + b" HTTP/" + version + b"\r\nConnection: close\r\n" + host + body)
        assert answer(client).startswith(b"HTTP/1.1 %d" % status)
