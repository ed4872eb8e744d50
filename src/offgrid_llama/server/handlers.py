"""Handlers: what a client gets for each exception that a request can raise, in the shape of the API that it speaks.

Starlette answers unexpected exceptions outside of all middleware. Such an answer has no headers for pages of other origins,
no status in the log, and no limit of time. So `_Unexpected` answers them inside. Starlette keeps the rest: exceptions of the
middleware itself, and exceptions that come when an answer has begun.
"""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from .api_error import ApiError
from .dialects.choice import dialect_of
from .security import REQUEST_ID, App, Receive, Scope, Send
from .validation import invalid_value

__all__ = ["add_exception_handlers"]

_logger = logging.getLogger("offgrid_llama.server")


def add_exception_handlers(app: FastAPI) -> None:
    """Turn every exception of a request into an error in the shape of its dialect. The app has no middleware yet."""
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_path)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_unexpected)
    app.add_middleware(_Unexpected)


class _Unexpected:
    """Answers requests that fail for a reason that no handler knows (a plain ASGI middleware, the innermost)."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        has_begun = False

        async def send_and_note(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_and_note)
        except Exception as error:
            if scope["type"] != "http" or has_begun:
                raise
            response = await _on_unexpected(Request(scope), error)
            await response(scope, receive, send)


def _respond(request: Request, error: ApiError) -> Response:
    error.request_id = request.scope.get(REQUEST_ID)
    body = msgspec.json.encode(dialect_of(request.scope).error(error))
    return Response(body, error.status, error.headers, "application/json")


async def _on_api_error(request: Request, error: Any) -> Response:
    return _respond(request, error)


async def _on_invalid_path(request: Request, invalid: Any) -> Response:
    """Answer a request whose path has an impossible value. Bodies are validated in bodies."""
    return _respond(request, invalid_value(invalid.errors(), None))


async def _on_http_error(request: Request, error: Any) -> Response:
    messages = {
        404: f"there is no {request.scope['path']!r:.200}", 405: f"{request.method:.20} is not allowed for this path",
    }  # fmt: skip
    message = messages.get(error.status_code, str(error.detail))
    return _respond(request, ApiError(error.status_code, message, headers=error.headers))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    _logger.error("%s %.200r failed", request.method, request.scope["path"], exc_info=error)
    return _respond(request, ApiError(500, "the server failed; its log has the reason", code="internal_error"))
