"""llama-server's routes that generate or compute: completions, chat, infill, embeddings, ranks."""

from __future__ import annotations

import asyncio
from array import array
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from offgrid_llama.server.answering import answer, call
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.bodies import StrictRoute, aside, json_response
from offgrid_llama.server.dialects.llama_server import read_completion, read_infill
from offgrid_llama.server.dialects.llama_server_openai import conversation_of, read_chat, read_text
from offgrid_llama.server.dialects.llama_server_options import model_of, prompts
from offgrid_llama.server.dialects.llama_server_schemas import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingRequest,
    InfillRequest,
    RerankRequest,
)
from offgrid_llama.server.llama_server import LlamaServer
from offgrid_llama.server.parts import parts_of

__all__ = ["manner", "router"]

router = APIRouter(route_class=StrictRoute)
"""Routes that no other API has."""
manner = APIRouter(route_class=StrictRoute)
"""OpenAI's routes as llama-server answers them; they come first where the server is in its manner."""


def _server(request: Request) -> LlamaServer | None:
    return parts_of(request).settings.llama_server


@router.post("/completion", tags=["llama-server"], response_class=Response)
@router.post("/completions", tags=["llama-server"], response_class=Response)
async def completion(body: CompletionRequest, request: Request) -> Response:
    """Complete prompts, as llama-server does."""
    _refuse_other_tasks(request)
    return await answer(request, await aside(request, read_completion, body, _server(request)))


@router.post("/infill", tags=["llama-server"], response_class=Response)
async def infill(body: InfillRequest, request: Request) -> Response:
    """Fill in the text between a prefix and a suffix."""
    _refuse_other_tasks(request)
    return await answer(request, await aside(request, read_infill, body, _server(request)))


@router.post("/chat/completions", tags=["llama-server"], response_class=Response)
@manner.post("/v1/chat/completions", tags=["llama-server"], response_class=Response)
async def chat_completions(body: ChatCompletionRequest, request: Request) -> Response:
    """Answer a conversation, as llama-server does."""
    _refuse_other_tasks(request)
    return await answer(request, await aside(request, read_chat, body, _server(request)))


@manner.post("/v1/completions", tags=["llama-server"], response_class=Response)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """Complete prompts in OpenAI's shape, as llama-server does."""
    _refuse_other_tasks(request)
    return await answer(request, await aside(request, read_text, body, _server(request)))


@router.post("/chat/completions/input_tokens", tags=["llama-server"], response_class=Response)
@router.post("/v1/chat/completions/input_tokens", tags=["llama-server"], response_class=Response)
async def input_tokens(body: ChatCompletionRequest, request: Request) -> Response:
    """Return how many tokens the prompt of a conversation has."""
    said, server = await aside(request, body.said), _server(request)
    asked = await aside(request, lambda: msgspec.to_builtins(conversation_of(said, server)))
    _, found = await call(request, model_of({"model": body.model}, server), "count", {"conversation": asked})
    return json_response({"input_tokens": found})


@manner.post("/apply-template", tags=["llama-server"], response_class=Response)
async def apply_template(body: ChatCompletionRequest, request: Request) -> Response:
    """Return the prompt of a conversation, as text."""
    what = await aside(request, lambda: conversation_of(body.said(), _server(request)))
    _, found = await call(
        request,
        model_of({"model": body.model}, _server(request)),
        "template",
        {"conversation": msgspec.to_builtins(what)},
    )
    return json_response({"prompt": found})


@router.post("/embedding", tags=["llama-server"], response_class=Response)
@router.post("/embeddings", tags=["llama-server"], response_class=Response)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Return vectors in llama-server's shape: of each text, or with the pooling "none" of each of its tokens."""
    found, texts, _ = await _embedded(body, request)
    return await asyncio.to_thread(_vectors_response, found, len(texts))


@manner.post("/v1/embeddings", tags=["llama-server"], response_class=Response)
async def openai_embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Return vectors in OpenAI's shape."""
    server = _server(request)
    if server is not None and server.pooling == "none":
        message = "Pooling type 'none' is not OAI compatible. Please use a different pooling type"
        raise ApiError(400, message, code="invalid_value", param="input")
    found, _, model = await _embedded(body, request)
    return await asyncio.to_thread(_openai_vectors_response, found, model, body.encoding_format == "base64")


