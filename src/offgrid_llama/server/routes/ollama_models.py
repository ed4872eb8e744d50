"""Ollama's routes about models."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from offgrid_llama import store
from offgrid_llama.server.access_log import MODEL
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.bodies import AnyTypeRoute, json_response
from offgrid_llama.server.dialects.ollama import LINES, OLLAMA
from offgrid_llama.server.dialects.ollama_models import OLLAMA_VERSION, Described, listed, running, shown
from offgrid_llama.server.dialects.ollama_schemas import CopyBody, ModelBody, PullBody
from offgrid_llama.server.parts import admit, parts_of
from offgrid_llama.server.streams import EventStream, while_connected
from offgrid_llama.server.supervision.names import tagged
from offgrid_llama.server.supervision.served_model import ServedModel
from offgrid_llama.server.supervision.specs import model_created
from offgrid_llama.worker.frames import Facts

from .ollama import find

__all__ = ["root", "router"]

router = APIRouter(route_class=AnyTypeRoute)
root = APIRouter()
"""The root of a server without a page."""

DEFAULT_N_CTX = 4096
"""Positions of a sequence, where neither the settings nor the file say otherwise."""


@root.get("/", include_in_schema=False, response_class=Response)
async def is_running() -> Response:
    """Return what Ollama says at its root, where clients look whether it runs."""
    return Response("Ollama is running", media_type="text/plain")


@router.get("/api/version", tags=["ollama"], response_class=Response)
async def version() -> Response:
    """Return the version of Ollama whose API this is."""
    return json_response({"version": OLLAMA_VERSION})


@router.get("/api/tags", tags=["ollama"], response_class=Response)
async def tags(request: Request) -> Response:
    """List the models, under each of their names."""
    named = parts_of(request).supervisor.names.tagged()
    return json_response(listed(await _described(request, list(named.items()))))


@router.post("/api/show", tags=["ollama"], response_class=Response)
async def show(body: ModelBody, request: Request) -> Response:
    """Describe a model: its metadata, template, parameters and capabilities."""
    model = find(request, _named(body))
    request.scope[MODEL] = model.name
    (found,) = await _described(request, [(body.named, model)])
    return json_response(shown(found))


@router.get("/api/ps", tags=["ollama"], response_class=Response)
async def ps(request: Request) -> Response:
    """List the models that are loaded."""
    supervisor = parts_of(request).supervisor
    loaded = [model for model in supervisor.models.values() if model.worker is not None and model.loading is None]
    sizes = [0 if model.worker is None else model.worker.rss_bytes for model in loaded]
    seconds = [supervisor.seconds_left(model) for model in loaded]
    described = await _described(request, [(model.name, model) for model in loaded])
    return json_response(running(list(zip(described, sizes, seconds, strict=True))))


@router.post("/api/pull", tags=["ollama"], response_class=Response)
async def pull(body: PullBody, request: Request) -> Response:
    """Download a model, and offer it, if the settings allow that."""
    name, library = _named(body), parts_of(request).library
    library.check_allowed("pull")
    admit(request, name)
    reports = library.pull(name)
    if body.stream:
        return EventStream(_lines(reports), LINES)
    return json_response(await while_connected(request, _last(reports)))


async def _lines(reports: AsyncGenerator[dict[str, Any], None]) -> AsyncIterator[bytes]:
    """Yield reports as lines of JSON; an error is the last line."""
    async with aclosing(reports) as found:
        try:
            async for report in found:
                yield msgspec.json.encode(report) + b"\n"
        except ApiError as error:
            yield msgspec.json.encode(OLLAMA.error(error)) + b"\n"


async def _last(reports: AsyncGenerator[dict[str, Any], None]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    async with aclosing(reports) as found:
        async for report in found:
            last = report
    return last


@router.post("/api/copy", tags=["ollama"], response_class=Response)
async def copy(body: CopyBody, request: Request) -> Response:
    """Offer a model under a further name, if the settings allow that."""
    library = parts_of(request).library
    library.check_allowed("copy")
    library.copy(find(request, body.source, exactly=True), body.destination)
    return Response()


@router.delete("/api/delete", tags=["ollama"], response_class=Response)
async def delete(body: ModelBody, request: Request) -> Response:
    """Delete a model, if the settings allow that."""
    name, library = _named(body), parts_of(request).library
    library.check_allowed("delete")
    await library.delete(find(request, name, exactly=True))
    return Response()


def _refused(what: str) -> Callable[[], Coroutine[Any, Any, Response]]:
    # The handler has no parameters: it reads no body, which may be a whole model.
    async def refuse() -> Response:
        message = f"this server does not {what} models; its settings can offer any GGUF file, see docs/server.md"
        raise ApiError(501, message, code="not_supported", headers={"Connection": "close"})

    return refuse


for _path, _what in (("/api/create", "create"), ("/api/push", "push"), ("/api/blobs/{digest}", "create")):
    router.add_api_route(
        _path, _refused(_what), methods=["POST", "HEAD"], include_in_schema=False, response_class=Response
    )


def _named(body: ModelBody) -> str:
    """Return the name of the model that a request is about. Raises ApiError."""
    if not body.named:
        raise ApiError(400, "model is required", code="invalid_value", param="model")
    return body.named


async def _described(request: Request, models: Sequence[tuple[str, ServedModel]]) -> list[Described]:
    """Return what is known of models, each under a name."""
    supervisor = parts_of(request).supervisor
    presets = [supervisor.presets.find(name) for name, _ in models]
    settings = [
        model.settings if preset is None else preset.as_model()
        for (_, model), preset in zip(models, presets, strict=True)
    ]
    facts = await while_connected(request, supervisor.inspector.facts(settings))
    return [
        Described(
            tagged(name), model_created(model.settings), _size(model) if told is None else told.size,
            _n_ctx(model, told), told, shown_as.sampling,
        )
        for (name, model), shown_as, told in zip(models, settings, facts, strict=True)
    ]  # fmt: skip


def _size(model: ServedModel) -> int:
    """Return the bytes of a model that is not on this machine yet, as far as they are known."""
    name = (model.settings.model or model.name).casefold()
    sizes = (each.size for each in store.catalog() if name in (each.name.casefold(), *each.aliases))
    return next(sizes, 0) or 0


def _n_ctx(model: ServedModel, facts: Facts | None) -> int:
    """Return the positions of one request: those of the loaded model, or else what the settings will give it."""
    if model.worker is not None and model.worker.info.get("n_ctx"):
        return int(model.worker.info["n_ctx"])
    if model.settings.n_ctx is not None:
        return model.settings.n_ctx // model.settings.n_parallel
    return min((facts.n_ctx_train if facts else 0) or DEFAULT_N_CTX, DEFAULT_N_CTX)
