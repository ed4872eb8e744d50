"""The ASGI app: routes, and what a request goes through before and behind them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from importlib import resources
from time import monotonic
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import offgrid_llama

from .admission import Admission
from .computing import computing_routes
from .errors import ApiError
from .generating import generating_routes
from .managing import managing_routes
from .metrics import Metrics
from .security import Guard
from .settings import Settings
from .state import State
from .supervisor import Supervisor

__all__ = ["create_app"]

_logger = logging.getLogger("offgrid_llama.server")

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}


def create_app(settings: Settings | None = None, **given: Any) -> FastAPI:
    """Return the server as an ASGI app, to be served by uvicorn or mounted in another one.

    Args:
        settings: what it is told; None is ``Settings.load(**given)``, without a file.

    Its lifespan starts the workers and ends them. ``app.state.server`` is the State with its parts.

    Raises SettingsError.
    """
    settings = settings or Settings.load(**given)
    supervisor = Supervisor(settings)
    admission = Admission(settings)
    state = State(settings, supervisor, admission, Metrics(supervisor, admission))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        supervisor.start()
        try:
            yield
        finally:
            admission.stopping = True
            await supervisor.close()

    app = FastAPI(
        title="offgrid-llama", version=offgrid_llama.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url="/openapi.json", description="An OpenAI-compatible API on models of this machine.",
        separate_input_output_schemas=False,
    )  # fmt: skip
    app.state.server = state
    app.router.route_class = _route_class(settings)
    app.include_router(generating_routes(state, app.router.route_class))
    app.include_router(computing_routes(state, app.router.route_class))
    app.include_router(managing_routes(state, app.router.route_class))
    if settings.page:
        _serve_page(app)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(_Log, state=state)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    return app


def _serve_page(app: FastAPI) -> None:
    folder = resources.files(__package__) / "page"
    for path, (name, kind) in _PAGE.items():
        content = (folder / name).read_bytes()

        def page(content: bytes = content, kind: str = kind) -> Response:
            return Response(content, media_type=kind, headers={"cache-control": "no-cache"})

        app.add_api_route(path, page, methods=["GET"], include_in_schema=False, response_class=Response)


# Bodies -----------------------------------------------------------------------------------------------------------------


def _route_class(settings: Settings) -> type[APIRoute]:
    """Return a route whose requests read JSON strictly: UTF-8, no NaN, and not too deep."""

    class StrictRequest(Request):
        async def json(self) -> Any:
            body = await self.body()
            try:
                found = msgspec.json.decode(body)
            except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError) as error:
                raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from error
            if _deeper(found, settings.max_json_depth):
                raise ApiError(
                    400, f"the body is nested deeper than {settings.max_json_depth} levels", code="invalid_json"
                )
            return found

    class StrictRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handler = super().get_route_handler()

            async def handle(request: Request) -> Response:
                return await handler(StrictRequest(request.scope, request.receive))

            return handle

    return StrictRoute


def _deeper(value: Any, depth: int) -> bool:
    """Return whether a value of JSON is nested deeper than so many levels."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            item
            for each in level
            if isinstance(each, (dict, list))
            for item in (each.values() if isinstance(each, dict) else each)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


# Errors -----------------------------------------------------------------------------------------------------------------


async def _api_error(_request: Request, error: Exception) -> Response:
    if not isinstance(error, ApiError):
        raise error
    return Response(error.body(), error.status, error.headers, "application/json")


async def _invalid(request: Request, error: Exception) -> Response:
    """Answer to a body that does not fit its schema, as OpenAI does: 400, and the first thing that is wrong."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = max(error.errors(), key=lambda each: _weight(each["loc"]))
    place = [str(part) for part in first["loc"] if part != "body" and not _is_of_a_union(part)]
    param = ".".join(place) or None
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {param}"
    elif param is None:
        param = message.partition(":")[0] if ":" in message else None
    else:
        message = f"{param}: {message}"
    return await _api_error(request, ApiError(400, message, code="invalid_value", param=param))


def _weight(place: tuple[int | str, ...]) -> int:
    return len(place)  # of the ways that a union could be meant, the one that went furthest


def _is_of_a_union(part: int | str) -> bool:
    """Return whether a part of a place is pydantic's name of one of a union's types."""
    return isinstance(part, str) and (part in ("str", "int", "bool", "float") or "[" in part or "(" in part)


async def _http_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    if isinstance(error.__cause__, ApiError):  # raised while FastAPI read the body
        return await _api_error(request, error.__cause__)
    what = {404: f"there is no {request.url.path!r:.200}", 405: f"{request.method} is not allowed here"}
    made = ApiError(error.status_code, what.get(error.status_code, str(error.detail)), headers=error.headers)
    return await _api_error(request, made)


async def _unexpected(request: Request, error: Exception) -> Response:
    _logger.error("%s %s has failed", request.method, request.url.path, exc_info=error)
    return await _api_error(request, ApiError(500, "the server has failed; its log says how", code="internal_error"))


class _Log:
    """Counts and logs each request: its path, status and time, and nothing of what it says."""

    def __init__(self, app: Any, state: State) -> None:
        self._app = app
        self._state = state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = monotonic(), 0

        async def noted(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            status = status or 499
            raise
        finally:
            route = scope.get("route")
            path = getattr(route, "path", "other")
            model = scope.get("offgrid_llama.model", "")
            self._state.metrics.requests.labels(path, model, str(status)).inc()
            _logger.info(
                "%s %s %d %.3f s", scope["method"], path, status, monotonic() - begin,
                extra={"path": path, "status": status, "seconds": monotonic() - begin, "model": model},
            )  # fmt: skip
