"""create_app(): the server as an ASGI app, put together from its parts, routes and middleware."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import signature
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

import offgrid_llama

from .access_log import AccessLog
from .admission import Admission
from .background import Background
from .batches.batches import Batches
from .body_bytes import BodyBytes
from .handlers import add_exception_handlers
from .kept_streams import KeptStreams
from .library import Library
from .llama_server_cors import LlamaServerCors
from .metrics import Metrics
from .model_events import ModelEvents
from .parts import Parts
from .routes import (
    anthropic,
    batching,
    computing,
    generating,
    hearing,
    kept_streams,
    llama_server,
    llama_server_state,
    managing,
    ollama,
    ollama_models,
    page,
    predict,
    responses,
    speaking,
    stored_chats,
)
from .security import Guard
from .sending import Sending
from .settings import Settings
from .stored_responses.in_memory import InMemory
from .stored_responses.in_sqlite import InSqlite
from .stored_responses.record import Backend
from .stored_responses.stored_chats import StoredChats
from .stored_responses.stored_responses import StoredResponses
from .supervision.supervisor import Supervisor

__all__ = ["create_app"]

IN_MEMORY_BYTES, IN_FILE_BYTES = 64 * 2**20, 16 * 2**30
"""Bytes of all responses that are kept, where the settings do not say it."""


_PRIVATE_NETWORK: dict[str, Any] = (
    {"allow_private_network": True} if "allow_private_network" in signature(CORSMiddleware).parameters else {}
)
"""Browsers ask whether a page of the internet may reach this machine: that of an allowed origin may. Early Starlette has no
word for it."""


def create_app(settings: Settings | None = None, **given: Any) -> FastAPI:
    """Return the server as an ASGI app, for uvicorn or to be mounted in another app.

    Args:
        settings: of the server; None is ``Settings.load(**given)``, without a file.

    The app's lifespan starts the workers and ends them. ``app.state.server`` holds the server's Parts.

    Raises SettingsError, and OSError for a file of responses that cannot be used.
    """
    settings = settings or Settings.load(**given)
    supervisor = Supervisor(settings, events=ModelEvents(settings.share_of_one_key))
    admission = Admission(settings)
    body_bytes = BodyBytes(settings)
    metrics = Metrics(supervisor, admission)
    batches = Batches(Path(settings.batch_dir), settings, supervisor) if settings.batch_dir else None
    stored = StoredResponses(_backend(settings), settings.max_body_bytes)
    background = Background(supervisor, metrics, admission, body_bytes, stored)
    library = Library(settings, supervisor, admission)
    streams = KeptStreams(settings.max_streams_bytes, settings.share_of_one_key)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        library.offer_cached()
        supervisor.start()
        batching = asyncio.create_task(batches.run()) if batches is not None else None
        try:
            yield
        finally:
            admission.stopping = True
            if batches is not None and batching is not None:
                batching.cancel()
                await asyncio.gather(batching, return_exceptions=True)
                batches.close()
            await background.close()
            await library.close()
            await supervisor.close()
            supervisor.events.close()
            await streams.close()
            await stored.close()

    app = FastAPI(
        title="offgrid-llama", version=offgrid_llama.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url="/openapi.json", description="An OpenAI-compatible API for models of this machine.",
        separate_input_output_schemas=False,
    )  # fmt: skip
    app.state.server = Parts(
        settings,
        supervisor,
        admission,
        body_bytes,
        metrics,
        stored,
        StoredChats(stored.access),
        background,
        batches,
        library,
        streams,
    )
    _include_manner(app, settings)
    for routes in (
        generating, responses, hearing, speaking, kept_streams, anthropic, computing, managing, batching, llama_server,
        llama_server_state, stored_chats, ollama, ollama_models,
    ):  # fmt: skip
        app.include_router(routes.router)
    app.include_router(page.router() if settings.page else ollama_models.root)
    add_exception_handlers(app)
    # The middleware that is added last sees a request first.
    app.add_middleware(Guard, settings=settings, body_bytes=body_bytes)
    app.add_middleware(AccessLog, metrics=metrics)
    _add_cors(app, settings)
    app.add_middleware(Sending, write_seconds=settings.write_seconds)
    return app


def _include_manner(app: FastAPI, settings: Settings) -> None:
    """Add llama-server's routes in place of ours: the first route of a path is the one that answers."""
    if settings.llama_server is None:
        return
    for own in (llama_server, llama_server_state):
        app.include_router(own.manner)
    if settings.llama_server.gcp:
        app.include_router(predict.router)


def _add_cors(app: FastAPI, settings: Settings) -> None:
    """Let pages of the allowed origins use the server."""
    if settings.cors_origins and settings.llama_server is not None:
        app.add_middleware(LlamaServerCors, origins=settings.cors_origins)
    elif settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],  # clients of OpenAI send headers of their own; an allowed origin may send any
            # Clients wait for as long as Retry-After says, and tell of the id, where the browser shows them.
            expose_headers=["Retry-After", "request-id", "x-request-id"],
            **_PRIVATE_NETWORK,
        )  # fmt: skip


def _backend(settings: Settings) -> Backend:
    """Return where responses are kept."""
    max_bytes, max_seconds = settings.max_responses_bytes, 86400 * settings.responses_days
    if settings.responses_file is None:
        return InMemory(settings.max_responses, max_bytes or IN_MEMORY_BYTES, max_seconds)
    return InSqlite(Path(settings.responses_file), max_bytes or IN_FILE_BYTES, max_seconds)
