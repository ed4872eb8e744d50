"""Every answer and event of OpenAI's API against the types of the openai package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from helpers.official import check
from helpers.serving import MODEL, Served, events

OWN = ("reasoning_content", "warnings")
MESSAGES = [{"role": "user", "content": "Say hi."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "look", "parameters": {
            "type": "object", "properties": {"at": {"enum": ["a", "b"]}}, "required": ["at"], "not": {"maxProperties": 0},
        },
    },
}  # fmt: skip

CHATS: dict[str, dict[str, Any]] = {
    "plain": {}, "several": {"n": 2}, "logprobs": {"logprobs": True, "top_logprobs": 2}, "cut": {"max_tokens": 1},
    "a call": {"tools": [TOOL], "tool_choice": "required"}, "stopped": {"stop": [" ", "e"]},
    "an object": {"response_format": {"type": "json_object"}}, "usage": {"stream_options": {"include_usage": True}},
    "predicted": {
        "prediction": {"type": "content", "content": "Hi! How can I help?"}, "stream_options": {"include_usage": True},
    },
}  # fmt: skip
TEXTS: dict[str, dict[str, Any]] = {
    "plain": {}, "several": {"prompt": ["a", "b"], "n": 2}, "logprobs": {"logprobs": 2}, "echo": {"echo": True},
    "echo with logprobs": {"prompt": ["a b", "c"], "echo": True, "logprobs": 1, "n": 2},
    "only the prompt": {"prompt": [[1, 2], [3]], "echo": True, "logprobs": 1, "max_tokens": 0},
    "usage": {"stream_options": {"include_usage": True}}, "tokens": {"prompt": [1, 2, 3]},
}  # fmt: skip


def asked(more: Mapping[str, Any], stream: bool) -> dict[str, Any]:
    body = {"model": MODEL, "max_tokens": 12, "seed": 1, "stream": stream, **more}
    if not stream:
        body.pop("stream_options", None)
    return body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", CHATS.values(), ids=CHATS)
def test_chats(server: Served, more: dict[str, Any], stream: bool) -> None:
    """Whole answers, and each event of a stream."""
    answer_types(
        server, "/v1/chat/completions", {"messages": MESSAGES, **more}, stream, ChatCompletion, ChatCompletionChunk
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", TEXTS.values(), ids=TEXTS)
def test_texts(server: Served, more: dict[str, Any], stream: bool) -> None:
    """Whole answers, and each event of a stream, which has the same type."""
    answer_types(server, "/v1/completions", {"prompt": "Once", **more}, stream, Completion, Completion)


def answer_types(server: Served, path: str, body: dict[str, Any], stream: bool, whole: Any, part: Any) -> None:
    with server.client() as client:
        if not stream:
            found = client.post(path, json=asked(body, stream)).json()
            without_nulls(found, whole)
            check(whole, found, OWN)
            return
        with client.stream("POST", path, json=asked(body, stream)) as response:
            *parts, done = events(response)
    assert done == "[DONE]"
    assert parts
    for found in map(json.loads, parts):
        assert ("usage" in found) == ("stream_options" in body)
        without_nulls(found, part)
        check(part, found, OWN)


def without_nulls(found: dict[str, Any], kind: Any) -> None:
    """Replace nulls that OpenAI's completions have, in spite of the type: in streams, and for a prompt's first token."""
    for choice in found["choices"] if kind is Completion else ():
        choice["finish_reason"] = choice["finish_reason"] or "stop"
        logprobs = choice["logprobs"]
        if logprobs and logprobs["token_logprobs"][0] is None:
            assert logprobs["top_logprobs"][0] is None
            logprobs["token_logprobs"][0], logprobs["top_logprobs"][0] = 0.0, {}


def test_others(server: Served) -> None:
    """Embeddings as numbers, and the models; what ours say of themselves are names of ours."""
    with server.client() as client:
        found = client.post("/v1/embeddings", json={"input": ["a", "b"], "model": MODEL}).json()
        check(CreateEmbeddingResponse, found)
        models = client.get("/v1/models").json()
    assert models["object"] == "list"
    for each in models["data"]:
        check(Model, each, each.keys() - Model.model_fields.keys())


@pytest.mark.parametrize("change", [{"id": None}, {"choices": [{"index": "a"}]}, {"wibble": 1}])
def test_the_check(change: dict[str, Any]) -> None:
    """A field that is missing, of another type or unknown is found."""
    good = {"id": "a", "object": "text_completion", "created": 1, "model": "m", "choices": []}
    check(Completion, good)
    with pytest.raises((ValueError, AssertionError)):
        check(Completion, {**good, **change})
