"""Requests to a real server, by OpenAI's own client and by plain HTTP."""

from __future__ import annotations

from typing import Any

import httpx

from helpers.serving import Served

ASKED: list[Any] = [{"role": "user", "content": "What is 2+2?"}]


def post(server: Served, path: str, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=240, **options)
