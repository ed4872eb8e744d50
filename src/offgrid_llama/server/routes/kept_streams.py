"""Streams that clients come back for, as llama-server has them."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from offgrid_llama.server.access_log import MODEL
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.bodies import StrictRoute, json_response
from offgrid_llama.server.kept_streams import MAX_ID_CHARACTERS, offset_lost, status_of
from offgrid_llama.server.parts import parts_of
from offgrid_llama.server.streams import EventStream, while_connected
from offgrid_llama.server.strict import Strict

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)

MAX_IDS = 1024
MAX_OFFSET = 10**15 - 1
_OFFSET = re.compile(r"[0-9]{1,15}")

ConversationId = Annotated[str, Query(min_length=1, max_length=MAX_ID_CHARACTERS, description="The id of the POST.")]


class StreamIds(Strict):
    """The streams that a client asks about."""

    conversation_ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARACTERS)]], Field(max_length=MAX_IDS)
    ]


@router.get("/v1/stream", tags=["streams"], response_class=Response)
async def read_stream(
    request: Request,
    conv_id: ConversationId,
    start: Annotated[int, Query(alias="from", ge=0, le=MAX_OFFSET, description="An offset in bytes.")] = 0,
) -> Response:
    """Give a stream from an offset on, or from behind the event of ``Last-Event-ID``: what is kept, and then what comes."""
    stream = parts_of(request).streams.find(request.scope["key"], conv_id)
    request.scope[MODEL] = stream.model
    last = request.headers.get("last-event-id", "").strip()
    if last and not _OFFSET.fullmatch(last):
        raise ApiError(400, "Last-Event-ID: it is no id of this stream", code="invalid_value", param="Last-Event-ID")
    at = int(last) if last else start
    await while_connected(request, stream.begun())
    if at < stream.first:
        raise offset_lost(stream.first)
    if at > stream.size:
        message = f"the stream has {stream.size} bytes so far"
        raise ApiError(400, message, code="invalid_value", param="Last-Event-ID" if last else "from")
    if last and stream.is_over and at == stream.size:
        return Response(status_code=204)  # which tells an EventSource of a browser not to come again
    return EventStream(stream.read(at), stream.media_type)


@router.post("/v1/streams/lookup", tags=["streams"], response_class=Response)
async def look_up_streams(body: StreamIds, request: Request) -> Response:
    """Tell which of some streams are kept, and how far they are."""
    found = parts_of(request).streams.matching(request.scope["key"], body.conversation_ids)
    return json_response([status_of(stream) for stream in found])


@router.delete("/v1/stream", tags=["streams"], response_class=Response)
async def stop_stream(request: Request, conv_id: ConversationId) -> Response:
    """End a stream, and forget it. There need not be one."""
    parts_of(request).streams.stop(request.scope["key"], conv_id)
    return Response(status_code=204)
