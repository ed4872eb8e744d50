"""EventStream: server-sent events to a client that may disconnect at any moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from .api_error import ApiError
from .security import Receive, Scope, Send
from .sending import WRITE

__all__ = ["EventStream", "kept_alive", "while_connected"]

_T = TypeVar("_T")

SIGN_OF_LIFE_SECONDS = 15.0
"""Time between two signs of life of a stream whose first event has not come. Clients and proxies give up after one minute to
five without a byte, and a long prompt may take longer."""

_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx passes on each event as it comes
]


class EventStream(Response):
    """Sends events as they come. The request is cancelled when its client disconnects.

    Args:
        events: the bytes of events. It is closed in any case.
        media_type: of the stream.
    """

    def __init__(self, events: AsyncIterator[bytes], media_type: str = "text/event-stream") -> None:
        super().__init__(status_code=200, media_type=media_type)
        self._events = events
        kind = media_type if media_type.startswith("audio/") else f"{media_type}; charset=utf-8"
        self._head = [(b"content-type", kind.encode()), *_HEADERS]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events, to the end or until the client has gone."""
        sending = asyncio.create_task(self._send(send, scope.get(WRITE)))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send, write: Callable[[bytes], Awaitable[None]] | None) -> None:
        async def write_through_middleware(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        write = write or write_through_middleware
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            await send({"type": "http.response.start", "status": 200, "headers": list(self._head)})
            async for data in events:
                if data:  # an empty part would end the body
                    await write(data)
            await send({"type": "http.response.body", "body": b""})


async def _disconnected(receive: Receive) -> None:
    """Wait until the client disconnects."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def kept_alive(
    events: AsyncIterator[bytes],
    sign_of_life: bytes,
    failed: Callable[[ApiError], bytes],
    seconds: float = SIGN_OF_LIFE_SECONDS,
) -> AsyncIterator[bytes]:
    """Yield events, and while the first one does not come signs of life.

    Args:
        events: of a stream. They are closed in any case.
        sign_of_life: what clients ignore.
        failed: returns the event of an error, for one that comes after a sign of life: the response has begun. An error
            before that is raised.
        seconds: between two signs.
    """
    first = asyncio.ensure_future(anext(events))
    async with aclosing(events) as rest:  # type: ignore[type-var]
        has_begun = False
        try:
            while not (await asyncio.wait({first}, timeout=seconds))[0]:
                has_begun = True
                yield sign_of_life
            yield first.result()
        except ApiError as error:
            if not has_begun:
                raise
            yield failed(error)
            return
        finally:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
        async for data in rest:
            yield data


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Return the result of some work. When the client disconnects first, cancel the work and raise ApiError."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_disconnected(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client disconnected", code="client_disconnected")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
