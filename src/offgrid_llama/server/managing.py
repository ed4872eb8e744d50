"""Routes about the models and the server itself."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Path, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST

from .responses import json_response
from .specs import model_created
from .state import State
from .streams import while_connected
from .supervisor import Entry

__all__ = ["managing_routes"]

ModelPath = Path(max_length=128, pattern=r"^[A-Za-z0-9._:/-]+$", description="The name of a model.")


def managing_routes(state: State, route_class: type[APIRoute]) -> APIRouter:
    """Return the routes."""
    router = APIRouter(route_class=route_class)
    supervisor = state.supervisor

    @router.get("/v1/models", tags=["models"], response_class=Response)
    async def models() -> Response:
        """List what there is."""
        return json_response({"object": "list", "data": [_described(entry) for entry in supervisor.entries.values()]})

    @router.get("/v1/models/{model:path}", tags=["models"], response_class=Response)
    async def model(model: str = ModelPath) -> Response:
        """Tell of one."""
        return json_response(_described(supervisor.find(model)))

    @router.post("/models/load/{model:path}", tags=["models"], response_class=Response)
    async def load(request: Request, model: str = ModelPath) -> Response:
        """Load a model, if it is not, and tell of it when it is ready."""
        entry = supervisor.find(model)
        with state.admission.request(request.scope.get("key", "")):
            await while_connected(request, supervisor.load(entry))
        return json_response(_described(entry))

    @router.post("/models/unload/{model:path}", tags=["models"], response_class=Response)
    async def unload(request: Request, model: str = ModelPath) -> Response:
        """Unload a model once its requests have ended; the next one loads it again."""
        entry = supervisor.find(model)
        with state.admission.request(request.scope.get("key", "")):
            await while_connected(request, supervisor.unload(entry))
        return json_response(_described(entry))

    @router.get("/health", tags=["server"], response_class=Response)
    async def health() -> Response:
        """Tell whether the models that are to be there are: 200, or 503 while they are loaded."""
        if state.admission.stopping:
            return json_response({"status": "stopping"}, 503)
        if not supervisor.ready:
            shares = {
                entry.name: round(entry.worker.fraction, 3)
                for entry in supervisor.entries.values()
                if entry.loading is not None and entry.worker is not None
            }
            return json_response({"status": "loading", "loaded": shares}, 503)
        return json_response({"status": "ok"})

    @router.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Tell Prometheus."""
        await supervisor.refresh()
        return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _described(entry: Entry) -> dict[str, Any]:
    """Return a model in OpenAI's shape, with what else is known of it."""
    worker = entry.worker
    described: dict[str, Any] = {
        "id": entry.name, "object": "model", "created": model_created(entry.settings), "owned_by": "offgrid-llama",
        "status": entry.status, "aliases": list(entry.settings.aliases), "requests": entry.n_users,
        "waiting": entry.n_waiting,
    }  # fmt: skip
    if worker is not None:
        described |= {"loaded": round(worker.fraction, 3), "memory_bytes": worker.rss_bytes, "meta": worker.info}
        described |= {"threads": worker.n_threads, "pid": worker.pid}
    if entry.error is not None:
        described["error"] = entry.error.message
    return described
