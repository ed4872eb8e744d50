"""Lines of OpenAI's batch files: a request each, and a response each."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.dialect import Asked
from offgrid_llama.server.dialects.openai import read_chat, read_completion
from offgrid_llama.server.dialects.openai_schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from offgrid_llama.server.dialects.openai_vectors import AskedVectors, read_embedding
from offgrid_llama.server.dialects.responses import read_alone
from offgrid_llama.server.dialects.responses_schemas import ResponseRequest
from offgrid_llama.server.json_body import read_json
from offgrid_llama.server.validation import validated

__all__ = ["ENDPOINTS", "BatchLine", "Endpoint", "custom_id_of", "read_line", "response_line"]

MAX_ID_CHARACTERS = 512
MAX_DEPTH = 64

ENDPOINTS: dict[str, tuple[type[BaseModel], Callable[[Any], Asked | AskedVectors]]] = {
    "/v1/chat/completions": (ChatRequest, read_chat), "/v1/completions": (CompletionRequest, read_completion),
    "/v1/embeddings": (EmbeddingRequest, read_embedding), "/v1/responses": (ResponseRequest, read_alone),
}  # fmt: skip
"""The schema of a body, and what reads it, by the path of a line."""


Endpoint: TypeAlias = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]


class _Line(BaseModel):
    """A line, without a look at its body. Further names are as good as absent."""

    model_config = ConfigDict(extra="ignore")

    custom_id: Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARACTERS)]
    method: Literal["POST"] = "POST"
    url: Endpoint
    body: dict[str, Any]


@dataclass(frozen=True)
class BatchLine:
    """A request of a batch file.

    Attributes:
        custom_id: the name that its writer has given it, which is in the response.
        url: the path that it is for.
        body: of the request.
    """

    custom_id: str
    url: str
    body: dict[str, Any]

    def asked(self, ignore_unknown: bool = False) -> Asked | AskedVectors:
        """Return what the body asks for, not as a stream. Raises ApiError for a body that is not as the API has it."""
        schema, read = ENDPOINTS[self.url]
        body = {name: value for name, value in self.body.items() if name not in ("stream", "stream_options")}
        return read(validated(schema, body, {"ignore_unknown": ignore_unknown}))


def read_line(data: bytes, max_bytes: int) -> BatchLine:
    """Return the request of a line. Its body is looked at later. Raises ApiError for a line that has none.

    Args:
        data: the line.
        max_bytes: the size of the largest line.
    """
    if len(data) > max_bytes:
        raise ApiError(413, f"the line has {len(data):,} bytes; {max_bytes:,} are allowed", code="body_too_large")
    try:
        line = validated(_Line, read_json(data, MAX_DEPTH + 1, max_bytes), {})
    except ApiError as error:
        raise ApiError(error.status, error.message.replace("the body", "the line"), code=error.code) from error
    return BatchLine(line.custom_id, line.url, line.body)


def response_line(custom_id: str, status: int, body: Any) -> bytes:
    """Return the line that answers a request, with its end.

    Args:
        custom_id: of the request.
        status: the HTTP status of the response.
        body: of the response.
    """
    response = {"status_code": status, "request_id": f"req_{secrets.token_hex(12)}", "body": body}
    line = {"id": f"batch_req_{secrets.token_hex(12)}", "custom_id": custom_id, "response": response, "error": None}
    return msgspec.json.encode(line) + b"\n"


def custom_id_of(line: bytes) -> str | None:
    """Return the custom_id of a line that answers a request, or None where it is no such line."""
    try:
        return msgspec.json.decode(line, type=_Answer).custom_id
    except msgspec.DecodeError:
        return None


class _Answer(msgspec.Struct):
    custom_id: str
    response: dict[str, Any]
