"""The dialect of a request, which decides the shape of its errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .anthropic import ANTHROPIC
from .dialect import Dialect
from .llama_server import LLAMA_SERVER
from .ollama import OLLAMA
from .openai import OPENAI

__all__ = ["dialect_of"]

_BY_PATH: dict[str, Dialect] = {
    "/v1/messages": ANTHROPIC, "/api/": OLLAMA,
    **dict.fromkeys((
        "/completion", "/chat/completions", "/audio/", "/infill", "/embedding", "/rerank", "/v1/reranking", "/props",
        "/slots", "/lora-adapters", "/v1/health",
    ), LLAMA_SERVER),
}  # fmt: skip
"""The dialects besides OpenAI's, by the beginning of their paths."""
_BY_HEADER: dict[bytes, Dialect] = {b"anthropic-version": ANTHROPIC}
"""The same for paths that several have, by a header that all requests of the dialect's clients have."""


def dialect_of(scope: Mapping[str, Any]) -> Dialect:
    """Return the dialect of a request, by its ASGI scope."""
    path = scope["path"].removeprefix(scope.get("root_path", ""))
    found = next((dialect for start, dialect in _BY_PATH.items() if path.startswith(start)), None)
    found = found or next((_BY_HEADER[name] for name, _ in scope.get("headers", ()) if name in _BY_HEADER), None)
    if found is not None:
        return found
    app = scope.get("app")
    in_manner = app is not None and app.state.server.settings.llama_server is not None
    return LLAMA_SERVER if in_manner else OPENAI
