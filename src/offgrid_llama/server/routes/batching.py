"""OpenAI's routes for files and batches."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.batches.batches import Batches
from offgrid_llama.server.batches.files import FileRecord
from offgrid_llama.server.batches.lines import Endpoint
from offgrid_llama.server.bodies import StrictRoute, json_response
from offgrid_llama.server.parts import parts_of
from offgrid_llama.server.strict import Strict
from offgrid_llama.server.uploads import receive_form, the_file

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["batches"])

PIECE_BYTES = 2**20
PURPOSES = ("batch", "user_data", "evals", "assistants", "fine-tune", "vision")
Limit = Annotated[int, Query(ge=1, le=10_000)]
Text = Annotated[str, Field(max_length=512)]


class BatchRequest(Strict):
    """A request of ``/v1/batches``."""

    input_file_id: Annotated[str, Field(max_length=128)]
    endpoint: Endpoint
    completion_window: Annotated[str, Field(max_length=16)] = "24h"
    metadata: Annotated[dict[Annotated[str, Field(max_length=64)], Text], Field(max_length=16)] | None = None
    output_expires_after: dict[str, Any] | None = None


class _Listed(Protocol):
    id: str

    def as_dict(self) -> dict[str, Any]: ...


@router.post("/v1/files", response_class=Response)
async def upload(request: Request) -> Response:
    """Store a file: a form with the fields ``file`` and ``purpose``."""
    batches, settings = _batches(request), parts_of(request).settings
    form = await receive_form(request, settings.max_files_bytes, settings.body_seconds)
    try:
        purpose = form.get("purpose")
        if purpose not in PURPOSES:
            raise ApiError(400, f"purpose: must be one of {', '.join(PURPOSES)}", code="invalid_value", param="purpose")
        record = await _stored(batches, the_file(form), request.scope["key"], str(purpose))
    finally:
        await form.close()
    return json_response(record.as_dict())


async def _stored(batches: Batches, file: UploadFile, key: str, purpose: str) -> FileRecord:
    written = batches.files.begin()
    try:
        while data := await file.read(PIECE_BYTES):
            await asyncio.to_thread(batches.files.write, written, data)
        return await asyncio.to_thread(batches.files.finish, written, key, (file.filename or "file")[:512], purpose)
    except BaseException:
        batches.files.abandon(written)
        raise


@router.get("/v1/files", response_class=Response)
async def files(
    request: Request,
    purpose: str | None = None,
    limit: Limit = 10_000,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """List files."""
    found = [
        each
        for each in _batches(request).files.of_key(request.scope["key"])
        if purpose is None or each.purpose == purpose
    ]
    return _page(found if order == "desc" else found[::-1], limit, after)


@router.get("/v1/files/{file_id}", response_class=Response)
async def file(request: Request, file_id: str) -> Response:
    """Describe a file."""
    return json_response(_batches(request).files.get(file_id, request.scope["key"]).as_dict())


@router.delete("/v1/files/{file_id}", response_class=Response)
async def delete(request: Request, file_id: str) -> Response:
    """Delete a file."""
    _batches(request).files.delete(file_id, request.scope["key"])
    return json_response({"id": file_id, "object": "file", "deleted": True})


@router.get("/v1/files/{file_id}/content", response_class=Response)
async def content(request: Request, file_id: str) -> Response:
    """Return what a file has."""
    stored = _batches(request).files
    return FileResponse(stored.path(stored.get(file_id, request.scope["key"])), media_type="application/octet-stream")


@router.post("/v1/batches", response_class=Response)
async def create(body: BatchRequest, request: Request) -> Response:
    """Answer the requests of a file in the server's own time."""
    batches = _batches(request)
    record = await asyncio.to_thread(
        batches.create, request.scope["key"], body.input_file_id, body.endpoint, body.completion_window, body.metadata
    )
    batches.wake()
    return json_response(record.as_dict())


@router.get("/v1/batches", response_class=Response)
async def listed(request: Request, limit: Limit = 20, after: str | None = None) -> Response:
    """List batches."""
    return _page(_batches(request).of_key(request.scope["key"]), limit, after)


@router.get("/v1/batches/{batch_id}", response_class=Response)
async def batch(request: Request, batch_id: str) -> Response:
    """Describe a batch."""
    return json_response(_batches(request).get(batch_id, request.scope["key"]).as_dict())


@router.post("/v1/batches/{batch_id}/cancel", response_class=Response)
async def cancel(request: Request, batch_id: str) -> Response:
    """End a batch; what is answered by then is in its files."""
    return json_response(_batches(request).cancel(batch_id, request.scope["key"]).as_dict())


def _batches(request: Request) -> Batches:
    found = parts_of(request).batches
    if found is None:
        message = "this server takes no files and batches; its setting batch_dir, a folder, turns them on"
        raise ApiError(404, message, code="batches_are_off")
    return found


def _page(found: Sequence[_Listed], limit: int, after: str | None) -> Response:
    """Return a part of a list, from behind one of its members."""
    begin = next((at + 1 for at, each in enumerate(found) if each.id == after), 0)
    page = found[begin : begin + limit]
    return json_response({
        "object": "list", "data": [each.as_dict() for each in page], "has_more": len(found) > begin + limit,
        "first_id": page[0].id if page else None, "last_id": page[-1].id if page else None,
    })  # fmt: skip
