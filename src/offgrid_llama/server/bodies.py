"""Bodies: those of requests, read within their limits and validated, and the JSON of responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, get_type_hints

import msgspec
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import Headers

from .api_error import ApiError
from .json_body import read_json
from .parts import parts_of
from .security import HELD
from .settings import Settings
from .validation import validated

__all__ = ["AnyTypeRoute", "StrictRoute", "aside", "json_response"]

T = TypeVar("T")

_logger = logging.getLogger("offgrid_llama.server")

SMALL_BODY_BYTES = 64 * 2**10
"""Bodies of up to this size are read on the event loop, which takes less time than to hand them to a thread."""

_thread = ThreadPoolExecutor(1, "offgrid_llama bodies")
"""Reads larger bodies, one at a time: making the values of one keeps Python's lock, for up to a tenth of a second, and the
event loop has it between two of them. One at a time also bounds the memory that this takes."""


_LARGE = "offgrid_llama.large_body"
"""Where the scope of a request says whether its body is large."""


async def aside(request: Request, function: Callable[..., T], *arguments: Any) -> T:
    """Return what a function makes of a request's body: in the thread of bodies where that is large."""
    if not request.scope.get(_LARGE):
        return function(*arguments)
    return await asyncio.get_running_loop().run_in_executor(_thread, partial(function, *arguments))


class StrictRoute(APIRoute):
    """A route that reads its request's body within limits of type, time and size, and validates it, once.

    FastAPI gets the instance of the schema, and has nothing left to validate.

    Attributes:
        any_type: whether a body of any Content-Type is read as JSON.
    """

    any_type = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which gets a request whose body has been validated."""
        handler = super().get_route_handler()
        schema: type[BaseModel] | None = get_type_hints(self.endpoint).get("body")
        if schema is None:
            return handler

        async def handle(request: Request) -> Response:
            settings = parts_of(request).settings
            body = await _read(request, settings, self.any_type)
            read = partial(_validated, body, schema, settings)
            request.scope[_LARGE] = len(body) > SMALL_BODY_BYTES
            value = await aside(request, read)
            return await handler(_ReadRequest(request, value))

        return handle


class AnyTypeRoute(StrictRoute):
    """A route for clients that send JSON under any Content-Type, such as curl with -d.

    A web page could send such a body to another site without asking; the Guard refuses it by its origin.
    """

    any_type = True


class _ReadRequest(Request):
    """A request whose body has been read, and is JSON."""

    def __init__(self, request: Request, value: BaseModel) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    @property
    def headers(self) -> Headers:
        """The headers, with the type that the body has. FastAPI reads no other bodies."""
        found = super().headers
        if found.get("content-type", "").startswith("application/json"):
            return found
        kept = [(name, value) for name, value in found.raw if name != b"content-type"]
        return Headers(raw=[*kept, (b"content-type", b"application/json")])

    async def body(self) -> bytes:
        """Return bytes that are not empty, which is all that FastAPI looks at. The real ones are no longer held."""
        return b"{}"

    async def json(self) -> Any:
        """Return the instance of the schema."""
        return self._value


def _validated(body: bytes, schema: type[BaseModel], settings: Settings) -> BaseModel:
    try:
        value = read_json(body, settings.max_json_depth, settings.max_body_bytes)
        return validated(schema, value, {"ignore_unknown": settings.ignore_unknown})
    except ApiError:
        raise
    except Exception as error:  # nothing but the client's data is used here, so the client's data is at fault
        _logger.warning("a body cannot be used", exc_info=error)
        raise ApiError(400, f"the body cannot be used: {type(error).__name__}", code="invalid_value") from error


async def _read(request: Request, settings: Settings, any_type: bool) -> bytes:
    """Return the body of a request. Raises ApiError for one of another type, and for one that is too large or too slow."""
    limit = settings.max_body_bytes
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        message = f"the body has {int(length):,} bytes; {limit:,} are allowed"
        raise _ended(ApiError(413, message, code="body_too_large"))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    has_body = length != "0" or "transfer-encoding" in request.headers
    if has_body and kind != "application/json" and not any_type:
        raise ApiError(415, "the Content-Type must be application/json", code="unsupported_media_type")
    if has_body and request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ApiError(415, "bodies with a Content-Encoding are not read", code="unsupported_media_type")
    hold = request.scope[HELD].enter_context(parts_of(request).body_bytes.holding(request.scope["key"]))
    try:
        return await asyncio.wait_for(_received(request, limit, hold), settings.body_seconds)
    except asyncio.TimeoutError:
        message = f"the body did not arrive within {settings.body_seconds:g} s"
        raise _ended(ApiError(408, message, code="request_timeout")) from None
    except ApiError as error:
        raise _ended(error) from None


def _ended(error: ApiError) -> ApiError:
    """Return an error that closes the connection, as the rest of the body is not read."""
    error.headers["Connection"] = "close"
    return error


async def _received(request: Request, limit: int, hold: Callable[[int], None]) -> bytes:
    body = bytearray()
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ApiError(400, "the client disconnected", code="client_disconnected")
        part = message.get("body", b"")
        if len(body) + len(part) > limit:
            raise ApiError(413, f"the body has more than {limit:,} bytes", code="body_too_large")
        hold(len(part))
        body += part
        if not message.get("more_body"):
            return bytes(body)


def json_response(value: Any, status: int = 200) -> Response:
    """Return a response with a value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
