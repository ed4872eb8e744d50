"""llama-server's routes about the server: its properties, slots, adapters, models, health and metrics."""

from __future__ import annotations

from pathlib import Path as File
from time import time
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from offgrid_llama.server.answering import call
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.bodies import StrictRoute, json_response
from offgrid_llama.server.dialects.further_schemas import MAX_ADAPTERS, Adapter
from offgrid_llama.server.dialects.llama_server_openai import BUILD_INFO
from offgrid_llama.server.dialects.llama_server_options import generation_settings, model_of
from offgrid_llama.server.dialects.llama_server_schemas import SlotFile
from offgrid_llama.server.downloads import Download
from offgrid_llama.server.json_body import read_json
from offgrid_llama.server.llama_server import LlamaServer
from offgrid_llama.server.parts import parts_of
from offgrid_llama.server.streams import while_connected
from offgrid_llama.server.supervision.served_model import ServedModel
from offgrid_llama.server.supervision.specs import model_created
from offgrid_llama.server.validation import validated

__all__ = ["manner", "router"]

router = APIRouter(route_class=StrictRoute)
manner = APIRouter(route_class=StrictRoute)
"""Routes of ours that llama-server answers otherwise; they come first where the server is in its manner."""

ModelName = Query(None, max_length=256, description="The name of a model; without one, the first.")
Reload = Annotated[bool, Query(description="Look first which models the store's cache has by now.")]
_MAX_ADAPTERS_BYTES = 64 * 1024


def _server(request: Request) -> LlamaServer | None:
    return parts_of(request).settings.llama_server


def _found(request: Request, name: str | None) -> ServedModel:
    return parts_of(request).supervisor.find_to_answer(model_of({"model": name}, _server(request)))


@router.get("/props", tags=["llama-server"], response_class=Response)
async def props(request: Request, model: str | None = ModelName) -> Response:
    """Return the properties of a model, and the settings of requests that set none. It wakes no model that sleeps."""
    found, server = _found(request, model), _server(request)
    if found.props is None:  # they do not change, and a call would count as a use of the model
        _, found.props = await call(request, found.name, "props", {})
    told, settings = found.props, found.settings
    preset = parts_of(request).supervisor.presets.find(model)
    params = generation_settings(told["params"], {}, server) if "params" in told else {}
    return json_response(
        {
            "default_generation_settings": {"params": params, "n_ctx": told["n_ctx"]},
            "total_slots": settings.n_parallel,
            "model_alias": found.name,
            "model_path": server.model_path if server is not None else (settings.model or settings.name),
            "modalities": told.get("modalities", {"vision": False, "audio": False}),
            "endpoint_slots": server is None or server.slots,
            "endpoint_props": server is not None and server.props,
            "endpoint_metrics": server is None or server.metrics,
            "chat_template": (preset and preset.template) or told["chat_template"],
            "chat_template_caps": {},
            "bos_token": told["bos_token"],
            "eos_token": told["eos_token"],
            "build_info": BUILD_INFO,
            "is_sleeping": not found.ready and found.loading is None,
        }
    )


@router.post("/props", tags=["llama-server"], response_class=Response)
async def change_props(request: Request) -> Response:
    """Change the properties, of which there is none that can be changed."""
    server = _server(request)
    if server is None or not server.props:
        raise _off(server, "This server does not support changing global properties. Start it with `--props`")
    return json_response({"success": True})


@router.get("/slots", tags=["llama-server"], response_class=Response)
async def slots(request: Request, model: str | None = ModelName, fail_on_no_slot: bool = False) -> Response:
    """Return what the slots of a model do."""
    server = _server(request)
    if server is not None and not server.slots:
        raise ApiError(
            501, "This server does not support slots endpoint. Start it with `--slots`", code="not_supported"
        )
    found = _found(request, model)
    _, views = await call(request, found.name, "slots", {})
    if fail_on_no_slot and all(view["running"] for view in views):
        raise ApiError(503, "no slot available", code="no_slot")
    n_ctx = (found.worker.info.get("n_ctx") if found.worker is not None else None) or 0
    return json_response([_slot(view, n_ctx) for view in views])


