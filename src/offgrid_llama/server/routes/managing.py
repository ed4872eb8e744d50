"""Routes about the models and the server itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import Field

from offgrid_llama.server.access_log import MODEL
from offgrid_llama.server.api_error import ApiError, stopping
from offgrid_llama.server.bodies import StrictRoute, json_response
from offgrid_llama.server.dialects.anthropic import ANTHROPIC
from offgrid_llama.server.dialects.anthropic_models import model_info, models_page
from offgrid_llama.server.dialects.choice import dialect_of
from offgrid_llama.server.downloads import Download
from offgrid_llama.server.model_events import Subscription
from offgrid_llama.server.parts import admit, parts_of
from offgrid_llama.server.security import HELD
from offgrid_llama.server.streams import SIGN_OF_LIFE_SECONDS, EventStream, while_connected
from offgrid_llama.server.strict import Strict
from offgrid_llama.server.supervision.served_model import ServedModel
from offgrid_llama.server.supervision.specs import model_created

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)

ModelPath = Path(max_length=128, pattern=r"^[A-Za-z0-9._:/-]+$", description="The name of a model.")
Reload = Annotated[bool, Query(description="Look first which models the store's cache has by now.")]
_MODEL_NAME = {"min_length": 1, "max_length": 256, "description": "The name of a model."}
_SIGN_OF_LIFE = b": listening\n\n"
_DONE = {"success": True}


class ModelName(Strict):
    """A request about a model, which it names in its body."""

    model: Annotated[str, Field(**_MODEL_NAME)]


@router.get("/v1/models", tags=["models"], response_class=Response)
async def models(request: Request, reload: Reload = False) -> Response:
    """List the models, with their status, memory and requests, then their aliases, presets, and downloads.

    For clients of Anthropic's API, all but the downloads, in that one's shape.
    """
    if reload:
        await while_connected(request, parts_of(request).library.reload())
    found, presets = parts_of(request).supervisor.models.values(), parts_of(request).supervisor.presets
    described = [
        *map(_described, found),
        *(_described(each, alias) for each in found for alias in each.settings.aliases),
        *(_of_preset(each, preset.name) for each in found for preset in presets.of(each.settings)),
    ]
    if dialect_of(request.scope) is ANTHROPIC:
        return json_response(models_page(described, request.query_params))
    coming = [_downloading(each, name) for each in parts_of(request).library.downloads for name in each.names]
    return json_response({"object": "list", "data": [*described, *coming]})


@router.get("/v1/models/{model:path}", tags=["models"], response_class=Response)
async def model(request: Request, model: str = ModelPath) -> Response:
    """Describe one model."""
    parts = parts_of(request)
    if parts.supervisor.names.find(model) is None and (download := parts.library.downloads.find(model)) is not None:
        return json_response(_downloading(download, model))
    found = parts.supervisor.find(model)
    preset = parts.supervisor.presets.find(model)
    described = _described(found, model if model in found.settings.aliases else None)
    described = described if preset is None else _of_preset(found, preset.name)
    return json_response(model_info(described) if dialect_of(request.scope) is ANTHROPIC else described)


@router.post("/models/load/{model:path}", tags=["models"], response_class=Response)
async def load(request: Request, model: str = ModelPath) -> Response:
    """Load a model unless it is loaded, and describe it once it is ready."""
    parts = parts_of(request)
    found = parts.supervisor.find(model)
    admit(request, found.name)
    await while_connected(request, parts.supervisor.load(found))
    return json_response(_described(found))


@router.post("/models/unload/{model:path}", tags=["models"], response_class=Response)
async def unload(request: Request, model: str = ModelPath) -> Response:
    """Unload a model once its requests have ended, or cancel its download. The next request loads it again."""
    parts = parts_of(request)
    if parts.library.cancel(model):
        return json_response({"id": model, "object": "model", "status": "unloaded"})
    found = parts.supervisor.find(model)
    admit(request, found.name)
    await while_connected(request, parts.supervisor.unload(found))
    return json_response(_described(found))


@router.post("/models/load", tags=["models"], response_class=Response)
async def begin_load(body: ModelName, request: Request) -> Response:
    """Start to load a model, and answer at once, as llama-server's router does."""
    found = _named(request, body)
    if found.worker is not None or found.loading is not None:
        raise ApiError(400, f"{found.name} is {found.status} already", code="already_loaded", param="model")
    parts_of(request).supervisor.begin_load(found)
    return json_response(_DONE)


