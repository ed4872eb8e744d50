"""A chat that a client asks a real server for."""

from __future__ import annotations

from typing import Any

import httpx

from helpers.serving import MODEL, Served

ASKED = [{"role": "user", "content": "Tell a long story about a harbour."}]
KEY, OTHER_KEY = "a-key-of-some-length", "another-key-of-some-length"


def body(**options: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": ASKED, "temperature": 0, "max_tokens": 200, **options}


def chat(served: Served, **options: Any) -> httpx.Response:
    return httpx.post(f"{served.url}/v1/chat/completions", json=body(**options), timeout=120)
