"""OpenAI's route for speech."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from offgrid_llama.server.answering import answer
from offgrid_llama.server.bodies import StrictRoute
from offgrid_llama.server.dialects.openai_speech import SpeechRequest, read_speech

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute, tags=["generate"])


@router.post("/v1/audio/speech", response_class=Response)
@router.post("/audio/speech", response_class=Response, include_in_schema=False)
async def speech(body: SpeechRequest, request: Request) -> Response:
    """Speak a text: as a WAV file, as samples, or as events."""
    return await answer(request, read_speech(body))
