"""HttpProtocol: uvicorn's HTTP/1.1 with limits for connections and heads of requests, and with shortcuts for streams."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
from contextlib import suppress
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .api_error import ApiError, busy
from .request_target import in_origin_form
from .sending import CONNECTION

__all__ = ["HttpProtocol", "http_protocol"]


_logger = logging.getLogger("offgrid_llama.server")

RETRY_SECONDS = 5
"""When a client may connect again that came while too many connections were open."""


READ_BYTES = 64 * 2**10
"""Bytes that are read from a connection in one turn of the event loop, at most; further requests may lie in them."""
MANY_PARTS = 4096
"""Parts of a body, above which their mean size must be ``MIN_PART_BYTES``."""
MIN_PART_BYTES = 64
FIRST_LOOK_SECONDS, MAX_LOOK_SECONDS = 0.02, 1.0
"""Time between two looks whether a client that sends no more is still there."""

_DROP = struct.pack("ii", 1, 0)
"""The value of SO_LINGER with which a close sends nothing more."""
_CONTINUE = h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
"""A response that every client skips."""


class _LimitedConnection(h11.Connection):
    """h11's parser, which refuses bodies in tiny parts: each part takes as long as some kilobytes of a large one."""

    _n_parts = 0
    _n_bytes = 0

    def next_event(self) -> Any:
        """Return the next event. Raises RemoteProtocolError for a body in too many parts, and as ``in_origin_form`` does."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._n_parts = self._n_bytes = 0
            return in_origin_form(event)
        if isinstance(event, h11.Data):
            self._n_parts += 1
            self._n_bytes += len(event.data)
            if self._n_parts > MANY_PARTS and self._n_bytes < MIN_PART_BYTES * self._n_parts:
                raise h11.RemoteProtocolError("the body has too many small parts")
        return event


class HttpProtocol(H11Protocol):
    """A connection.

    It is closed when the head of a request takes longer than ``header_seconds``, and at once when there are more than
    ``max_connections``.
    """

    header_seconds: float
    max_connections: int
    _timer: asyncio.TimerHandle | None = None
    _is_half_closed = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = _LimitedConnection(h11.SERVER, self.config.h11_max_incomplete_event_size or 2**14)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection, and with it the time of the first head."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # what the kernel has not taken is not sent
        if hasattr(transport, "max_size"):  # asyncio's own; bytes that are read at once
            transport.max_size = READ_BYTES
        if len(self.connections) > self.max_connections:
            _logger.warning("%d connections are open; another one is refused", self.max_connections)
            self._end(busy(503, "the server has too many connections", "too_many_connections", RETRY_SECONDS))
            return
        self._start_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection if the last request is whole: its client may have closed one direction only.

        A client that has closed both looks the same until something is written to it.
        """
        cycle: Any = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete:
            return False
        if not self._is_half_closed:
            self._is_half_closed = True
            if not cycle.response_started and self.takes_chunks:
                with suppress(h11.LocalProtocolError):
                    self.transport.write(self.conn.send(_CONTINUE) or b"")
            self._look_for_client(FIRST_LOOK_SECONDS)
        return True

    def _look_for_client(self, seconds: float) -> None:
        """End the connection when the client's system has refused what was written, now and from time to time."""
        connected = self.transport.get_extra_info("socket")
        if self.transport.is_closing() or connected is None:
            return
        if connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(seconds, self._look_for_client, min(2 * seconds, MAX_LOOK_SECONDS))

    def on_response_complete(self) -> None:
        """Go on with the next request, and end the connection after the last one of a client that sends no more."""
        super().on_response_complete()
        if self._is_half_closed and self.cycle.response_complete:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """End a connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes. The first after a response begin the next head."""
        cycle: Any = self.cycle  # None before the first request
        if self._timer is None and (cycle is None or cycle.response_complete):
            self._start_timer()
        super().data_received(data)

    def handle_events(self) -> None:
        """Start a request when its head is complete, and give it the shortcuts for streams."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._stop_timer()
            scope: Any = self.cycle.scope
            scope[CONNECTION] = self

    @property
    def is_blocked(self) -> bool:
        """Whether bytes wait until the client takes what came before them."""
        return self.flow.write_paused

    async def sent(self) -> None:
        """Wait until no bytes wait, or the connection has ended."""
        await self.flow.drain()

    def cut_off(self) -> None:
        """End the connection at once, and drop bytes that wait, those of the kernel, too."""
        connected = self.transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP)
        self.transport.abort()

    @property
    def takes_chunks(self) -> bool:
        """Whether the client understands a body in parts."""
        return self.conn.their_http_version == b"1.1"

    def write_chunk(self, data: bytes) -> None:
        """Write a part of a body without Content-Length, as h11 would."""
        if not self.transport.is_closing():
            self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP with an error in OpenAI's shape, which says what h11 has found in them."""
        found = sys.exc_info()[1]
        if not isinstance(found, h11.RemoteProtocolError):
            found = h11.RemoteProtocolError(msg)
        self._end(ApiError(found.error_status_hint, f"this HTTP request cannot be read: {found}"))

    def _end(self, error: ApiError) -> None:
        """Close the connection with an error that answers no request; what answers one that runs is dropped."""
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        body = error.body()
        headers = [
            ("content-type", "application/json"),
            ("connection", "close"),
            ("content-length", str(len(body))),
            *error.headers.items(),
        ]
        with suppress(h11.LocalProtocolError):
            for event in (
                h11.Response(status_code=error.status, headers=headers, reason=HTTPStatus(error.status).phrase.encode()),
                h11.Data(data=body), h11.EndOfMessage(),
            ):  # fmt: skip
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._start_timer()  # for a client that does not take this

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        self.transport.abort()


def http_protocol(header_seconds: float, max_connections: int) -> type[HttpProtocol]:
    """Return the protocol with its limits; uvicorn makes the instances."""
    limits = {"header_seconds": header_seconds, "max_connections": max_connections}
    return type("HttpProtocol", (HttpProtocol,), limits)
