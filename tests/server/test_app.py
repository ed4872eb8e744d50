"""The whole app: what it refuses, and how it describes itself."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from helpers.apps import ask
from helpers.requests import ASKED, post
from helpers.serving import MODEL, Served
from offgrid_llama.server import create_app
from offgrid_llama.server.api_error import ApiError

READABLE = "Retry-After, request-id, x-request-id"
"""The headers that a page of an allowed origin can read."""


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": ASKED, "temperature": 3}, "temperature"),
        ("/v1/chat/completions", {"messages": ASKED, "max_tokens": 0}, "max_tokens"),
        ("/v1/chat/completions", {"messages": ASKED, "n": 9}, "n"),
        ("/v1/chat/completions", {"messages": ASKED, "stop": ["a"] * 17}, "stop"),
        ("/v1/chat/completions", {"messages": ASKED, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", {"messages": ASKED, "top_logprobs": 2}, "logprobs"),
        ("/v1/chat/completions", {"messages": ASKED, "stream_options": {}}, "stream_options"),
        ("/v1/chat/completions", {"messages": ASKED, "wibble": 1}, "Unrecognized request argument supplied: wibble"),
        ("/v1/chat/completions", {"messages": ASKED * 1025}, "messages"),
        ("/v1/chat/completions", {"messages": ASKED, "logit_bias": {"x": 1}}, "logit_bias"),
        ("/v1/chat/completions", {"messages": ASKED, "logit_bias": {"99999999": 1}}, "logit_bias"),
        ("/v1/chat/completions", {"messages": ASKED, "tool_choice": "required"}, "tool_choice: a call is required"),
        ("/v1/chat/completions", {"messages": ASKED, "grammar": "root ::= ("}, "grammar"),
        ("/v1/chat/completions", {"messages": ASKED, "grammar": "root ::= " + "a" * 70_000}, "grammar"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image_url"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a " * 6000}]}, "tokens"),
        ("/v1/completions", {"prompt": [99999999]}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"prompt": "a", "prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": "a", "prompt_logprobs": 21}, "prompt_logprobs"),
        ("/v1/completions", {"prompt": ["a " * 3000] * 10, "echo": True, "logprobs": 20}, "logprobs: "),
        ("/v1/completions", {"prompt": "a", "best_of": 2, "n": 3}, "best_of: must be at least n, which is 3"),
        ("/v1/completions", {"prompt": "a", "best_of": 2, "stream": True}, "best_of"),
        ("/v1/chat/completions", {"messages": ASKED, "prediction": {"type": "content"}}, "prediction"),
        ("/v1/chat/completions", {"messages": ASKED, "prediction": {"type": "text", "content": "a"}}, "prediction"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [99999999]}, "token"),
        ("/apply-template", {"messages": [{"content": "a"}]}, "role"),
        ("/apply-template", {"messages": ASKED, "chat_template_kwargs": {"a": 2**64}}, "64 bits"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a", "b": -(2**70)}]}, "64 bits"),
    ],
)  # fmt: skip
def test_what_is_refused(server: Served, path: str, body: dict[str, Any], says: str) -> None:
    """A bad request is told what is wrong with it, in OpenAI's shape, and nothing is computed for it."""
    response = post(server, path, {"model": MODEL, "max_tokens": 1, **body} if "v1/c" in path else body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_openapi(server: Served) -> None:
    """The description names every endpoint."""
    paths = httpx.get(f"{server.url}/openapi.json", timeout=10).json()["paths"]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/models", "/v1/rerank", "/tokenize",
                 "/detokenize", "/apply-template", "/extras/tokenize", "/extras/tokenize/count", "/extras/detokenize",
                 "/v1/audio/transcriptions", "/v1/audio/speech", "/health", "/metrics"):  # fmt: skip
        assert path in paths


def test_preflights() -> None:
    """A page of an allowed origin may send the headers that it asks for, and one of another origin may send nothing."""
    app = create_app(models=[], cors_origins=["http://a.example"])

    def allowed(origin: str, method: str, headers: str) -> tuple[int, str | None]:
        asked = {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}
        found = ask(app, "OPTIONS", "/v1/chat/completions", headers=asked)
        return found.status_code, found.headers.get("Access-Control-Allow-Origin")

    for headers in ("authorization", "content-type,x-stainless-os,openai-beta", "x-anything"):
        for method in ("GET", "POST", "HEAD"):
            assert allowed("http://a.example", method, headers) == (200, "http://a.example")
        assert allowed("http://b.example", "POST", headers) == (400, None)
    assert ask(app, "POST", "/tokenize", json={}, headers={"Origin": "http://b.example"}).status_code == 403
    for origin, status in (("http://a.example", 200), ("http://b.example", 400)):
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Private-Network": "true",
        }
        found = ask(app, "OPTIONS", "/v1/chat/completions", headers=asked)
        assert found.status_code == status
        assert ("Access-Control-Allow-Origin" in found.headers) == (status == 200)
        assert status == 400 or found.headers["Access-Control-Allow-Private-Network"] == "true"


def test_what_pages_can_read() -> None:
    """A page of an allowed origin can read every answer, and when to retry; one of another origin can read none."""
    app = create_app(models=[], cors_origins=["http://a.example"], api_keys=["a-key-of-tests"])

    def broken() -> None:
        raise RuntimeError

    app.add_api_route("/broken", broken)

    def readable(origin: str, path: str, key: str) -> tuple[int, str | None, str]:
        found = ask(app, "GET", path, headers={"Origin": origin, "Authorization": f"Bearer {key}"})
        allowed = found.headers.get("Access-Control-Allow-Origin")
        return found.status_code, allowed, found.headers.get("Access-Control-Expose-Headers", "")

    for path, key, status in (
        ("/v1/models", "a-key-of-tests", 200), ("/v1/models", "another-key", 401),
        ("/v1/models/x", "a-key-of-tests", 404), ("/broken", "a-key-of-tests", 500),
    ):  # fmt: skip
        assert readable("http://a.example", path, key) == (status, "http://a.example", READABLE)
        assert readable("http://b.example", path, key)[:2] == (status, None)


def test_names_of_models() -> None:
    """Aliases are listed behind the models, and an unknown name is told all names."""
    models = [{"name": "a", "aliases": ["b", "c"]}, "d"]
    app = create_app(models=models)
    listed = ask(app, "GET", "/v1/models").json()["data"]
    assert [(each["id"], each.get("alias_of")) for each in listed] == [("a", None), ("d", None), ("b", "a"), ("c", "a")]
    assert ask(app, "GET", "/v1/models/c").json()["alias_of"] == "a"
    for found in (
        ask(app, "GET", "/v1/models/x"),
        ask(app, "POST", "/tokenize", json={"model": "gpt 4 (new)", "content": ""}),
    ):
        assert found.status_code == 404
        assert found.json()["error"]["message"].endswith("does not exist here (a, b, c, d)")


def test_any_model() -> None:
    """With ``any_model`` the first model answers to every name that is no model's; loading and unloading need the name."""
    app = create_app(models=["a", "b"], any_model=True)
    find = app.state.server.supervisor.find_to_answer
    assert [find(name).name for name in ("a", "b", "gpt-4o", "", None)] == ["a", "b", "a", "a", "a"]
    for method, path in (("POST", "/models/unload/x"), ("POST", "/models/load/x"), ("GET", "/v1/models/x")):
        assert ask(app, method, path).status_code == 404
    with pytest.raises(ApiError, match="no model"):
        create_app(models=[], any_model=True).state.server.supervisor.find_to_answer("a")
