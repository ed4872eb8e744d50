"""Vertex AI's route, ``/predict``: several conversations in one request, each as its own instance."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from offgrid_llama.server.answering import answer
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.bodies import StrictRoute, aside, json_response
from offgrid_llama.server.dialects.llama_server_openai import read_chat
from offgrid_llama.server.dialects.llama_server_schemas import ChatCompletionRequest, PredictRequest
from offgrid_llama.server.parts import parts_of
from offgrid_llama.server.validation import validated

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)

_FORMAT = "@requestFormat"


@router.post("/predict", tags=["llama-server"], response_class=Response)
async def predict(body: PredictRequest, request: Request) -> Response:
    """Answer each instance, which is a conversation."""
    server = parts_of(request).settings.llama_server
    found: list[Any] = []
    for instance in body.instances:
        if instance.get(_FORMAT) != "chatCompletions" or instance.get("stream"):
            message = f"instances: each must have {_FORMAT} chatCompletions, and must not be streamed"
            raise ApiError(400, message, code="invalid_value", param="instances")
        asked = {name: value for name, value in instance.items() if name != _FORMAT}
        chat = validated(ChatCompletionRequest, asked, {"ignore_unknown": True})
        response = await answer(request, await aside(request, read_chat, chat, server))
        found.append(msgspec.json.decode(bytes(response.body)))
    return json_response({"predictions": found})