async def _embedded(body: EmbeddingRequest, request: Request) -> tuple[dict[str, Any], list[Any], str]:
    """Return what a worker has computed of a request's texts, these texts, and the model's name. Raises ApiError."""
    server = _server(request)
    if server is not None and not server.embeddings:
        message = "This server does not support embeddings. Start it with `--embeddings`"
        raise ApiError(501, message, code="not_supported")
    texts, _ = prompts(body.input)
    pooling = None if server is None else server.pooling
    normalize = body.embd_normalize != -1 and pooling != "none"
    if body.embd_normalize not in (None, -1, 2):
        message = "embd_normalize: only -1, none, and 2, the Euclidean norm, are supported"
        raise ApiError(400, message, code="invalid_value", param="embd_normalize")
    arguments = {"texts": texts, "pooling": pooling, "normalize": normalize}
    model, found = await call(request, model_of({"model": body.model}, server), "embed", arguments)
    parts_of(request).metrics.llama_server.count_pooled(found["n_tokens"])
    return found, texts, model.name


@router.post("/rerank", tags=["llama-server"], response_class=Response)
@router.post("/reranking", tags=["llama-server"], response_class=Response)
@router.post("/v1/reranking", tags=["llama-server"], response_class=Response)
@manner.post("/v1/rerank", tags=["llama-server"], response_class=Response)
async def rerank(body: RerankRequest, request: Request) -> Response:
    """Return the scores of documents for a query, best first: in Jina's shape, or with ``texts`` in TEI's."""
    server = _server(request)
    if server is not None and not server.reranking:
        message = "This server does not support reranking. Start it with `--reranking`"
        raise ApiError(501, message, code="not_supported")
    documents = body.documents or body.texts
    if documents is None:
        raise ApiError(400, '"documents" must be a list of strings', code="invalid_value", param="documents")
    arguments = {"query": body.query, "documents": documents, "top_n": body.top_n}
    model, found = await call(request, model_of({"model": body.model}, server), "rerank", arguments)
    ranks = _ranks(body, documents, found)
    return json_response(ranks if body.texts is not None else {"object": "list", "model": model.name, "results": ranks})


def _ranks(body: RerankRequest, documents: list[str], found: list[list[float]]) -> list[dict[str, Any]]:
    """Return each document's score, in the shape of the request, with its text if the request asks for it."""
    name = "relevance_score" if body.texts is None else "score"
    ranks: list[dict[str, Any]] = [{"index": int(i), name: score} for i, score in found]
    if body.texts is not None and body.return_text:
        return [{**rank, "text": documents[rank["index"]]} for rank in ranks]
    if body.texts is None and body.return_documents:
        return [{**rank, "document": {"text": documents[rank["index"]]}} for rank in ranks]
    return ranks


def _refuse_other_tasks(request: Request) -> None:
    """Raise ApiError where the server only computes embeddings or ranks, as llama-server does then."""
    server = _server(request)
    if server is not None and (server.embeddings or server.reranking):
        raise ApiError(
            501, "This server does not support completions. Start it without `--embeddings`", code="not_supported"
        )


def _rows(found: dict[str, Any]) -> list[bytes]:
    data, size = found["data"], 4 * found["n_embd"]
    return [data[at : at + size] for at in range(0, len(data), size)]


def _vectors_response(found: dict[str, Any], n_texts: int) -> Response:
    rows = iter(_rows(found))
    vectors = [[array("f", next(rows)).tolist() for _ in range(n)] for n in found["n_vectors"]]
    return json_response([{"index": i, "embedding": vectors[i]} for i in range(n_texts)])


def _openai_vectors_response(found: dict[str, Any], model: str, as_base64: bool) -> Response:
    usage = {"prompt_tokens": found["n_tokens"], "total_tokens": found["n_tokens"]}
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": i, "embedding": row if as_base64 else array("f", row).tolist()}
        for i, row in enumerate(_rows(found))
    ]  # msgspec writes bytes as base64
    if as_base64:
        data = [{**each, "encoding_format": "base64"} for each in data]
    return json_response({"model": model, "object": "list", "usage": usage, "data": data})
