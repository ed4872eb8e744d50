"""run(): the app on a socket, until a signal says to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import create_app
from .errors import ApiError
from .settings import Settings
from .streams import ABORT, WRITE

if TYPE_CHECKING:
    from types import FrameType

    from .state import State

__all__ = ["Server", "run"]

_logger = logging.getLogger("offgrid_llama.server")

BACKLOG = 2048
KEEP_ALIVE_SECONDS = 15
FORCED_SECONDS = 3
"""What connections have left once the time for a graceful stop is over."""


def run(settings: Settings, *, on_listening: Callable[[str], object] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, and then until what is under way has ended, ``grace_seconds`` at most.

    Args:
        settings: what to serve.
        on_listening: called with the server's address once it listens.

    Raises OSError where it cannot listen.
    """
    Server(settings, on_listening).run()


class Server(uvicorn.Server):
    """uvicorn's server, with limits for heads of requests, and a stop that loses no answer.

    Args:
        settings: what to serve.
        on_listening: called with the server's address once it listens.

    Attributes:
        url: its address, once it listens.
    """

    def __init__(self, settings: Settings, on_listening: Callable[[str], object] | None = None) -> None:
        app = create_app(settings)
        self._state: State = app.state.server
        self._settings = settings
        self._on_listening = on_listening
        self._stopping_since: float | None = None
        self._notified = ""
        self.url = ""
        super().__init__(
            uvicorn.Config(
                app, host=settings.host, port=settings.port, http=_protocol(settings), ws="none", lifespan="on",
                log_config=None, access_log=False, backlog=BACKLOG, timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=FORCED_SECONDS, h11_max_incomplete_event_size=settings.max_header_bytes,
                server_header=False, proxy_headers=False,
            )
        )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        begin_log(self._settings.log_format)
        await super().startup(sockets)
        if not self.started:
            return
        port = next(
            (found.getsockname()[1] for server in self.servers for found in server.sockets), self._settings.port
        )
        host = f"[{self._settings.host}]" if ":" in self._settings.host else self._settings.host
        self.url = f"http://{host}:{port}"
        _logger.info("listening on %s", self.url)
        self._notify("READY=1")
        if self._on_listening is not None:
            self._on_listening(self.url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no more requests, and end once those under way have; at the second signal at once."""
        if self._stopping_since is None:
            self._stopping_since = monotonic()
            self._state.admission.stopping = True
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; return whether to end."""
        if self._stopping_since is not None:
            self._notify("STOPPING=1")
            late = monotonic() - self._stopping_since > self._settings.grace_seconds
            if late or not self._state.admission.n:
                await self._state.supervisor.close()  # which tells the streams that are left
                await asyncio.sleep(0.05)
                self.should_exit = True
        else:
            self._notify("STATUS=ready" if self._state.supervisor.ready else "STATUS=loading")
            if counter % 50 == 0:
                _notify_systemd("WATCHDOG=1")
        return await super().on_tick(counter)

    def _notify(self, message: str) -> None:
        if message != self._notified:
            self._notified = message
            _notify_systemd(message)


def _protocol(settings: Settings) -> type[H11Protocol]:
    """Return uvicorn's protocol with a time for the head of a request, and a way to cut a connection off."""

    class Protocol(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            cycle: Any = self.cycle  # None before the first request
            if self._timer is None and (cycle is None or cycle.response_complete):
                self._arm()
            super().data_received(data)

        def handle_events(self) -> None:
            before = self.cycle
            super().handle_events()
            if self.cycle is not before:
                self._disarm()
                scope: Any = self.cycle.scope
                scope[ABORT] = self.transport.abort
                if self.conn.their_http_version == b"1.1":
                    scope[WRITE] = self._write_chunk

        async def _write_chunk(self, data: bytes) -> None:
            """Write what h11 would make of a part of a body without Content-Length."""
            if self.flow.write_paused:
                await self.flow.drain()
            if not self.transport.is_closing():
                self.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

        def send_400_response(self, msg: str) -> None:
            body = ApiError(400, f"this is no request of HTTP, or its head is too large: {msg}").body()
            headers = [
                ("content-type", "application/json"),
                ("connection", "close"),
                ("content-length", str(len(body))),
            ]
            with suppress(h11.LocalProtocolError):
                for event in (
                    h11.Response(status_code=400, headers=headers, reason=b"Bad Request"), h11.Data(data=body),
                    h11.EndOfMessage(),
                ):  # fmt: skip
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _arm(self) -> None:
            self._timer = self.loop.call_later(settings.header_seconds, self._too_slow)

        def _disarm(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            self.transport.abort()

    return Protocol


def _notify_systemd(message: str) -> None:
    """Tell systemd, where it has started this (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(message.encode())


class _JsonFormatter(logging.Formatter):
    """A line of JSON for each record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        told = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower(),
            "logger": record.name, "message": record.getMessage(),
        }  # fmt: skip
        for name in ("path", "status", "seconds", "model"):
            if hasattr(record, name):
                told[name] = getattr(record, name)
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


def begin_log(log_format: str) -> None:
    """Write the log of the server to stderr, unless the program has set up its own."""
    for name in ("offgrid_llama.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        if logger.hasHandlers():
            continue
        handler = logging.StreamHandler(sys.stderr)
        text = logging.Formatter("%(asctime)s %(levelname).1s %(message)s")
        handler.setFormatter(_JsonFormatter() if log_format == "json" else text)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO if name.startswith("offgrid") else logging.WARNING)
        logger.propagate = False