@router.post("/models/unload", tags=["models"], response_class=Response)
async def begin_unload(body: ModelName, request: Request) -> Response:
    """Start to unload a model once its requests have ended, or cancel its download, and answer at once."""
    parts = parts_of(request)
    if not parts.library.cancel(body.model):
        found = _named(request, body)
        if found.worker is None and found.loading is None:
            raise ApiError(400, f"{found.name} is not loaded", code="not_loaded", param="model")
        parts.supervisor.begin_unload(found)
    return json_response(_DONE)


@router.post("/models", tags=["models"], response_class=Response)
async def download(body: ModelName, request: Request) -> Response:
    """Start to download a model, and answer at once, if the settings allow that. Events tell how it goes on."""
    library = parts_of(request).library
    library.check_allowed("download")
    _refuse_while_stopping(request)
    library.download(body.model)
    return json_response(_DONE)


@router.delete("/models", tags=["models"], response_class=Response)
async def delete(request: Request, model: Annotated[str, Query(**_MODEL_NAME)]) -> Response:
    """Delete a model that was downloaded, or cancel its download, if the settings allow that."""
    parts = parts_of(request)
    parts.library.check_allowed("delete")
    if not parts.library.cancel(model):
        await parts.library.delete(parts.supervisor.find(model))
    return json_response(_DONE)


@router.get("/models/sse", tags=["models"], response_class=Response)
async def model_events(request: Request) -> Response:
    """Stream what happens to all models from now on, as llama-server's router tells it."""
    _refuse_while_stopping(request)
    events = parts_of(request).supervisor.events
    subscription = request.scope[HELD].enter_context(events.subscribed(request.scope["key"]))
    return EventStream(_told(subscription))


async def _told(subscription: Subscription) -> AsyncIterator[bytes]:
    """Yield events as they come, and a sign of life at the beginning and while there is none."""
    yield _SIGN_OF_LIFE
    while True:
        events = await subscription.next(SIGN_OF_LIFE_SECONDS)
        if events:
            yield b"".join(event.as_bytes for event in events)
        elif subscription.is_over:
            return
        else:
            yield _SIGN_OF_LIFE


def _named(request: Request, body: ModelName) -> ServedModel:
    """Return the model that a body names. Raises ApiError."""
    _refuse_while_stopping(request)
    found = parts_of(request).supervisor.find(body.model)
    request.scope[MODEL] = found.name
    return found


def _refuse_while_stopping(request: Request) -> None:
    """Raise ApiError where the server is stopping: what a request begins would outlast it."""
    if parts_of(request).admission.stopping:
        raise stopping()


@router.get("/health", tags=["server"], response_class=Response)
async def health(request: Request) -> Response:
    """Return 200 when all preloaded models are ready, and 503 while they load or the server stops."""
    parts = parts_of(request)
    if parts.admission.stopping:
        return json_response({"status": "stopping"}, 503)
    if parts.supervisor.ready:
        return json_response({"status": "ok"})
    loaded = {
        each.name: round(each.worker.fraction, 3)
        for each in parts.supervisor.models.values()
        if each.loading is not None and each.worker is not None
    }
    return json_response({"status": "loading", "loaded": loaded}, 503)


@router.get("/metrics", tags=["server"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format."""
    parts = parts_of(request)
    await parts.supervisor.refresh_stats()
    return Response(parts.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _described(model: ServedModel, alias: str | None = None) -> dict[str, Any]:
    """Return a model in OpenAI's shape, or one of its aliases, with further fields of this server."""
    worker = model.worker
    described: dict[str, Any] = {
        "id": model.name, "object": "model", "created": model_created(model.settings), "owned_by": "offgrid-llama",
        "status": model.status, "aliases": list(model.settings.aliases), "requests": model.n_users,
        "waiting": model.n_waiting, "has_projector": model.settings.projector is not None,
    }  # fmt: skip
    if worker is not None:
        described |= {"loaded": round(worker.fraction, 3), "memory_bytes": worker.rss_bytes, "meta": worker.info}
        described |= {"threads": worker.n_threads, "pid": worker.pid}
    if model.fetching is not None and model.fetching.progress is not None:
        done, total = model.fetching.progress
        described |= {"status": "downloading", "progress": {"done": done, "total": total}}
    if alias is not None:
        described |= {"id": alias, "alias_of": model.name}
    if model.error is not None:
        described["error"] = model.error.message
    return described


def _of_preset(model: ServedModel, name: str) -> dict[str, Any]:
    """Return a preset of a model in OpenAI's shape."""
    return {**_described(model), "id": name, "preset_of": model.name}


def _downloading(download: Download, name: str) -> dict[str, Any]:
    """Return a model that is being downloaded, in OpenAI's shape."""
    return {
        "id": name, "object": "model", "created": 0, "owned_by": "offgrid-llama", "status": "downloading",
        "progress": {"done": download.done, "total": download.total},
    }  # fmt: skip
