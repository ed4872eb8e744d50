"""OpenAI's routes that generate: chat and text completions."""

from __future__ import annotations

from functools import partial

import msgspec
from fastapi import APIRouter, Request, Response

from offgrid_llama.server.answering import answer
from offgrid_llama.server.bodies import StrictRoute, aside
from offgrid_llama.server.dialects.openai import read_chat, read_completion
from offgrid_llama.server.dialects.openai_schemas import ChatRequest, CompletionRequest
from offgrid_llama.server.dialects.stored_chat import StoredChatWriter
from offgrid_llama.server.parts import parts_of

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/chat/completions", tags=["generate"], response_class=Response)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation, and keep the answer if the client wants that."""
    if not body.store:
        return await answer(request, await aside(request, read_chat, body))
    asked = await aside(request, read_chat, body, partial(StoredChatWriter, metadata=body.metadata or {}))
    messages = await aside(request, lambda: msgspec.json.encode(body.said()["messages"]))
    key, chats = request.scope["key"], parts_of(request).chats

    async def keep(writer: StoredChatWriter) -> None:
        if writer.stored is not None:
            await chats.put(key, writer.stored, messages)

    return await answer(request, asked, keep)


@router.post("/v1/completions", tags=["generate"], response_class=Response)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Complete one prompt or several. With ``suffix``, fill in the text between."""
    return await answer(request, await aside(request, read_completion, body))
