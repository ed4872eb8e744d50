"""OpenAI's chat completions that are kept: listed, read, changed, deleted."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from offgrid_llama.server.bodies import StrictRoute, json_response
from offgrid_llama.server.dialects.openai_schemas import MetadataRequest
from offgrid_llama.server.dialects.stored_chat import stored_messages
from offgrid_llama.server.parts import parts_of
from offgrid_llama.server.stored_responses.pages import page_of

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["generate"])

ChatId = Annotated[str, Path(max_length=128, pattern=r"^[A-Za-z0-9_-]+$", description="The id of a chat completion.")]
After = Annotated[str | None, Query(max_length=256, description="The id of the last one of the page before.")]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]

_METADATA = re.compile(r"^metadata\[(.{1,64})\]$", re.DOTALL)


@router.get("/v1/chat/completions", response_class=Response)
async def list_chats(
    request: Request, after: After = None, limit: Limit = 20, order: Order = "asc", model: str | None = None
) -> Response:
    """List the chat completions that are kept, those of a model, and those with ``metadata[NAME]=VALUE``."""
    wanted = {found[1]: value for name, value in request.query_params.items() if (found := _METADATA.match(name))}
    chats = parts_of(request).chats
    return json_response(await chats.page(request.scope["key"], after, limit, order, model, wanted))


@router.get("/v1/chat/completions/{completion_id}", response_class=Response)
async def get_chat(request: Request, completion_id: ChatId) -> Response:
    """Return a chat completion."""
    record = await parts_of(request).chats.get(request.scope["key"], completion_id)
    return Response(record.response, media_type="application/json")


@router.post("/v1/chat/completions/{completion_id}", response_class=Response)
async def change_chat(body: MetadataRequest, request: Request, completion_id: ChatId) -> Response:
    """Set the metadata of a chat completion."""
    chats = parts_of(request).chats
    changed = await chats.set_metadata(request.scope["key"], completion_id, body.metadata or {})
    return Response(changed, media_type="application/json")


@router.delete("/v1/chat/completions/{completion_id}", response_class=Response)
async def delete_chat(request: Request, completion_id: ChatId) -> Response:
    """Forget a chat completion."""
    await parts_of(request).chats.delete(request.scope["key"], completion_id)
    return json_response({"id": completion_id, "object": "chat.completion.deleted", "deleted": True})


@router.get("/v1/chat/completions/{completion_id}/messages", response_class=Response)
async def list_messages(
    request: Request, completion_id: ChatId, after: After = None, limit: Limit = 20, order: Order = "asc"
) -> Response:
    """List the messages that a chat completion answers."""
    record = await parts_of(request).chats.get(request.scope["key"], completion_id)
    messages = stored_messages(completion_id, msgspec.json.decode(record.input))
    return json_response(page_of(messages if order == "asc" else messages[::-1], after, limit))
