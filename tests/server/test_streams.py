"""Streams: those whose first event takes long, with signs of life, errors, clients that leave; and parts that are empty."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.sending import WRITE
from offgrid_llama.server.streams import EventStream, kept_alive

SIGN, NEVER = b"sign", 60.0


class Slow:
    """A stream whose first event comes when the test says so.

    Attributes:
        may_begin: set by the test. asked: set when the first event is waited for.
        closed: whether the stream has been closed.
    """

    def __init__(self, error: ApiError | None = None) -> None:
        self.may_begin, self.asked = asyncio.Event(), asyncio.Event()
        self.closed = False
        self._error = error

    async def events(self) -> AsyncIterator[bytes]:
        """Yield two events, or raise the error in place of the first."""
        try:
            self.asked.set()
            await self.may_begin.wait()
            if self._error is not None:
                raise self._error
            yield b"1"
            yield b"2"
        finally:
            self.closed = True

    def alive(self, seconds: float) -> AsyncIterator[bytes]:
        """Return the stream with signs of life."""
        return kept_alive(self.events(), SIGN, lambda error: error.message.encode(), seconds)


def run(test: Callable[[Slow], object], error: ApiError | None = None) -> None:
    async def main() -> None:
        slow = Slow(error)
        await test(slow)  # type: ignore[misc]
        assert slow.closed

    asyncio.run(main())


def test_signs_of_life() -> None:
    """They come until the first event does, and never after it."""

    async def test(slow: Slow) -> None:
        alive = slow.alive(0.001)
        assert [await anext(alive) for _ in range(3)] == [SIGN] * 3
        slow.may_begin.set()
        assert [data async for data in alive if data != SIGN] == [b"1", b"2"]

    run(test)


def test_a_stream_that_begins_soon() -> None:
    """It has no sign."""

    async def test(slow: Slow) -> None:
        slow.may_begin.set()
        assert [data async for data in slow.alive(NEVER)] == [b"1", b"2"]

    run(test)


@pytest.mark.parametrize("seconds", [0.001, NEVER])
def test_errors(seconds: float) -> None:
    """An error is one of HTTP while nothing has been sent; later it is the last event."""

    async def test(slow: Slow) -> None:
        alive = slow.alive(seconds)
        if seconds == NEVER:
            slow.may_begin.set()
            with pytest.raises(ApiError, match="why"):
                await anext(alive)
            return
        assert await anext(alive) == SIGN
        slow.may_begin.set()
        assert [data async for data in alive if data != SIGN] == [b"why"]

    run(test, ApiError(500, "why"))


def test_a_client_that_leaves() -> None:
    """The stream is closed when its client leaves before the first event, after a sign of life or before one."""

    async def test(slow: Slow) -> None:
        waiting = asyncio.ensure_future(anext(slow.alive(NEVER)))
        await slow.asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert slow.closed
        slow.closed = False
        alive = slow.alive(0.001)
        assert await anext(alive) == SIGN
        await alive.aclose()  # type: ignore[attr-defined]

    run(test)


def test_parts_that_are_empty() -> None:
    """They are not sent: an empty chunk ends a body in HTTP/1.1, and the rest would be lost."""
    written: list[bytes] = []

    async def events() -> AsyncIterator[bytes]:
        for part in (b"", b"a", b"", b"b"):
            yield part

    async def write(data: bytes) -> None:
        written.append(data)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            assert message["body"] == b""

    async def receive() -> Any:
        await asyncio.sleep(60)

    asyncio.run(EventStream(events(), "application/x-ndjson")({"type": "http", WRITE: write}, receive, send))
    assert written == [b"a", b"b"]
