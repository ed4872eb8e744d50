"""Anthropic's routes: messages, and the tokens of their prompts."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from offgrid_llama.server.answering import answer, call
from offgrid_llama.server.bodies import StrictRoute, aside, json_response
from offgrid_llama.server.dialects.anthropic import count_body, read_message
from offgrid_llama.server.dialects.anthropic_options import conversation
from offgrid_llama.server.dialects.anthropic_schemas import CountRequest, MessageRequest
from offgrid_llama.server.security import REQUEST_ID

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/messages", tags=["generate"], response_class=Response)
async def messages(body: MessageRequest, request: Request) -> Response:
    """Answer a conversation, in Anthropic's API."""
    return await answer(request, await aside(request, read_message, body, request.scope[REQUEST_ID]))


@router.post("/v1/messages/count_tokens", tags=["tokens"], response_class=Response)
async def count_tokens(body: CountRequest, request: Request) -> Response:
    """Return the tokens of a conversation's prompt, in Anthropic's API."""
    asked = await aside(request, lambda: msgspec.to_builtins(conversation(body)))
    _, n_tokens = await call(request, body.model, "count", {"conversation": asked})
    return json_response(count_body(body, n_tokens))
