"""Answering: a request that a dialect has read, from admission to the last byte of its response; and calls of workers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from dataclasses import replace
from typing import Any

import msgspec
from fastapi import Request, Response

from offgrid_llama.worker.frames import Call
from offgrid_llama.worker.generation import Conversation

from .access_log import MODEL
from .api_error import ApiError
from .bodies import json_response
from .dialects.dialect import Asked, Writer
from .generation import Generation
from .kept_streams import MAX_ID_CHARACTERS, KeptStream
from .parts import admit, parts_of
from .picture_urls import with_pictures
from .streams import EventStream, kept_alive, while_connected
from .supervision.served_model import ServedModel
from .supervision.suspects import fingerprint

__all__ = ["answer", "call"]

CONVERSATION_ID = "X-Conversation-Id"
"""The header of a request whose stream goes on without its client."""


async def answer(request: Request, asked: Asked, keep: Callable[[Any], Awaitable[None]] | None = None) -> Response:
    """Return the response to a request that generates. Raises ApiError, before the first event of a stream.

    Args:
        request: of the client.
        asked: what it asks for.
        keep: is given the writer when the response is complete, before its end is sent; it may raise ApiError.
    """
    parts = parts_of(request)
    model = parts.supervisor.find_to_answer(asked.model)
    request.scope[MODEL] = model.name
    writer = asked.writer(asked.model or model.name)
    generation = Generation(
        parts.supervisor, parts.metrics, model, writer, request.scope["key"],
        None if keep is None else lambda: keep(writer),
    )  # fmt: skip
    id_ = request.headers.get(CONVERSATION_ID, "").strip()
    if asked.stream and id_ and parts.streams.are_kept:
        asked = await while_connected(request, _with_pictures(request, asked))
        return await _answer_kept(request, asked, model, writer, generation, id_)
    admit(request, model.name, asked.n_completions)
    asked = await while_connected(request, _with_pictures(request, asked))
    frames = generation.ask(asked)
    if not asked.stream:
        body = await while_connected(request, generation.whole(frames))
        if isinstance(body, (str, bytes)):
            return Response(body, media_type="text/plain" if isinstance(body, str) else writer.media_type)
        return json_response(body)
    events = _events(generation, frames, writer)
    first = await while_connected(request, anext(events))  # an error before the first event is one of HTTP
    return EventStream(_after(first, events), writer.media_type)


async def _answer_kept(
    request: Request, asked: Asked, model: ServedModel, writer: Writer, generation: Generation, id_: str
) -> Response:
    """Return the response to a request whose stream goes on without its client. Raises ApiError, as ``answer`` does."""
    if len(id_) > MAX_ID_CHARACTERS:
        message = f"{CONVERSATION_ID}: it may have {MAX_ID_CHARACTERS} characters"
        raise ApiError(400, message, code="invalid_value", param=CONVERSATION_ID)
    parts, key = parts_of(request), request.scope["key"]
    stream = KeptStream(key, id_, model.name, writer.media_type)
    with ExitStack() as held:
        held.enter_context(parts.admission.request(key, model.name, asked.n_completions))
        hold = held.enter_context(parts.body_bytes.holding(key))
        hold(len(msgspec.json.encode(asked.what)))
        parts.streams.start(stream, _events(generation, generation.ask(asked), writer), held.pop_all())
    await while_connected(request, stream.begun())
    return EventStream(stream.read(0), writer.media_type)


async def _with_pictures(request: Request, asked: Asked) -> Asked:
    return replace(asked, what=await with_pictures(asked.what, parts_of(request).settings.image_hosts))


def _events(generation: Generation, frames: AsyncIterator[Any], writer: Writer) -> AsyncIterator[bytes]:
    events = generation.events(frames)
    return kept_alive(events, writer.sign_of_life, writer.failed) if writer.sign_of_life else events


async def call(
    request: Request, name: str | None, what: str, arguments: dict[str, Any], keep_alive: float | None = None
) -> tuple[ServedModel, Any]:
    """Return the model that a request names, and what its worker returns for a Call. Raises ApiError.

    From then on the model stays loaded for ``keep_alive`` seconds while nothing uses it; None leaves that as it is.
    """
    supervisor = parts_of(request).supervisor
    model = supervisor.find_to_answer(name)
    request.scope[MODEL] = model.name
    key = request.scope["key"]
    conversation: Conversation | None = None
    if "conversation" in arguments:
        conversation = supervisor.presets.applied(name, msgspec.convert(arguments["conversation"], Conversation))

    async def result() -> Any:
        if conversation is not None:
            told = await with_pictures(conversation, parts_of(request).settings.image_hosts)
            arguments["conversation"] = told
        frames = supervisor.ask(
            model, lambda id_: Call(id_, what, arguments, key), fingerprint(model.name, [what, arguments]), keep_alive
        )
        async for frame in frames:
            return frame.value
        raise ApiError(500, "the worker sent no result", code="internal_error")

    admit(request, model.name)
    return model, await while_connected(request, result())


async def _after(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(events) as rest:  # type: ignore[type-var]
        yield first
        async for data in rest:
            yield data
