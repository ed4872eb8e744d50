"""Streams that clients come back for, over HTTP, with a real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from helpers.apps import ask
from helpers.requests import ASKED, post
from helpers.serving import MODEL, Served, wait_until
from offgrid_llama.server import create_app

LONG = {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "max_tokens": 120,
    "temperature": 0,
    "stream": True,
}
ENDLESS = {"prompt": "Once upon a time", "max_tokens": 6000, "ignore_eos": True, "stream": True}


def kept(id_: str) -> dict[str, str]:
    return {"X-Conversation-Id": id_}


def some(server: Served, path: str, body: dict[str, Any], id_: str, n: int) -> bytes:
    """Return the first ``n`` bytes of a stream, whose client leaves then."""
    options: Any = {"json": {"model": MODEL, **body}, "headers": kept(id_), "timeout": 60}
    with httpx.stream("POST", f"{server.url}{path}", **options) as response:
        assert response.status_code == 200
        return next(response.iter_raw(n))


def rest(server: Served, id_: str, **options: Any) -> httpx.Response:
    params = {"conv_id": id_, **options.pop("params", {})}
    return httpx.get(f"{server.url}/v1/stream", params=params, timeout=60, **options)


def texts(events: bytes) -> Iterator[str]:
    for line in events.split(b"\n"):
        if line.startswith(b"data: {"):
            for choice in msgspec.json.decode(line[6:])["choices"]:
                yield choice["delta"].get("content") or ""


def n_running(server: Served) -> float:
    return server.metric("offgrid_llama_requests_active")


def test_a_client_that_comes_back(server: Served) -> None:
    """Its answer has gone on: with what it got before it left, it is the answer of a client that has stayed."""
    expected = post(server, "/v1/chat/completions", {"model": MODEL, **LONG}).content
    assert b"id: " not in expected
    id_ = f"back::{MODEL}"
    first = some(server, "/v1/chat/completions", LONG, id_, 700)
    assert len(first) < len(expected)
    second = rest(server, id_, params={"from": len(first)})
    assert second.headers["content-type"].startswith("text/event-stream")
    assert "".join(texts(first + second.content)) == "".join(texts(expected))
    assert (first + second.content).endswith(b"data: [DONE]\n\n")

    everything = rest(server, id_).content
    assert everything == first + second.content
    whole = everything[: first.rindex(b"\n\n") + 2]
    last = whole.rpartition(b"id: ")[2].partition(b"\n")[0].decode()
    after = rest(server, id_, headers={"Last-Event-ID": last}, params={"from": 0})
    assert whole + after.content == everything
    assert rest(server, id_, headers={"Last-Event-ID": str(len(everything))}).status_code == 204

    (told,) = post(server, "/v1/streams/lookup", {"conversation_ids": ["back", "nothing"]}).json()
    assert (told["conversation_id"], told["is_done"], told["total_bytes"]) == (id_, True, len(everything))
    assert told["completed_at"] >= told["started_at"] > 10**9


def test_one_that_is_stopped(server: Served) -> None:
    """Without its client it goes on until it is stopped, which ends the generation; then it is there no longer."""
    wait_until(lambda: not n_running(server))
    some(server, "/v1/completions", ENDLESS, "endless", 1)
    assert n_running(server) == 1
    with httpx.stream("GET", f"{server.url}/v1/stream?conv_id=endless", timeout=60) as following:
        parts = following.iter_raw()
        next(parts)
        assert httpx.delete(f"{server.url}/v1/stream?conv_id=endless", timeout=60).status_code == 204
        assert b'"code":"cancelled"' in b"".join(parts)
    wait_until(lambda: not n_running(server))
    assert rest(server, "endless").status_code == 404
    assert httpx.delete(f"{server.url}/v1/stream?conv_id=endless", timeout=60).status_code == 204


def test_without_the_header(server: Served) -> None:
    """A client that leaves cancels its request, as ever."""
    wait_until(lambda: not n_running(server))
    with httpx.stream("POST", f"{server.url}/v1/completions", json={"model": MODEL, **ENDLESS}, timeout=60) as response:
        parts = response.iter_raw()  # which ends its request as soon as nothing refers to it
        next(parts)
        assert n_running(server) == 1
    wait_until(lambda: not n_running(server))


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("/v1/completions", {"prompt": "a"}, b"data: [DONE]\n\n"), ("/completion", {"prompt": "a", "n_predict": 9}, b"\n\n"),
        ("/v1/messages", {"messages": ASKED, "max_tokens": 9}, b'data: {"type":"message_stop"}\n\n'),
        ("/v1/responses", {"input": "a", "max_output_tokens": 16}, b"\n\n"), ("/api/chat", {"messages": ASKED}, b"}\n"),
    ],
)  # fmt: skip
def test_in_every_api(server: Served, path: str, body: dict[str, Any], end: bytes) -> None:
    """Its streams are kept as its clients got them, under the same media type."""
    options: Any = {"headers": kept(f"all {path}")}
    answer = post(server, path, {"model": MODEL, "stream": True, "temperature": 0, **_bounded(path), **body}, **options)
    assert answer.status_code == 200
    again = rest(server, f"all {path}")
    assert again.content == answer.content
    assert again.content.endswith(end)
    assert again.headers["content-type"] == answer.headers["content-type"]
    assert (b"id: " in again.content) == (path != "/api/chat")


def _bounded(path: str) -> dict[str, Any]:
    return {"options": {"num_predict": 9}} if path == "/api/chat" else {}


def test_what_is_refused(server: Served) -> None:
    """Offsets that are not there, ids that are none, and errors of a request that has not begun."""
    small = {**LONG, "max_tokens": 2, "model": MODEL}
    size = len(post(server, "/v1/chat/completions", small, headers=kept("small")).content)
    for params, headers in (
        ({"from": size + 1}, {}), ({"from": -1}, {}), ({"from": "x"}, {}), ({}, {"Last-Event-ID": "x"}),
        ({}, {"Last-Event-ID": "9" * 5000}), ({}, {"Last-Event-ID": str(size + 1)}), ({"conv_id": ""}, {}),
    ):  # fmt: skip
        assert rest(server, "small", params=params, headers=headers).status_code == 400
    assert rest(server, "small", params={"from": size}).content == b""
    assert rest(server, "unknown").status_code == 404
    assert post(server, "/v1/chat/completions", small, headers=kept("x" * 257)).status_code == 400
    too_long = {**small, "messages": [{"role": "user", "content": "a b c " * 9000}]}
    refused = post(server, "/v1/chat/completions", too_long, headers=kept("long"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert rest(server, "long").status_code == 404
    wait_until(lambda: not n_running(server))
    for ids in (["x"] * 1025, [""], ["x" * 257], "x", [1]):
        assert post(server, "/v1/streams/lookup", {"conversation_ids": ids}).status_code == 400


def test_keys() -> None:
    """Each stream belongs to a key, and without the setting there are none."""
    app = create_app(models=[], api_keys=["a-key-of-tests", "another-key"])
    assert ask(app, "GET", "/v1/stream?conv_id=a").status_code == 401
    assert ask(app, "GET", "/v1/stream?conv_id=a", headers={"x-api-key": "another-key"}).status_code == 404
    assert not create_app(models=[], max_streams_bytes=0).state.server.streams.are_kept
