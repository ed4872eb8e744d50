"""Errors as clients get them: the parameter at fault, and what is wrong with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.responses import StreamingResponse

from helpers.apps import ask, listening
from helpers.keys import KEYS
from helpers.requests import ASKED
from offgrid_llama.server import create_app
from offgrid_llama.server.api_error import busy


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "messages", "Field required"),
        ({"messages": [{}]}, "messages.0.role", "Field required"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "valid string"),
        ({"messages": [{"role": "user", "content": {"str": 1}}]}, "messages.0.content", "valid string"),
        ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0", "an object"),
        ({"messages": ASKED, "stop": 5}, "stop", "valid string or a list of strings"),
        ({"messages": ASKED, "stop": {}}, "stop", "valid string or a list of strings"),
        ({"messages": ASKED, "stop": ["a", 5]}, "stop.1", "valid string"),
        ({"messages": ASKED, "stop": "a" * 1001}, "stop", "at most 1000 characters"),
        ({"messages": ASKED, "tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"messages": ASKED, "tool_choice": []}, "tool_choice", "or an object"),
        ({"messages": [{"role": "user", "content": True}]}, "messages.0.content", "valid string or a list of parts"),
        ({"messages": ASKED, "stop": ""}, "stop", "at least 1 character"),
        ({"messages": ASKED, "stop": ["a", ""]}, "stop.1", "at least 1 character"),
        ({"messages": ASKED, "stop": ["a"] * 17}, "stop", "at most 16 items"),
        ({"messages": ASKED, "logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
        ({"messages": ASKED, "logit_bias": {"str": 1}}, "logit_bias.str", "pattern"),
        ({"messages": ASKED, "logit_bias": {"5": 200}}, "logit_bias.5", "less than or equal to 100"),
        ({"messages": ASKED, "tool_choice": 5}, "tool_choice", "'none', 'auto' or 'required'"),
        ({"messages": ASKED, "tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name",
         "pattern"),
        ({"messages": ASKED, "response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"messages": ASKED, "response_format": {"type": "text", "a": 1}}, "response_format.a", "Unrecognized"),
        ({"messages": ASKED, "a": 1}, "a", "Unrecognized"),
        ({"messages": ASKED, "top_logprobs": 2}, "top_logprobs", "when logprobs is true"),
        ([], None, "the body: Input should be an object"),
        (5, None, "the body: Input should be an object"),
        ({"messages": ASKED, "": 1}, "", "supplied: ''"),
        ({"messages": []}, "messages", "at least 1 item, not 0"),
        ({"messages": ASKED, "response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
         "response_format.json_schema", "only allowed with the type json_schema"),
        ({"messages": ASKED, "response_format": {"type": "text", "schema": {}}}, "response_format.schema",
         "only allowed with the type json_object"),
    ],
)  # fmt: skip
def test_the_parameter_at_fault(body: Any, param: str | None, says: str) -> None:
    """It is named as the body has it: with its keys and indices, and no name of a type that it might have had."""
    response = ask(create_app(models=[]), "POST", "/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, "invalid_value")
    assert says in error["message"]
    if param is not None:
        assert param in error["message"]


@pytest.mark.parametrize(
    ("prompt", "param", "says"),
    [([], "prompt", "at least 1 item"), ([1, -1], "prompt.1", "greater than or equal to 0"),
     ([[1], ["a"]], "prompt.1.0", "valid integer"), ({"str": 1}, "prompt", "valid string"),
     (["a"] * 2049, "prompt", "at most 2048 items"), ([[1], []], "prompt.1", "at least 1 item"),
     (["a", 1], "prompt.1", "valid string"), ([1, "a"], "prompt.1", "valid integer"), (5, "prompt", "list of either"),
     ([None], "prompt.0", "valid string")],
)  # fmt: skip
def test_a_union_of_lists(prompt: Any, param: str, says: str) -> None:
    """Of the types that a prompt may have, the one that fits furthest is told of."""
    error = ask(create_app(models=[]), "POST", "/v1/completions", json={"prompt": prompt}).json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_paths_and_methods() -> None:
    """An unknown path is 404, a wrong method 405, an impossible name of a model 400, all in OpenAI's shape."""
    app = create_app(models=[])
    for method, path, status in (("GET", "/none", 404), ("DELETE", "/v1/models", 405), ("GET", "/v1/models/a b", 400)):
        response = ask(app, method, path)
        assert response.status_code == status
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_a_failure_of_the_server() -> None:
    """A client is told that the server failed, and nothing of how, in an answer like any other; it is counted as 500."""
    app = create_app(models=[])

    def broken() -> None:
        raise RuntimeError("a secret")

    app.add_api_route("/broken", broken)
    response = ask(app, "GET", "/broken")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    counts = [line for line in ask(app, "GET", "/metrics").text.splitlines() if 'path="/broken"' in line]
    assert 'offgrid_llama_requests_total{model="",path="/broken",status="500"} 1.0' in counts


