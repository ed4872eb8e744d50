"""AccessLog: a line and a count for each request."""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import Any

from .log import KIND
from .metrics import Metrics
from .security import App, Receive, Scope, Send

__all__ = ["MODEL", "AccessLog"]

_logger = logging.getLogger("offgrid_llama.server")

MODEL = "offgrid_llama.model"
"""The key of a scope with the name of the request's model, for the log and the metrics."""

_BAD_REQUEST, _CLIENT_CLOSED_REQUEST = 400, 499


class AccessLog:
    """Counts and logs each request: its path, status, time and model, and nothing of its content.

    Of requests that no model answers, one a second is logged for each path and status, with the number of the others.
    """

    def __init__(self, app: App, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and log it when it has ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = monotonic(), 0

        async def send_and_note(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            status = status or _CLIENT_CLOSED_REQUEST
            raise
        finally:
            self._note(scope, status, monotonic() - begin)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "other")
        model = scope.get(MODEL, "")
        self._metrics.requests.labels(path, model, str(status)).inc()
        extra: dict[str, Any] = {"path": path, "status": status, "seconds": seconds, "model": model}
        if not model or status >= _BAD_REQUEST:
            extra[KIND] = (path, status)  # of these a client without a key can send any number
        _logger.info("%.20s %s %d %.3f s", scope["method"], path, status, seconds, extra=extra)
