"""An engine in FastAPI's lifespan: one model for all requests, streamed answers, and no work for clients that have left.

uvicorn --app-dir docs/recipes fastapi_app:app
curl -N 127.0.0.1:8000/ask -H 'Content-Type: application/json' -d '{"question": "What is 2+2?"}'
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

import offgrid_llama as og


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Load the model when the app starts, and free it when the app ends."""
    async with og.Engine("smollm2-135m-instruct") as engine:
        app.state.engine = engine
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    """What a client asks."""

    question: str
    max_tokens: int = Field(256, ge=1, le=1000)


@app.post("/ask")
async def ask(asked: Question, request: Request) -> StreamingResponse:
    """Stream the answer. When the client disconnects, Starlette ends the generator, and the block cancels the request."""
    engine: og.Engine = request.app.state.engine
    messages = [{"role": "user", "content": asked.question}]
    try:
        completion = engine.chat(messages, max_tokens=asked.max_tokens)
    except og.ContextLengthError as error:
        raise HTTPException(413, str(error)) from error
    except og.QueueFullError as error:
        raise HTTPException(503, str(error)) from error

    async def text() -> AsyncIterator[str]:
        with completion:
            async for delta in completion:
                yield delta.content

    return StreamingResponse(text(), media_type="text/plain")


@app.get("/load")
async def load(request: Request) -> dict[str, Any]:
    """Return what the engine does at this moment."""
    stats = request.app.state.engine.stats()
    return {"running": stats.n_running, "waiting": stats.n_waiting, "finished": stats.finished}
