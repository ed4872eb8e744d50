"""Routes that compute without generating: embeddings, ranks, tokens, prompts."""

from __future__ import annotations

import asyncio
from array import array
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from offgrid_llama.server.answering import call
from offgrid_llama.server.bodies import StrictRoute, aside, json_response
from offgrid_llama.server.dialects.openai_options import conversation
from offgrid_llama.server.dialects.openai_schemas import (
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    TemplateRequest,
    TokenizeInputRequest,
    TokenizeRequest,
)
from offgrid_llama.server.dialects.openai_vectors import read_embedding
from offgrid_llama.server.parts import parts_of

__all__ = ["router"]

router = APIRouter(route_class=StrictRoute)


@router.post("/v1/embeddings", tags=["vectors"], response_class=Response)
async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
    """Return the embedding of each text, a vector of length 1."""
    asked = await aside(request, read_embedding, body)
    settings = parts_of(request).supervisor.find_to_answer(asked.model).settings
    model, found = await call(request, asked.model, "embed", asked.arguments(settings.matryoshka))
    return await asyncio.to_thread(lambda: json_response(asked.body(found, model.name)))


@router.post("/v1/rerank", tags=["vectors"], response_class=Response)
async def rerank(body: RerankRequest, request: Request) -> Response:
    """Return the scores of documents for a query, best first."""
    arguments = {"query": body.query, "documents": body.documents, "top_n": body.top_n}
    model, found = await call(request, body.model, "rerank", arguments)
    results: list[dict[str, Any]] = [{"index": int(i), "relevance_score": score} for i, score in found]
    if body.return_documents:
        for result in results:
            result["document"] = {"text": body.documents[result["index"]]}
    return json_response({"object": "list", "model": body.model or model.name, "results": results})


@router.post("/tokenize", tags=["tokens"], response_class=Response)
async def tokenize(body: TokenizeRequest, request: Request) -> Response:
    """Return the token ids of a text, as llama-server or vLLM does."""
    if body.prompt is not None:
        return await _tokenize_for_vllm(body, request)
    arguments = {
        "text": body.content, "add_special": body.add_special, "parse_special": body.parse_special,
        "with_pieces": body.with_pieces,
    }  # fmt: skip
    _, found = await call(request, body.model, "tokenize", arguments)
    return await asyncio.to_thread(_tokens_response, found["tokens"], found["pieces"])


async def _tokenize_for_vllm(body: TokenizeRequest, request: Request) -> Response:
    arguments = {
        "text": body.prompt, "add_special": body.add_special_tokens, "parse_special": True,
        "with_pieces": body.return_token_strs,
    }  # fmt: skip
    model, found = await call(request, body.model, "tokenize_prompt", arguments)
    n_ctx = model.worker.info.get("n_ctx") if model.worker is not None else None
    return await asyncio.to_thread(_vllm_tokens_response, found["tokens"], found["pieces"], n_ctx)


@router.post("/detokenize", tags=["tokens"], response_class=Response)
async def detokenize(body: DetokenizeRequest, request: Request) -> Response:
    """Return the text of token ids."""
    _, found = await call(request, body.model, "detokenize", {"tokens": body.tokens})
    return json_response({"content": found, "prompt": found})


@router.post("/extras/tokenize", tags=["tokens"], response_class=Response)
async def tokenize_input(body: TokenizeInputRequest, request: Request) -> Response:
    """Return the token ids of a text with its special tokens, as llama-cpp-python's server does."""
    return await asyncio.to_thread(_tokens_response, await _tokens_of_input(body, request), None)


@router.post("/extras/tokenize/count", tags=["tokens"], response_class=Response)
async def count_input(body: TokenizeInputRequest, request: Request) -> Response:
    """Return how many token ids that are."""
    return json_response({"count": len(array("i", await _tokens_of_input(body, request)))})


async def _tokens_of_input(body: TokenizeInputRequest, request: Request) -> bytes:
    arguments = {"text": body.input, "add_special": True, "parse_special": True, "with_pieces": False}
    _, found = await call(request, body.model, "tokenize_input", arguments)
    tokens: bytes = found["tokens"]
    return tokens


@router.post("/extras/detokenize", tags=["tokens"], response_class=Response)
async def join_pieces(body: DetokenizeRequest, request: Request) -> Response:
    """Return the text of token ids without that of control tokens, as llama-cpp-python's server does."""
    _, found = await call(request, body.model, "join_pieces", {"tokens": body.tokens})
    return json_response({"text": found})


@router.get("/tokenizer_info", tags=["tokens"], response_class=Response)
async def tokenizer_info(request: Request, model: Annotated[str | None, Query(max_length=256)] = None) -> Response:
    """Return what vLLM tells of a tokenizer: the texts of its special tokens, and the chat template."""
    found, told = await call(request, model, "props", {})
    return json_response(
        {
            "tokenizer_class": "GGUF", "model_max_length": told["n_ctx"], "bos_token": told["bos_token"] or None,
            "eos_token": told["eos_token"] or None, "chat_template": told["chat_template"] or None,
            "name_or_path": found.name,
        }
    )  # fmt: skip


@router.post("/apply-template", tags=["tokens"], response_class=Response)
async def apply_template(body: TemplateRequest, request: Request) -> Response:
    """Return the prompt of a conversation, as text."""
    asked = await aside(request, lambda: msgspec.to_builtins(conversation(body.said())))
    _, found = await call(request, body.model, "template", {"conversation": asked})
    return json_response({"prompt": found})


def _tokens_response(data: bytes, pieces: dict[int, bytes] | None) -> Response:
    """Return tokens as JSON, with their pieces unless None. Each different token is written once."""
    tokens = array("i", data)
    if pieces is None:
        return json_response({"tokens": tokens.tolist()})
    written = {token: msgspec.json.encode({"id": token, "piece": _piece(piece)}) for token, piece in pieces.items()}
    body = b'{"tokens":[' + b",".join([written[token] for token in tokens]) + b"]}"
    return Response(body, media_type="application/json")


def _vllm_tokens_response(data: bytes, pieces: dict[int, bytes] | None, n_ctx: int | None) -> Response:
    tokens = array("i", data).tolist()
    texts = None if pieces is None else [pieces[token].decode(errors="replace") for token in tokens]
    return json_response({"count": len(tokens), "max_model_len": n_ctx, "tokens": tokens, "token_strs": texts})


def _piece(piece: bytes) -> str | list[int]:
    """Return the text of a token, or its bytes where they are not UTF-8."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
