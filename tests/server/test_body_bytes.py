"""Limits of the bytes of bodies."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import Response

from helpers.apps import answer, listening
from helpers.keys import KEYS
from helpers.serving import head, wait_until
from offgrid_llama.server import create_app
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.body_bytes import BodyBytes
from offgrid_llama.server.settings import Settings


def test_how_many_bytes() -> None:
    """One key cannot fill all the room; what a request holds is room again when it ends, also when it was refused."""
    held = BodyBytes(Settings(max_held_body_bytes=2048, max_body_bytes=1024, api_keys=KEYS))
    with held.holding("a") as one:
        one(1024)
        with held.holding("a") as other, pytest.raises(ApiError) as of_key:
            other(1)
        assert of_key.value.status == 429
        with held.holding("b") as other, held.holding("c") as third:
            other(600)
            other(424)
            with pytest.raises(ApiError) as full:
                third(1)
            assert full.value.status == 503
            assert int(full.value.headers["Retry-After"]) >= 1
            assert held.n == 2048
        assert held.n == 1024
    assert held.n == 0


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_room_for_one_body(share: float) -> None:
    """A body of the largest size has room, with any other settings."""
    held = BodyBytes(Settings(max_held_body_bytes=1024, max_body_bytes=5000, max_queue_share=share, api_keys=KEYS))
    with held.holding("a") as hold:
        hold(5000)


def test_bodies_that_lack_their_end() -> None:
    """Bodies that do not come to their end are counted: further ones are refused, until the first ones have gone."""
    size = 256 * 1024
    with listening(max_held_body_bytes=2 * size, max_body_bytes=size) as served:
        body = b" " * (size - 8)
        slow = [served.connect() for _ in range(2)]
        for client in slow:
            client.sendall(head("/tokenize", size) + body)
        held = served.server.config.app.state.server.body_bytes  # type: ignore[union-attr]
        wait_until(lambda: held.n == 2 * len(body))
        with served.connect() as late:
            late.sendall(head("/tokenize", 1000) + b"x" * 100)
            told = answer(late)
        assert told.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in told.lower()
        for client in slow:
            client.close()
        wait_until(lambda: held.n == 0)
        found = httpx.post(f"{served.url}/tokenize", json={"content": "a"}, timeout=10)
        assert found.json()["error"]["code"] == "model_not_found"


def test_large_answers_count() -> None:
    """While a large answer waits for its client, there is less room for bodies; the answer itself is not refused."""
    app = create_app(models=[], max_held_body_bytes=2**20, max_body_bytes=2**20)
    held = app.state.server.body_bytes
    app.add_api_route("/large", lambda: Response(b"x" * 2**20))
    seen: list[int] = []

    async def send(message: Any) -> None:
        if message.get("body"):
            seen.append(held.n)
            with pytest.raises(ApiError), held.holding("a") as hold:
                hold(1)

    async def receive() -> Any:
        return await asyncio.Future()

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/large",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(app(scope, receive, send))
    assert (seen, held.n) == ([2**20], 0)
