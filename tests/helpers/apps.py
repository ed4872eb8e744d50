"""Apps and servers in this process, without a worker."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from helpers.sockets import connect_to
from offgrid_llama.server import Settings
from offgrid_llama.server.listener import Server


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    """Return the response of an app to one request."""

    async def asked() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(asked())


class Listening:
    """A server that listens in a thread of this process.

    Attributes:
        url: its address.
        server: the Server.
    """

    def __init__(self, url: str, server: Server) -> None:
        self.url = url
        self.server = server

    def connect(self, *, receive_bytes: int | None = None) -> socket.socket:
        """Return a connection, by default with the system's receive buffer."""
        return connect_to(self.url, receive_bytes)


@contextmanager
def listening(**settings: Any) -> Iterator[Listening]:
    """Run a server until the block ends, by default without models."""
    urls: list[str] = []
    begun = threading.Event()

    def on_listening(url: str) -> None:
        urls.append(url)
        begun.set()

    server = Server(Settings.load(None, {}, port=0, **settings), on_listening)
    serving = threading.Thread(target=server.run)
    serving.start()
    try:
        assert begun.wait(30)
        yield Listening(urls[0], server)
    finally:
        server.should_exit = True
        serving.join(30)


def answer(client: socket.socket) -> bytes:
    """Return all that a server sends until it closes a connection."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)