def test_a_failure_in_the_middle_of_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    """An answer that has begun is cut off, so that no client takes it for whole; the log has the reason and nothing else."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"a part"
        raise RuntimeError("a secret")

    with listening() as served:
        app: Any = served.server.config.app
        app.add_api_route("/broken", lambda: StreamingResponse(parts()))
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            httpx.get(f"{served.url}/broken", timeout=10)
    assert {str(each.exc_info[1]) for each in caplog.records if each.exc_info} == {"a secret"}


def test_the_page_takes_nothing_from_its_address() -> None:
    """A link to the page cannot put content or a type of its own into the answer."""
    app = create_app(models=[])
    page = ask(app, "GET", "/")
    linked = ask(app, "GET", "/", params={"content": "<b>x</b>", "kind": "text/plain", "media_type": "text/plain"})
    assert (linked.text, linked.headers["content-type"]) == (page.text, page.headers["content-type"])


def test_each_response_has_an_id() -> None:
    """Clients show the id of a request, so that people can tell of it: each response has one of its own."""
    app = create_app(models=[])
    found = [ask(app, "GET", path).headers["x-request-id"] for path in ("/health", "/v1/models", "/none", "/none")]
    refused = ask(app, "GET", "/v1/models", headers={"host": "evil.example"})
    found.append(refused.headers["x-request-id"])
    assert refused.status_code == 403
    assert len(set(found)) == 5
    assert all(each.startswith("req_") for each in found)


@pytest.mark.parametrize(
    ("options", "status", "kind"),
    [
        ({"headers": {}}, 401, "authentication_error"), ({"headers": {"x-api-key": "wrong"}}, 401, "authentication_error"),
        ({"content": b"{}" * 600}, 413, "invalid_request_error"), ({"content": b"{}"}, 415, "invalid_request_error"),
        ({"json": {}}, 400, "invalid_request_error"),
        ({"json": {"max_tokens": 1, "messages": ASKED}}, 404, "not_found_error"),
        ({"headers": {"x-api-key": KEYS[0], "host": "evil.example"}}, 403, "permission_error"),
    ],
)  # fmt: skip
def test_errors_in_the_shape_of_the_paths_api(options: dict[str, Any], status: int, kind: str) -> None:
    """Whatever refuses a request, its client gets an error as its API has them, with the id of the request."""
    app = create_app(models=[], api_keys=KEYS, max_body_bytes=1024)
    response = ask(app, "POST", "/v1/messages", **{"headers": {"x-api-key": KEYS[0]}, **options})
    found = response.json()
    assert (response.status_code, found["type"], found["error"]["type"]) == (status, "error", kind)
    assert found["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_is_busy(status: int) -> None:
    """Its errors have the shape of the API, too, and say when to come again."""
    app = create_app(models=[])

    def refuse() -> None:
        raise busy(status, "come again", "code", 7)

    app.add_api_route("/v1/messages/busy", refuse)
    response = ask(app, "GET", "/v1/messages/busy")
    kinds = {429: "rate_limit_error", 503: "overloaded_error"}
    assert response.json()["error"] == {"type": kinds[status], "message": "come again"}
    assert (response.status_code, response.headers["retry-after"]) == (status, "7")
