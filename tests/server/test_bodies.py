"""Bodies of requests: how they are read, and which parameters reach the worker."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from helpers.apps import ask
from offgrid_llama.server import bodies, create_app
from offgrid_llama.server.dialects.openai_schemas import ChatRequest
from offgrid_llama.server.json_body import read_json

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("value", "deeper"),
    [("[" * 63 + "]" * 63, False), ("[" * 64 + "]" * 64, True), ('{"a": [1, 2, {"b": 3}]}', False), ("1", False)],
)
def test_depth(value: str, deeper: bool) -> None:
    """Levels are counted as they are written; 64 of them are allowed below the body's own."""
    app = create_app(models=[])
    body = f'{{"content": "a", "other": [{value}]}}'.encode()
    error = ask(app, "POST", "/tokenize", content=body, headers=JSON).json()["error"]
    assert (error["code"] == "invalid_json") == deeper
    assert ("deeper than 64 levels" in error["message"]) == deeper


def test_what_is_no_json() -> None:
    """Bytes that are no JSON, NaN and bytes that are no UTF-8 are refused, each with its reason."""
    app = create_app(models=[])
    for body, told in (
        (b"{", "truncated"), (b'{"content": NaN}', "invalid character"), (b'{"content": "\xff"}', "Invalid UTF-8"),
        (b"[" * 5000, "deeper than 64 levels"), (b"", "the body is empty"), (b" \n", "the body is empty"),
    ):  # fmt: skip
        response = ask(app, "POST", "/tokenize", content=body, headers=JSON)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "invalid_json"
        assert told in response.json()["error"]["message"]


def test_what_was_said() -> None:
    """Only parameters that the client set go on, and none that have no effect."""
    described = {"type": "json_schema", "json_schema": {"name": "d", "schema": {"type": "object"}}}
    body = {"messages": [{"role": "user", "content": "a", "name": "b"}], "user": "c", "seed": None, "temperature": 0,
            "response_format": described}  # fmt: skip
    said = ChatRequest.model_validate(body).said()
    assert said == {"messages": body["messages"], "temperature": 0, "response_format": body["response_format"]}


def test_type_and_size() -> None:
    """Only JSON up to the limit is read; a head with a false length changes nothing."""
    app = create_app(models=[], max_body_bytes=1024)

    def status(body: bytes, **more: str) -> int:
        headers = {
            "content-type": "application/json",
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
        return ask(app, "POST", "/tokenize", content=body, headers=headers).status_code

    assert status(b'{"content": "a"}') == 404  # there is no model
    assert status(b"{}", content_type="text/plain") == 415
    assert status(b"{}", content_encoding="gzip") == 415
    assert status(b'{"content": "a"}', content_encoding="identity") == 404
    assert status(b"{}", content_length="2000") == 413
    assert status(b"x" * 2000, content_length="2") == 413


def test_an_unknown_path() -> None:
    """A path that does not exist is 404, and a wrong method 405, with any body."""
    app = create_app(models=[], max_body_bytes=1024)
    for body, kind in ((b"x", "text/plain"), (b"x" * 2000, "application/json"), (b"{", "")):
        headers = {"content-type": kind}
        assert ask(app, "POST", "/nothing", content=body, headers=headers).status_code == 404
        assert ask(app, "POST", "/health", content=body, headers=headers).status_code == 405


def test_large_bodies_leave_the_event_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body of some MiB is read in another thread than the event loop's; a small one is not worth the way there."""
    readers: list[int] = []

    def read(*arguments: Any) -> Any:
        readers.append(threading.get_ident())
        return read_json(*arguments)

    monkeypatch.setattr(bodies, "read_json", read)
    app = create_app(models=[])
    for n in (1000, 500_000):
        assert ask(app, "POST", "/detokenize", json={"tokens": list(range(1000, 1000 + n))}).status_code == 404
    assert readers[0] == threading.get_ident() != readers[1]
