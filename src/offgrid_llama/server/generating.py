"""Routes that generate: chat and text completions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from time import monotonic
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from ..worker.frames import Answered, Generate, Part
from .answers import Answer, ChatAnswer, TextAnswer
from .errors import ApiError
from .metrics import Metrics
from .responses import json_response
from .schemas import ChatRequest, CompletionRequest
from .state import State
from .streams import EventStream, while_connected
from .supervisor import Entry, fingerprint

__all__ = ["generating_routes"]

_DONE = b"data: [DONE]\n\n"


def generating_routes(state: State, route_class: type[APIRoute]) -> APIRouter:
    """Return the routes."""
    router = APIRouter(route_class=route_class)

    @router.post("/v1/chat/completions", tags=["generate"], response_class=Response)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await _answer(state, request, body, "chat", ChatAnswer)

    @router.post("/v1/completions", tags=["generate"], response_class=Response)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Complete one prompt or several, or with ``suffix`` fill in what is between."""
        return await _answer(state, request, body, "text", TextAnswer)

    return router


async def _answer(
    state: State, request: Request, body: ChatRequest | CompletionRequest, kind: str, shape: type[Answer]
) -> Response:
    entry = state.supervisor.find(body.model)
    request.scope["offgrid_llama.model"] = entry.name
    said = body.said()
    for name in ("model", "stream", "stream_options", "best_of"):
        said.pop(name, None)
    key = request.scope.get("key", "")
    stream = bool(body.stream)
    answer = shape(body.model or entry.name)
    frames = state.supervisor.ask(
        entry, lambda id_: Generate(id_, kind, stream, said, key), fingerprint(entry.name, [kind, said])
    )
    asked = monotonic()
    if not stream:
        with state.admission.request(key):
            return await while_connected(request, _whole(state, entry, frames, answer))  # type: ignore[no-any-return]
    usage = body.stream_options is not None and body.stream_options.include_usage
    n = (body.n or 1) if kind == "chat" else 0
    events = _events(state, entry, frames, answer, asked, key, n=n, usage=usage)
    first = await while_connected(request, anext(events))  # what has failed before it is an error of HTTP
    return EventStream(_after(first, events), state.settings.write_seconds)


async def _whole(state: State, entry: Entry, frames: AsyncIterator[Any], answer: Answer) -> Response:
    async with aclosing(frames) as found:  # type: ignore[type-var]
        async for frame in found:
            if isinstance(frame, Answered):
                _count(state.metrics, entry, frame)
                if frame.seconds is not None:
                    state.metrics.first_token.labels(entry.name).observe(frame.seconds)
                return json_response(answer.whole(frame))
    raise ApiError(500, "there was no answer", code="internal_error")


async def _events(
    state: State,
    entry: Entry,
    frames: AsyncIterator[Any],
    answer: Answer,
    asked: float,
    key: str,
    *,
    n: int,
    usage: bool,
) -> AsyncIterator[bytes]:
    """Yield the events of a stream; once something was sent, an error is one of them, and the last."""
    metrics = state.metrics
    first_token, between = metrics.first_token.labels(entry.name), metrics.between_tokens.labels(entry.name)
    last: float | None = None
    with state.admission.request(key):
        async with aclosing(frames) as found:  # type: ignore[type-var]
            try:
                async for frame in found:
                    if isinstance(frame, Part):
                        now = monotonic()
                        if last is None:
                            first_token.observe(now - asked)
                            yield answer.begin(n) + answer.events([frame])
                        else:
                            between.observe(now - last)
                            yield answer.events([frame])
                        last = now
                    elif isinstance(frame, Answered):
                        _count(metrics, entry, frame)
                        yield (answer.usage_event(frame) if usage else b"") + _DONE
            except ApiError as error:
                if last is None:
                    raise
                yield b"data: " + error.body() + b"\n\n"


async def _after(first: bytes, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async with aclosing(events) as rest:  # type: ignore[type-var]
        yield first
        async for data in rest:
            yield data


def _count(metrics: Metrics, entry: Entry, answered: Answered) -> None:
    usage = answered.usage
    for kind, n in (("prompt", usage.prompt), ("cached", usage.cached), ("completion", usage.completion)):
        metrics.tokens.labels(entry.name, kind).inc(n)
