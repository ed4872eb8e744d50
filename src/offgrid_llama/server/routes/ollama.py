"""Ollama's routes that a model answers: conversations, texts and vectors."""

from __future__ import annotations

import asyncio
from time import monotonic

from fastapi import APIRouter, Request, Response

from offgrid_llama.server.access_log import MODEL
from offgrid_llama.server.answering import answer, call
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.bodies import AnyTypeRoute, aside, json_response
from offgrid_llama.server.dialects.ollama import embedded, loaded, read_generate, read_ollama_chat, vectors
from offgrid_llama.server.dialects.ollama_schemas import ChatBody, EmbedBody, EmbeddingsBody, GenerateBody
from offgrid_llama.server.parts import admit, parts_of
from offgrid_llama.server.streams import while_connected
from offgrid_llama.server.supervision.served_model import ServedModel

__all__ = ["find", "router"]

router = APIRouter(route_class=AnyTypeRoute)


@router.post("/api/chat", tags=["ollama"], response_class=Response)
async def chat(body: ChatBody, request: Request) -> Response:
    """Answer a conversation. Without messages, load or unload the model."""
    if not body.messages:
        return await _load_or_unload(request, body, "message")
    find(request, body.model)
    return await answer(request, await aside(request, read_ollama_chat, body))


@router.post("/api/generate", tags=["ollama"], response_class=Response)
async def generate(body: GenerateBody, request: Request) -> Response:
    """Answer a prompt, or complete it. Without a prompt, load or unload the model."""
    if not body.prompt and not body.suffix:
        return await _load_or_unload(request, body, "response")
    find(request, body.model)
    return await answer(request, await aside(request, read_generate, body))


@router.post("/api/embed", tags=["ollama"], response_class=Response)
async def embed(body: EmbedBody, request: Request) -> Response:
    """Return a vector of length 1 for each text. Without a text, load the model."""
    begin = monotonic()
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not any(texts):
        await _load(request, body)
        return json_response({"model": body.model, "embeddings": []})
    model = find(request, body.model)
    await while_connected(request, parts_of(request).supervisor.load(model))
    load_seconds = monotonic() - begin
    arguments = {"texts": texts, "truncate": body.truncate, "n_values": body.dimensions or None}
    _, found = await call(request, body.model, "embed", arguments, body.keep_alive)

    def written() -> Response:
        rows = vectors(found["data"], found["n_embd"])
        return json_response(embedded(body.model, rows, found["n_tokens"], load_seconds, monotonic() - begin))

    return await asyncio.to_thread(written)


@router.post("/api/embeddings", tags=["ollama"], response_class=Response)
async def embeddings(body: EmbeddingsBody, request: Request) -> Response:
    """Return the vector of a text. Without one, load the model."""
    if not body.prompt:
        await _load(request, body)
        return json_response({"embedding": []})
    find(request, body.model)
    _, found = await call(request, body.model, "embed", {"texts": [body.prompt], "truncate": True}, body.keep_alive)
    return json_response({"embedding": vectors(found["data"], found["n_embd"])[0]})


async def _load_or_unload(request: Request, body: ChatBody | GenerateBody, field: str) -> Response:
    """Load the model of a request that asks for nothing else, or unload it, for a ``keep_alive`` of 0."""
    if body.keep_alive != 0:
        await _load(request, body)
        return json_response(loaded(body.model, field, "load"))
    model = find(request, body.model)
    request.scope[MODEL] = model.name
    await while_connected(request, parts_of(request).supervisor.unload(model))
    return json_response(loaded(body.model, field, "unload"))


async def _load(request: Request, body: ChatBody | GenerateBody | EmbedBody | EmbeddingsBody) -> None:
    model = find(request, body.model)
    request.scope[MODEL] = model.name
    admit(request, model.name)
    await while_connected(request, parts_of(request).supervisor.load(model, body.keep_alive))


def find(request: Request, name: str, *, exactly: bool = False) -> ServedModel:
    """Return the model of a name, or with ``any_model`` the one that answers for it, unless ``exactly`` it is meant.

    Raises ApiError in Ollama's words, by which clients know that they may pull it.
    """
    supervisor = parts_of(request).supervisor
    try:
        return supervisor.find(name) if exactly else supervisor.find_to_answer(name)
    except ApiError as error:
        message = f'model "{name:.140}" not found, try pulling it first'
        raise ApiError(error.status, message, code=error.code, param=error.param) from None
