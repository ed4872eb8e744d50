"""EventStream: server-sent events to one client, who may go away or read too slowly at any moment."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from .errors import ApiError
from .security import Receive, Scope, Send

__all__ = ["EventStream", "gone", "while_connected"]

_logger = logging.getLogger("offgrid_llama.server")
_T = TypeVar("_T")

ABORT = "offgrid_llama.abort"
"""The key of a scope with what ends the connection at once, whatever is still to be written."""

WRITE = "offgrid_llama.write"
"""The key of a scope with what writes a part of the body as it is, once the answer has begun."""

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx is to hand on each event as it comes
]


class EventStream(Response):
    """Sends events as they come. A client that goes away, or takes nothing for a while, ends what it has asked for.

    Args:
        events: the bytes of events; closed in any case.
        write_seconds: most time for a client to take what was written.
    """

    def __init__(self, events: AsyncIterator[bytes], write_seconds: float) -> None:
        super().__init__(status_code=200, media_type="text/event-stream")
        self._events = events
        self._write_seconds = write_seconds
        self._sending_since: float | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all, or until the client is gone."""
        sending = asyncio.create_task(self._send(send, scope.get(WRITE)))
        leaving = asyncio.create_task(gone(receive))
        try:
            while not sending.done():
                done, _ = await asyncio.wait(
                    {sending, leaving}, timeout=self._write_seconds / 4, return_when=asyncio.FIRST_COMPLETED
                )
                since = self._sending_since
                if leaving in done or (since is not None and monotonic() - since > self._write_seconds):
                    break
            if sending.done():
                sending.result()
                return
            if leaving not in done and ABORT in scope:
                _logger.warning("a client took nothing for %g s: it is cut off", self._write_seconds)
                scope[ABORT]()
        finally:
            for task in (sending, leaving):
                task.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send, write: Callable[[bytes], Awaitable[None]] | None) -> None:
        async def through_all(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        # Each token would pass half a dozen layers, none of which does anything with it.
        write = write or through_all
        async with aclosing(self._events) as events:  # type: ignore[type-var]
            await self._timed(send({"type": "http.response.start", "status": 200, "headers": list(_HEADERS)}))
            async for data in events:
                await self._timed(write(data))
            # It waits for what the client has not taken.
            await self._timed(send({"type": "http.response.body", "body": b""}))

    async def _timed(self, writing: Awaitable[None]) -> None:
        self._sending_since = monotonic()
        await writing
        self._sending_since = None


async def gone(receive: Receive) -> None:
    """Wait until a client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Any) -> Any:
    """Return what a coroutine gives; it is cancelled when the client goes away before, which is an ApiError then."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(gone(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(499, "the client is gone", code="client_disconnected")
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
