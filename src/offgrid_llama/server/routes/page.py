"""The chat page: its files as routes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources

from fastapi import APIRouter, Response

__all__ = ["router"]

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page/attachments.js": ("attachments.js", "text/javascript; charset=utf-8"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}


def router() -> APIRouter:
    """Return the routes of the page. Its files are read now."""
    routes = APIRouter()
    folder = resources.files("offgrid_llama.server") / "page"
    for path, (name, media_type) in _FILES.items():
        handler = _handler((folder / name).read_bytes(), media_type)
        routes.add_api_route(path, handler, methods=["GET"], include_in_schema=False, response_class=Response)
    return routes


def _handler(content: bytes, media_type: str) -> Callable[[], Response]:
    # The handler has no parameters: FastAPI would fill them from the query, and reflect what a link says.
    def file() -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    return file
