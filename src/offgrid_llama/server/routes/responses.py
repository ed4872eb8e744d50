"""OpenAI's Responses API: answers with state, which clients can come back for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Literal, cast

import msgspec
from fastapi import APIRouter, Path, Query, Request, Response

from offgrid_llama.server.access_log import MODEL
from offgrid_llama.server.answering import answer, call
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.bodies import StrictRoute, aside, json_response
from offgrid_llama.server.dialects.responses import Turn, read_input_tokens, read_response
from offgrid_llama.server.dialects.responses_items import input_items, new_response_id, references
from offgrid_llama.server.dialects.responses_schemas import ConversationFields, InputTokensRequest, ResponseRequest
from offgrid_llama.server.dialects.responses_writer import ResponsesWriter, replayed
from offgrid_llama.server.parts import parts_of
from offgrid_llama.server.stored_responses.pages import page_of
from offgrid_llama.server.stored_responses.record import Record
from offgrid_llama.server.stored_responses.stored_responses import not_found
from offgrid_llama.server.streams import EventStream

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)

ResponseId = Annotated[str, Path(max_length=128, pattern=r"^[A-Za-z0-9_-]+$", description="The id of a response.")]


@router.post("/v1/responses", tags=["responses"], response_class=Response)
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer a conversation, or go on with one that is kept."""
    turn = await _turn(body, request)
    asked = await aside(request, read_response, body, turn)
    if not body.stored:
        return await answer(request, asked)
    key, items = request.scope["key"], msgspec.json.encode(turn.input)
    parts = parts_of(request)
    if not body.background:

        async def keep(writer: ResponsesWriter) -> None:
            await parts.stored.put(key, writer.response(), items, writer.events)

        return await answer(request, asked, keep)
    model = parts.supervisor.find_to_answer(asked.model)
    request.scope[MODEL] = model.name
    writer = cast("ResponsesWriter", asked.writer(asked.model or model.name))
    queued = writer.response()
    run = await parts.background.start(key, model, asked, writer, items)
    return EventStream(run.events(-1)) if body.stream else json_response(queued)


@router.post("/v1/responses/input_tokens", tags=["responses"], response_class=Response)
async def count_input_tokens(body: InputTokensRequest, request: Request) -> Response:
    """Count the tokens of a conversation, without an answer."""
    asked = await aside(request, read_input_tokens, body, await _turn(body, request))
    _, n_tokens = await call(request, body.model, "count", {"conversation": msgspec.to_builtins(asked)})
    return json_response({"object": "response.input_tokens", "input_tokens": n_tokens})


@router.post("/v1/responses/compact", tags=["responses"], response_class=Response)
async def compact() -> Response:
    """Say that this server makes no summaries of conversations."""
    message = (
        "This server does not compact conversations: it has no model of its own that makes summaries. Ask a model for one "
        'with POST /v1/responses, or set "truncation": "auto", which leaves out the oldest items of one that is too long.'
    )
    raise ApiError(404, message, code="not_supported")


async def _turn(body: ConversationFields, request: Request) -> Turn:
    """Return what a request adds to a conversation, with the responses and items that it refers to."""
    stored, key, id_ = parts_of(request).stored, request.scope["key"], new_response_id()
    context = await stored.context(key, body.previous_response_id)
    known = {item["id"]: item for item in context}
    referenced = {each: known.get(each) or await stored.item(key, each) for each in references(body.input)}
    return Turn(id_, context, input_items(body.input, id_, referenced))


@router.get("/v1/responses/{response_id}", tags=["responses"], response_class=Response)
async def get_response(
    request: Request,
    response_id: ResponseId,
    stream: bool = False,
    starting_after: Annotated[int, Query(ge=-1, description="The number of the last event that the client has.")] = -1,
) -> Response:
    """Return a response, or with ``stream`` its events, also those that are still to come."""
    parts, key = parts_of(request), request.scope["key"]
    run = parts.background.find(key, response_id)
    if run is not None:
        return EventStream(run.events(starting_after)) if stream else json_response(run.writer.response())
    record = await parts.stored.get(key, response_id)
    if not stream:
        return Response(record.response, media_type="application/json")
    return EventStream(_once(await asyncio.to_thread(_events_after, record, starting_after)))


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _events_after(record: Record, number: int) -> bytes:
    """Return the events of a response behind one."""
    if record.events:
        return b"".join(record.streamed()[number + 1 :])
    return b"".join(replayed(msgspec.json.decode(record.response), number))


@router.delete("/v1/responses/{response_id}", tags=["responses"], response_class=Response)
async def delete_response(request: Request, response_id: ResponseId) -> Response:
    """Forget a response. One that is being generated ends."""
    parts, key = parts_of(request), request.scope["key"]
    run = parts.background.find(key, response_id)
    if run is not None:
        await parts.background.cancel(run)
    if not await parts.stored.delete(key, response_id):
        raise not_found(response_id)
    return json_response({"id": response_id, "object": "response", "deleted": True})


@router.post("/v1/responses/{response_id}/cancel", tags=["responses"], response_class=Response)
async def cancel_response(request: Request, response_id: ResponseId) -> Response:
    """End a response that is being generated in the background, and return it. One that is done stays as it is."""
    parts, key = parts_of(request), request.scope["key"]
    run = parts.background.find(key, response_id)
    if run is not None:
        await parts.background.cancel(run)
        return json_response(run.writer.response())
    record = await parts.stored.get(key, response_id)
    if not msgspec.json.decode(record.response)["background"]:
        message = "only responses with background true can be cancelled; to cancel another one, close its connection"
        raise ApiError(400, message, code="invalid_value")
    return Response(record.response, media_type="application/json")


@router.get("/v1/responses/{response_id}/input_items", tags=["responses"], response_class=Response)
async def list_input_items(
    request: Request,
    response_id: ResponseId,
    after: Annotated[
        str | None, Query(max_length=256, description="The id of the last item of the page before.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """List the items that a response answers: those of the responses before it, and its own."""
    stored, key = parts_of(request).stored, request.scope["key"]
    record = await stored.get(key, response_id)
    items = [*await stored.context(key, record.previous), *record.input_items()]
    listed = [{"status": "completed", **item} for item in (items if order == "asc" else items[::-1])]
    return json_response(page_of(listed, after, limit))
