"""Requests that may pass: hosts, keys, and sizes of bodies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from helpers.keys import KEYS
from offgrid_llama.server.body_bytes import BodyBytes
from offgrid_llama.server.security import Guard
from offgrid_llama.server.settings import Settings


async def through(settings: Settings, headers: dict[str, str], *, path: str = "/v1/models", method: str = "GET",
                  body: bytes = b"") -> tuple[int, dict[str, Any]]:  # fmt: skip
    """Return the status that a request gets behind the guard, and what the app has seen of it."""
    seen: dict[str, Any] = {}
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(key=scope["key"], body=(await receive())["body"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path,
             "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}  # fmt: skip
    await Guard(app, settings, BodyBytes(settings))(scope, receive, send)
    return sent[0]["status"], seen


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost", 200), ("LOCALHOST:11611", 200), ("127.0.0.1:1", 200), ("[::1]:11611", 200), ("[::1]", 200),
     ("evil.example", 403), ("localhost.evil.example", 403), ("localhost:80@evil.example", 403), ("", 403)],
)  # fmt: skip
def test_hosts(host: str, status: int) -> None:
    """Only names of this machine get through, with any port."""
    assert asyncio.run(through(Settings(), {"host": host}))[0] == status


def test_keys() -> None:
    """Each key opens, and nothing that resembles one; the app gets a digest of it."""
    settings = Settings(api_keys=KEYS)

    def status(shown: str | None, path: str = "/v1/models") -> int:
        headers = {"host": "localhost", **({} if shown is None else {"authorization": shown})}
        return asyncio.run(through(settings, headers, path=path))[0]

    assert [status(f"Bearer {key}") for key in KEYS] == [200, 200]
    for shown in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer the-first",
        f"Basic {KEYS[0]}",
        KEYS[0],
        "Bearer the-first-key2",
    ):
        assert status(shown) == 401
    assert status(None, "/health") == 200
    one, other = (
        asyncio.run(through(settings, {"host": "localhost", "authorization": f"Bearer {key}"}))[1]["key"]
        for key in KEYS
    )
    assert one != other
    assert not {one, other} & set(KEYS)


def test_the_header_of_anthropics_clients() -> None:
    """A key may be in x-api-key as well; of two that a client shows, one of which is for another server, one is enough."""
    settings = Settings(api_keys=KEYS)
    for shown, status in (
        ({"x-api-key": KEYS[0]}, 200), ({"x-api-key": "wrong"}, 401), ({"x-api-key": ""}, 401),
        ({"x-api-key": f"Bearer {KEYS[0]}"}, 401), ({"x-api-key": KEYS[1], "authorization": "Bearer wrong"}, 200),
        ({"x-api-key": "wrong", "authorization": f"Bearer {KEYS[1]}"}, 200),
        ({"x-api-key": "wrong", "authorization": f"Basic {KEYS[1]}"}, 401),
    ):  # fmt: skip
        assert asyncio.run(through(settings, {"host": "localhost", **shown}))[0] == status
    bearer, own = (
        asyncio.run(through(settings, {"host": "localhost", **shown}))[1]["key"]
        for shown in ({"authorization": f"Bearer {KEYS[0]}"}, {"x-api-key": KEYS[0]})
    )
    assert bearer == own


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200), ({"origin": "http://localhost:11611"}, 200), ({"origin": "https://localhost:11611"}, 200),
        ({"origin": "http://allowed.example:3000", "sec-fetch-site": "cross-site"}, 200),
        ({"sec-fetch-site": "same-origin"}, 200), ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://evil.example"}, 403), ({"origin": "null"}, 403), ({"origin": "http://localhost"}, 403),
        ({"origin": "http://localhost:3000"}, 403), ({"origin": "http://allowed.example"}, 403),
        ({"origin": "http://localhost:11611.evil.example"}, 403), ({"origin": "file://localhost:11611"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403), ({"sec-fetch-site": "same-site"}, 403),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS", "GET", "HEAD"])
def test_origins(headers: dict[str, str], status: int, method: str) -> None:
    """A page of another site changes nothing; what only reads is left to the browser."""
    settings = Settings(cors_origins=["http://allowed.example:3000"])
    given = {"host": "localhost:11611", **headers}
    path = "/models/unload/a"
    found = asyncio.run(through(settings, given, method=method, path=path))[0]
    assert found == (200 if method in ("GET", "HEAD") else status)
    anyone = Settings(cors_origins=["*"])
    assert asyncio.run(through(anyone, given, method=method, path=path))[0] == 200


@pytest.mark.parametrize(("origin", "host"), [("https://a.example", "a.example"), ("http://a.example:80", "a.example"),
                                              ("https://a.example", "a.example:443")])  # fmt: skip
def test_default_ports(origin: str, host: str) -> None:
    """An origin is the server's own with and without the default port of its scheme."""
    settings = Settings(allowed_hosts=["a.example"])
    assert asyncio.run(through(settings, {"host": host, "origin": origin}, method="POST"))[0] == 200


def test_one_key_is_no_tenant() -> None:
    """Clients are told apart by their keys where there are several; with one key or none, all are the same."""

    def keys_seen(keys: list[str]) -> set[str]:
        settings = Settings(api_keys=keys)
        shown = [{"host": "localhost", "authorization": f"Bearer {key}"} for key in keys or ["any"]]
        return {asyncio.run(through(settings, headers))[1]["key"] for headers in shown}

    assert keys_seen([]) == keys_seen(KEYS[:1]) == {""}
    assert len(keys_seen(KEYS) - {""}) == 2
