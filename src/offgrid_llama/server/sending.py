"""Sending: answers reach their clients within a time, or their connections end (a plain ASGI middleware, the outermost).

All answers are bounded here and nowhere else: a whole one, a stream, an error. An answer may wait for its client for
``write_seconds``, and as long again for each MiB that the client has taken, so that a client that takes a byte now and then
keeps nothing. All that a request holds is let go when its answer is sent, and no earlier.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from functools import partial
from time import monotonic
from typing import Any, Protocol

from .security import App, Receive, Scope, Send

__all__ = ["CONNECTION", "PIECE_BYTES", "WRITE", "Connection", "Sending"]

_logger = logging.getLogger("offgrid_llama.server")

CONNECTION = "offgrid_llama.connection"
"""The key of a scope with the Connection of a request, where this package's protocol serves it."""
WRITE = "offgrid_llama.write"
"""The key of a scope with a coroutine function that writes a part of the body, once the response has begun."""
PIECE_BYTES = 2**20
"""Bytes that are written at once, at most, and for which an answer may wait another ``write_seconds``."""


class Connection(Protocol):
    """The methods of a connection that ASGI lacks."""

    @property
    def is_blocked(self) -> bool:
        """Whether bytes wait until the client takes what came before them."""

    async def sent(self) -> None:
        """Wait until no bytes wait, or the connection has ended."""

    def cut_off(self) -> None:
        """End the connection at once, and drop bytes that wait."""

    def write_chunk(self, data: bytes) -> None:
        """Write a part of a body without Content-Length."""

    @property
    def takes_chunks(self) -> bool:
        """Whether the client understands such parts."""


class Sending:
    """Cancels a request whose client does not take its answer.

    It also answers HEAD wherever the app answers GET: with the same head, and without the body.
    """

    def __init__(self, app: App, write_seconds: float) -> None:
        self._app = app
        self._write_seconds = write_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection: Connection | None = scope.get(CONNECTION)
        answer = _Answer(send, connection, scope["method"] == "HEAD", self._write_seconds)
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        elif connection is not None and connection.takes_chunks:
            scope[WRITE] = partial(answer.write, connection)
        try:
            await self._app(scope, receive, answer.send)
        except asyncio.CancelledError:
            if not answer.too_slow and not answer.is_whole:
                raise


class _Answer:
    """An answer on its way.

    Attributes:
        too_slow: whether the client did not take it in time.
        is_whole: whether it ended with its head, before the app's own end: HEAD of a stream, which may be endless.
    """

    def __init__(self, send: Send, connection: Connection | None, without_body: bool, seconds: float) -> None:
        self.too_slow = False
        self.is_whole = False
        self._send = send
        self._connection = connection
        self._without_body = without_body
        self._seconds = seconds
        self._waited = 0.0  # seconds, so far
        self._taken = 0  # bytes

    async def send(self, message: Any) -> None:
        """Send a message of ASGI, the body in pieces. The last one ends when the client has taken all of them."""
        if message["type"] != "http.response.body":
            await self._pass_on(message)
            return
        if self._without_body and message.get("more_body", False):
            await self._pass_on({**message, "body": b"", "more_body": False})
            self.is_whole = True
            raise asyncio.CancelledError
        body, more = b"" if self._without_body else message.get("body", b""), message.get("more_body", False)
        for at in range(0, max(1, len(body)), PIECE_BYTES):
            is_last = at + PIECE_BYTES >= len(body)
            piece = body[at : at + PIECE_BYTES] if len(body) > PIECE_BYTES else body
            await self._pass_on({**message, "body": piece, "more_body": more or not is_last})
        if not more and self._connection is not None and self._connection.is_blocked:
            await self._in_time(self._connection.sent())

    async def write(self, connection: Connection, data: bytes) -> None:
        """Write a part of a stream. This spares each token half a dozen layers of middleware."""
        if connection.is_blocked:
            await self._in_time(connection.sent())
        connection.write_chunk(data)
        self._taken += len(data)

    async def _pass_on(self, message: Any) -> None:
        if self._connection is None or self._connection.is_blocked:
            await self._in_time(self._send(message))
        else:
            await self._send(message)
        self._taken += len(message.get("body", b""))

    async def _in_time(self, writing: Awaitable[None]) -> None:
        begin = monotonic()
        allowed = self._seconds * (1 + self._taken / PIECE_BYTES)
        try:
            await asyncio.wait_for(writing, max(0.0, allowed - self._waited))
            self._waited += monotonic() - begin
        except asyncio.TimeoutError:
            self.too_slow = True
            _logger.warning("a client took too little of its answer in %g s; its connection is cut off", allowed)
            if self._connection is not None:
                self._connection.cut_off()
                await self._connection.sent()
            raise asyncio.CancelledError from None
