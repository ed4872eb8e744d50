"""Every answer, event and error of Anthropic's API against the types of the anthropic package."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from anthropic.types.beta import BetaMessage, BetaMessageTokensCount, BetaRawMessageStreamEvent
from anthropic.types.shared import ErrorResponse

from helpers.official import check
from helpers.serving import MODEL, Served, events

OWN = ("warnings",)
ASKED = [{"role": "user", "content": "Say hi."}]
SCHEMA = {"type": "object", "properties": {"at": {"enum": ["a", "b"]}}, "required": ["at"], "not": {"maxProperties": 0}}
TOOL = {"name": "look", "input_schema": SCHEMA}
EDITS = {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}

PLAIN: dict[str, dict[str, Any]] = {
    "plain": {}, "cut": {"max_tokens": 1}, "stopped": {"stop_sequences": [" ", "e"]}, "cached": {
        "system": [{"type": "text", "text": "Be terse.", "cache_control": {"type": "ephemeral"}}]
    }, "a call": {"tools": [TOOL], "tool_choice": {"type": "any"}}, "continued": {
        "messages": [*ASKED, {"role": "assistant", "content": "Hi"}]
    }, "a schema": {"output_config": {"format": {"type": "json_schema", "schema": {"enum": ["a", "b"]}}}},
}  # fmt: skip
BETA: dict[str, dict[str, Any]] = {**PLAIN, "edits": {"context_management": EDITS}}
THOUGHT: dict[str, dict[str, Any]] = {
    "thinks": {}, "a little": {"thinking": {"type": "enabled", "budget_tokens": 4}},
    "unseen": {"thinking": {"type": "adaptive", "display": "omitted"}}, "not": {"thinking": {"type": "disabled"}},
}  # fmt: skip


def asked(more: dict[str, Any], stream: bool) -> dict[str, Any]:
    return {"model": MODEL, "messages": ASKED, "max_tokens": 12, "temperature": 0, "stream": stream, **more}


def answers(server: Served, path: str, more: dict[str, Any], kind: Any, event: Any) -> None:
    """Check the whole answer to a request, and each event of its stream."""
    with server.client() as client:
        response = client.post(path, json=asked(more, stream=False))
        assert response.status_code == 200, response.text
        check(kind, response.json(), OWN)
        with client.stream("POST", path, json=asked(more, stream=True)) as streamed:
            found = [json.loads(data) for data in events(streamed)]
    assert [each["type"] for each in (found[0], *found[-2:])] == ["message_start", "message_delta", "message_stop"]
    for each in found:
        if each != {"type": "ping"}:
            check(event, each, OWN)


@pytest.mark.parametrize("more", PLAIN.values(), ids=PLAIN)
def test_messages(server: Served, more: dict[str, Any]) -> None:
    """Whole answers, and each event of a stream."""
    answers(server, "/v1/messages", more, Message, RawMessageStreamEvent)


@pytest.mark.parametrize("more", BETA.values(), ids=BETA)
def test_messages_of_a_beta(server: Served, more: dict[str, Any]) -> None:
    """The same by the path and the types of betas."""
    answers(server, "/v1/messages?beta=true", more, BetaMessage, BetaRawMessageStreamEvent)


@pytest.mark.parametrize("more", THOUGHT.values(), ids=THOUGHT)
def test_messages_with_thinking(thinker: Served, more: dict[str, Any]) -> None:
    """The same of a model that thinks."""
    answers(thinker, "/v1/messages", more, Message, RawMessageStreamEvent)


def test_others(server: Served) -> None:
    """Counts of tokens, models, and errors of every origin."""
    asked_for = {"model": MODEL, "messages": ASKED}
    version = {"anthropic-version": "2023-06-01"}
    with server.client() as client:
        count = f"{server.url}/v1/messages/count_tokens"
        check(MessageTokensCount, client.post(count, json=asked_for).json())
        check(BetaMessageTokensCount, client.post(count, json={**asked_for, "context_management": EDITS}).json())
        for model in client.get("/v1/models", headers=version).json()["data"]:
            check(ModelInfo, model)
        check(ModelInfo, client.get(f"/v1/models/{MODEL}", headers=version).json())
        refused = [
            client.post("/v1/messages", json={}), client.post("/v1/messages", content=b"{", headers={**JSON}),
            client.post("/v1/messages", json={**asked_for, "max_tokens": 1, "wibble": 1}),
            client.post("/v1/messages", json={**asked_for, "max_tokens": 1, "model": "nobody"}),
            client.post("/v1/messages", content=b"a"), client.get("/v1/messages"), client.post("/v1/messages/batches"),
            client.get("/v1/models/nobody", headers=version), client.get("/v1/models?limit=x", headers=version),
            client.post("/v1/messages", json=asked({}, stream=False), headers={"host": "evil.example"}),
        ]  # fmt: skip
    assert [each.status_code for each in refused] == [400, 400, 400, 404, 415, 405, 404, 404, 400, 403]
    for each in refused:
        is_error(each)


JSON = {"content-type": "application/json"}


def is_error(response: httpx.Response) -> None:
    check(ErrorResponse, response.json())
    assert response.json()["request_id"] == response.headers["request-id"]


@pytest.mark.parametrize(
    "change",
    [{"id": None}, {"content": [{"type": "text"}]}, {"stop_reason": "stop"}, {"usage": {"input_tokens": "1"}}, {"a": 1}],
)  # fmt: skip
def test_the_check(change: dict[str, Any]) -> None:
    """A field that is missing, of another type or unknown is found."""
    good = {
        "id": "a", "type": "message", "role": "assistant", "model": "m", "content": [{"type": "text", "text": "a"}],
        "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
    }  # fmt: skip
    check(Message, good)
    with pytest.raises((ValueError, AssertionError)):
        check(Message, {**good, **change})
