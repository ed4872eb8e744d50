"""Routes that compute without generating: vectors, ranks, tokens, prompts."""

from __future__ import annotations

import base64
from array import array
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from ..worker.frames import Call
from .errors import ApiError
from .responses import json_response
from .schemas import (
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    TemplateRequest,
    TokenizeRequest,
)
from .state import State
from .streams import while_connected
from .supervisor import Entry, fingerprint

__all__ = ["computing_routes"]


def computing_routes(state: State, route_class: type[APIRoute]) -> APIRouter:
    """Return the routes."""
    router = APIRouter(route_class=route_class)
    supervisor = state.supervisor

    async def call(request: Request, model: str | None, what: str, arguments: dict[str, Any]) -> tuple[Entry, Any]:
        """Return what a worker has given for a Call."""
        entry = supervisor.find(model)
        request.scope["offgrid_llama.model"] = entry.name

        async def result() -> Any:
            frames = supervisor.ask(
                entry, lambda id_: Call(id_, what, arguments), fingerprint(entry.name, [what, arguments])
            )
            async for frame in frames:
                return frame.value
            raise ApiError(500, "there was no answer", code="internal_error")

        with state.admission.request(request.scope.get("key", "")):
            return entry, await while_connected(request, result())

    @router.post("/v1/embeddings", tags=["vectors"], response_class=Response)
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        """Make vectors of texts, each of length 1."""
        texts = [body.input] if isinstance(body.input, str) or isinstance(body.input[0], int) else body.input
        entry, found = await call(request, body.model, "embed", {"texts": texts})
        n_embd, data = found["n_embd"], found["data"]
        if body.dimensions not in (None, n_embd):
            raise ApiError(
                400, f"dimensions: the vectors of {entry.name} have {n_embd} values, and no other number",
                code="invalid_value", param="dimensions",
            )  # fmt: skip
        rows = [data[at : at + 4 * n_embd] for at in range(0, len(data), 4 * n_embd)]
        as_text = body.encoding_format == "base64"
        vectors = [base64.b64encode(row).decode() if as_text else array("f", row).tolist() for row in rows]
        usage = {"prompt_tokens": found["n_tokens"], "total_tokens": found["n_tokens"]}
        return json_response(
            {
                "object": "list", "model": body.model or entry.name, "usage": usage,
                "data": [{"object": "embedding", "index": i, "embedding": each} for i, each in enumerate(vectors)],
            }
        )  # fmt: skip

    @router.post("/v1/rerank", tags=["vectors"], response_class=Response)
    async def rerank(body: RerankRequest, request: Request) -> Response:
        """Score documents for a query, best first."""
        arguments = {"query": body.query, "documents": body.documents, "top_n": body.top_n}
        entry, found = await call(request, body.model, "rerank", arguments)
        results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": score} for i, score in found]
        if body.return_documents:
            for each in results:
                each["document"] = {"text": body.documents[each["index"]]}
        return json_response({"object": "list", "model": body.model or entry.name, "results": results})

    @router.post("/tokenize", tags=["tokens"], response_class=Response)
    async def tokenize(body: TokenizeRequest, request: Request) -> Response:
        """Turn a text into token ids."""
        arguments = {
            "text": body.content, "add_special": body.add_special, "parse_special": body.parse_special,
            "with_pieces": body.with_pieces,
        }  # fmt: skip
        _, found = await call(request, body.model, "tokenize", arguments)
        if found["pieces"] is None:
            return json_response({"tokens": found["tokens"]})
        pieces = [
            {"id": id_, "piece": _piece(piece)} for id_, piece in zip(found["tokens"], found["pieces"], strict=True)
        ]
        return json_response({"tokens": pieces})

    @router.post("/detokenize", tags=["tokens"], response_class=Response)
    async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
        """Turn token ids into a text."""
        _, found = await call(request, body.model, "detokenize", {"tokens": body.tokens})
        return json_response({"content": found})

    @router.post("/apply-template", tags=["tokens"], response_class=Response)
    async def apply_template(body: TemplateRequest, request: Request) -> Response:
        """Make the prompt of a conversation, as text."""
        said = body.said()
        said.pop("model", None)
        _, found = await call(request, body.model, "template", {"request": said})
        return json_response({"prompt": found})

    return router


def _piece(piece: bytes) -> str | list[int]:
    """Return a token's text, or its bytes where they are no text."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