def _slot(view: dict[str, Any], n_ctx: int) -> dict[str, Any]:
    running = view["running"]
    return {
        "id": view["seq_id"], "n_ctx": n_ctx, "speculative": False, "is_processing": running, "id_task": -1,
        "n_prompt_tokens": view["n_prompt"] if running else view["n_tokens"],
        "n_prompt_tokens_processed": min(view["n_tokens"], view["n_prompt"]), "n_prompt_tokens_cache": view["n_cached"],
        "next_token": [
            {
                "has_next_token": running, "has_new_line": False, "n_decoded": view["n_generated"],
                "n_remain": view["max_tokens"] - view["n_generated"] if running else -1,
            }
        ],
    }  # fmt: skip


@router.post("/slots/{id_slot}", tags=["llama-server"], response_class=Response)
async def change_slot(
    request: Request,
    id_slot: int = Path(ge=0, le=255),
    action: str = Query("", max_length=16),
    model: str | None = ModelName,
) -> Response:
    """Save what a slot holds to a file, restore it from there, or erase it."""
    found = _found(request, model)
    if action == "erase":
        _, moved = await call(request, found.name, "erase_slot", {"seq_id": id_slot})
        return json_response({"id_slot": id_slot, "n_erased": moved["n_tokens"]})
    if action not in ("save", "restore"):
        raise ApiError(400, "Invalid action", code="invalid_value", param="action")
    file = await _file(request)
    _, moved = await call(request, found.name, f"{action}_slot", {"seq_id": id_slot, "path": str(file)})
    tokens, n_bytes = ("n_saved", "n_written") if action == "save" else ("n_restored", "n_read")
    return json_response(
        {
            "id_slot": id_slot, "filename": file.name, tokens: moved["n_tokens"], n_bytes: moved["n_bytes"],
            "timings": {f"{action}_ms": 1e3 * moved["seconds"]},
        }
    )  # fmt: skip


def _off(server: LlamaServer | None, message: str) -> ApiError:
    """Return the error of what only llama-server's flags turn on. Without them, 501 would be a failure of this server."""
    if server is not None:
        return ApiError(501, message, code="not_supported")
    return ApiError(403, f"{message}, as offgrid-llama llama-server", code="not_supported")


async def _file(request: Request) -> File:
    """Return the file that a request names, in the folder of the slots. Raises ApiError."""
    server, settings = _server(request), parts_of(request).settings
    folder = None if server is None else server.slot_save_path
    if folder is None:
        raise _off(server, "This server does not support slots action. Start it with `--slot-save-path`")
    value = read_json(await _body(request), settings.max_json_depth, settings.max_body_bytes)
    return File(folder) / validated(SlotFile, value, {"ignore_unknown": True}).filename


