"""LlamaServerCors: pages of other origins may use the server, as llama-server allows it (a plain ASGI middleware)."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from typing import Any

from .security import App, Receive, Scope, Send

__all__ = ["LlamaServerCors"]

_LOCAL = ("http://localhost", "http://127.0.0.1", "http://[::1]")
_METHODS, _HEADERS = b"GET, POST, DELETE, OPTIONS", b"*"


class LlamaServerCors:
    """Answers preflights, and tells browsers that a page may read a response.

    Args:
        app: the app behind it.
        origins: those that may; ``*`` is any, and "localhost" this machine's, with any port.
    """

    def __init__(self, app: App, origins: Sequence[str]) -> None:
        self._app = app
        self._origins = tuple(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a preflight, or pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        origin = dict(scope["headers"]).get(b"origin", b"")
        own = [(b"Access-Control-Allow-Origin", origin)] if origin and self._allows(origin.decode("latin-1")) else []
        if scope["method"] == "OPTIONS":
            headers = [
                *own, (b"Access-Control-Allow-Credentials", b"true"), (b"Access-Control-Allow-Methods", _METHODS),
                (b"Access-Control-Allow-Headers", _HEADERS), (b"content-length", b"0"),
            ]  # fmt: skip
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_origin(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self._app(scope, receive, send_with_origin)

    def _allows(self, origin: str) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        host, _, port = origin.rpartition(":")
        is_local = origin in _LOCAL or (host in _LOCAL and port.isdigit())
        return is_local and "localhost" in self._origins
