"""run(): serves the app on a socket until a signal says to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING

import uvicorn

from offgrid_llama.start import SparedCollector

from .app import create_app
from .http_protocol import http_protocol
from .listening import connection_limit, listening_sockets
from .log import set_up_log
from .settings import Settings

if TYPE_CHECKING:
    from types import FrameType

    from .parts import Parts

__all__ = ["Server", "run"]

_logger = logging.getLogger("offgrid_llama.server")

BACKLOG_CONNECTIONS = 2048
"""Connections that the kernel holds until they are accepted."""
ACCEPTED_AT_ONCE = 32
"""Connections that are accepted in one turn of the event loop, at most, so that a flood of them leaves time for requests."""
UNREAD_BYTES = 256 * 1024
"""Bytes of an answer that the kernel holds for a client that does not read. By itself it goes up to some MB for each, and a
client that has stopped reading is seen only when they are full."""
KEEP_ALIVE_SECONDS = 15
"""Time for which a connection without a request stays open."""
FORCED_CLOSE_SECONDS = 3
"""Time for open connections to close after the graceful stop; then they are aborted."""
LAST_EVENTS_SECONDS = 0.05
"""Time for streams to write the error that ends them, when the server stops before their models have finished."""
TICKS_PER_WATCHDOG = 50
"""Ticks of uvicorn, ten a second, between two signs of life for systemd."""


def run(settings: Settings, *, on_listening: Callable[[str], object] | None = None) -> None:
    """Serve until SIGINT or SIGTERM, and then until running requests have ended, for up to ``grace_seconds``.

    Args:
        settings: of the server.
        on_listening: called with the server's address when it listens.

    Raises OSError when the server cannot listen.
    """
    stack = ExitStack()

    def listening(url: str) -> None:
        stack.enter_context(SparedCollector())
        if on_listening is not None:
            on_listening(url)

    with stack:
        Server(settings, listening).run()


class Server(uvicorn.Server):
    """uvicorn's server with limits for the heads of requests, and a stop that loses no answer.

    Args:
        settings: of the server.
        on_listening: called with the server's address when it listens.

    Attributes:
        url: the server's address when it listens, otherwise "".
    """

    def __init__(self, settings: Settings, on_listening: Callable[[str], object] | None = None) -> None:
        app = create_app(settings)
        self._parts: Parts = app.state.server
        self._settings = settings
        self._on_listening = on_listening
        self._stopping_since: float | None = None
        self._notified = ""
        self._max_connections = connection_limit(settings.max_connections)
        self.url = ""
        super().__init__(
            uvicorn.Config(
                app, host=settings.host, port=settings.port, ws="none", lifespan="on", log_config=None, access_log=False,
                http=http_protocol(settings.header_seconds, self._max_connections), backlog=ACCEPTED_AT_ONCE,
                timeout_keep_alive=KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=FORCED_CLOSE_SECONDS,
                h11_max_incomplete_event_size=settings.max_header_bytes, server_header=False, proxy_headers=False,
            )
        )  # fmt: skip

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve on these sockets, or on those of the settings' address. Raises OSError when that is not possible."""
        super().run(sockets or listening_sockets(self._settings.host, self._settings.port))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and report the address."""
        set_up_log(self._settings.log_format)
        await super().startup(sockets)
        for sock in sockets or ():
            sock.listen(BACKLOG_CONNECTIONS)  # asyncio has listened with the number that it accepts at once
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNREAD_BYTES)  # of each connection
        if self._max_connections < self._settings.max_connections:
            _logger.warning(
                "at most %d connections, not max_connections, as the limit of open files is low", self._max_connections
            )
        if not self.started:
            return
        port = next(
            (found.getsockname()[1] for server in self.servers for found in server.sockets), self._settings.port
        )
        first = self._settings.host.split(",")[0].strip()
        host = f"[{first}]" if ":" in first else first
        self.url = f"http://{host}:{port}"
        _logger.info("listening on %s", self.url)
        self._notify("READY=1")
        if self._on_listening is not None:
            self._on_listening(self.url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take no more requests, and end when the running ones have ended. A second signal ends the server at once."""
        if self._stopping_since is None:
            self._stopping_since = monotonic()
            self._parts.admission.stopping = True
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to end. uvicorn calls this ten times a second."""
        if self._stopping_since is not None:
            self._notify("STOPPING=1")
            late = monotonic() - self._stopping_since > self._settings.grace_seconds
            if late or not self._parts.admission.n:
                await self._parts.background.close()
                await self._parts.library.close()
                await self._parts.supervisor.close()  # streams that still run get an error event
                self._parts.supervisor.events.close()
                await self._parts.streams.close()
                await asyncio.sleep(LAST_EVENTS_SECONDS)
                self.should_exit = True
        else:
            self._notify("STATUS=ready" if self._parts.supervisor.ready else "STATUS=loading")
            if counter % TICKS_PER_WATCHDOG == 0:
                _notify_systemd("WATCHDOG=1")
        return await super().on_tick(counter)

    def _notify(self, message: str) -> None:
        """Tell systemd something new."""
        if message != self._notified:
            self._notified = message
            _notify_systemd(message)


def _notify_systemd(message: str) -> None:
    """Send a message to systemd, if it has started this process (sd_notify)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.send(message.encode())
