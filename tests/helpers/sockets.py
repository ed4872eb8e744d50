"""Connections to servers under test."""

from __future__ import annotations

import socket

__all__ = ["connect_to"]


def connect_to(url: str, receive_bytes: int | None = None) -> socket.socket:
    """Return a connection to a server; ``receive_bytes`` is its receive buffer, None the system's."""
    host, port = url.removeprefix("http://").split(":")
    client = socket.socket()
    client.settimeout(30)
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    client.connect((host, int(port)))
    return client