async def _body(request: Request) -> bytes:
    """Return a small body. Raises ApiError for one that is larger."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_ADAPTERS_BYTES:
            raise ApiError(413, "the body is too large", code="body_too_large", headers={"Connection": "close"})
    return bytes(body)


@router.get("/lora-adapters", tags=["llama-server"], response_class=Response)
async def adapters(request: Request, model: str | None = ModelName) -> Response:
    """Return the adapters of a model, and their scales for requests that set none."""
    _, found = await call(request, _found(request, model).name, "loras", {})
    return json_response([_adapter(number, each) for number, each in enumerate(found)])


@router.post("/lora-adapters", tags=["llama-server"], response_class=Response)
async def change_adapters(request: Request, model: str | None = ModelName) -> Response:
    """Set the scales of the adapters; those left out are not used."""
    settings = parts_of(request).settings
    value = read_json(await _body(request), settings.max_json_depth, settings.max_body_bytes)
    if not isinstance(value, list) or len(value) > MAX_ADAPTERS:
        raise ApiError(400, "Request body must be an array", code="invalid_value")
    given = [validated(Adapter, each, {"ignore_unknown": True}) for each in value]
    scales = {each.id: each.scale for each in given}
    await call(request, _found(request, model).name, "set_loras", {"scales": scales})
    return json_response({"success": True})


def _adapter(number: int, told: dict[str, Any]) -> dict[str, Any]:
    late = {"string": told["invocation_text"], "tokens": told["invocation_tokens"]} if told["invocation_tokens"] else {}
    return {
        "id": number, "path": File(told["path"]).name, "scale": told["scale"], "task_name": "", "prompt_prefix": "",
        **{f"alora_invocation_{name}": value for name, value in late.items()},
    }  # fmt: skip


@router.get("/v1/health", tags=["llama-server"], response_class=Response)
@manner.get("/health", tags=["llama-server"], response_class=Response)
async def health(request: Request) -> Response:
    """Return 200 when the model is ready or asleep, and 503 while it loads."""
    supervisor = parts_of(request).supervisor
    asleep = bool(parts_of(request).settings.idle_seconds) and all(
        each.props is not None or each.n_bytes is not None for each in supervisor.models.values()
    )
    if supervisor.ready or asleep:
        return json_response({"status": "ok"})
    raise ApiError(503, "Loading model", code="loading")


@router.get("/models", tags=["llama-server"], response_class=Response)
@manner.get("/v1/models", tags=["llama-server"], response_class=Response)
async def models(request: Request, reload: Reload = False) -> Response:
    """List the models, as llama-server does, with their presets and those that are being downloaded."""
    server, library, supervisor = _server(request), parts_of(request).library, parts_of(request).supervisor
    if reload:
        await while_connected(request, library.reload())
    found = list(supervisor.models.values())
    described = [_described(each, server, library.can_delete(each)) for each in found]
    presets = [
        {**told, "id": preset.name, "preset_of": each.name, "aliases": [preset.name]}
        for each, told in zip(found, described, strict=True)
        for preset in supervisor.presets.of(each.settings)
    ]
    coming = [_downloading(each, name) for each in library.downloads for name in each.names]
    return json_response(
        {
            "object": "list",
            "data": [*described, *presets, *coming],
            "models": [
                {"name": each.name, "model": each.name, "type": "model", "capabilities": _capabilities(server)}
                for each in found
            ],
        }
    )


def _capabilities(server: LlamaServer | None) -> list[str]:
    return ["embedding"] if server is not None and server.embeddings else ["completion"]


def _downloading(download: Download, name: str) -> dict[str, Any]:
    status = {"value": "downloading", "progress": download.progress}
    return {"id": name, "object": "model", "created": int(time()), "owned_by": "llamacpp", "status": status}


def _described(model: ServedModel, server: LlamaServer | None, can_remove: bool) -> dict[str, Any]:
    info = {} if model.worker is None else model.worker.info
    names, told = [model.name, *model.settings.aliases], model.told
    status = {"value": told.pop("status"), **{name: value for name, value in told.items() if name != "info"}}
    return {
        "id": model.name, "object": "model", "created": model_created(model.settings) or int(time()), "owned_by": "llamacpp",
        "status": status, "can_remove": can_remove, "aliases": names,
        "tags": list(server.tags) if server is not None else [],
        "meta": {name: info.get(name) for name in ("n_vocab", "n_ctx_train", "n_embd", "n_params", "size")},
    }  # fmt: skip


@manner.get("/metrics", tags=["llama-server"], response_class=Response)
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus' text format, llama-server's among them."""
    parts, server = parts_of(request), _server(request)
    if server is not None and not server.metrics:
        message = "This server does not support metrics endpoint. Start it with `--metrics`"
        raise ApiError(501, message, code="not_supported")
    await parts.supervisor.refresh_stats()
    response = Response(parts.metrics.text(), media_type=CONTENT_TYPE_LATEST)
    response.raw_headers.append((b"Process-Start-Time-Unix", str(int(parts.metrics.started)).encode()))
    return response
