"""OpenAI's routes for sounds: transcriptions and translations."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from offgrid_llama.server.answering import answer
from offgrid_llama.server.dialects.openai_audio import read_form, read_sound
from offgrid_llama.server.parts import parts_of
from offgrid_llama.server.security import HELD
from offgrid_llama.server.uploads import receive_form, the_file

__all__ = ["router"]

router = APIRouter(tags=["generate"])


@router.post("/v1/audio/transcriptions", response_class=Response)
@router.post("/audio/transcriptions", response_class=Response, include_in_schema=False)
async def transcriptions(request: Request) -> Response:
    """Write what is said in a sound: a form with the field ``file``, and those of SoundForm."""
    return await _heard(request, translate=False)


@router.post("/v1/audio/translations", response_class=Response)
@router.post("/audio/translations", response_class=Response, include_in_schema=False)
async def translations(request: Request) -> Response:
    """Write in English what is said in a sound; the same form."""
    return await _heard(request, translate=True)


async def _heard(request: Request, *, translate: bool) -> Response:
    parts = parts_of(request)
    settings = parts.settings
    most = min(settings.max_audio_bytes, parts.body_bytes.max_of_one_key)
    form = await receive_form(request, most, settings.body_seconds)
    try:
        fields = read_form(form.multi_items(), settings.ignore_unknown)
        file = the_file(form)
        hold = request.scope[HELD].enter_context(parts.body_bytes.holding(request.scope["key"]))
        hold(file.size or 0)
        sound = await file.read()
    finally:
        await form.close()
    return await answer(request, read_sound(fields, sound, translate=translate))
