"""Parameters that are not known: what this server calls them."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from helpers.apps import ask
from helpers.requests import ASKED
from offgrid_llama.server import create_app
from offgrid_llama.server.dialects import anthropic_schemas, anthropic_tools, openai_schemas
from offgrid_llama.server.dialects.openai_messages import Function
from offgrid_llama.server.dialects.responses_schemas import ResponseRequest
from offgrid_llama.server.synonyms import SYNONYMS, hint

NAMED = [
    getattr(module, name) for module in (openai_schemas, anthropic_schemas, anthropic_tools) for name in module.__all__
]
SCHEMAS: list[type[BaseModel]] = [*(each for each in NAMED if isinstance(each, type)), Function, ResponseRequest]


def test_every_synonym_is_of_a_parameter() -> None:
    """Each names a parameter of a request, and is itself none where it says so."""
    for theirs, ours in SYNONYMS.items():
        for name in ours:
            having = [schema for schema in SCHEMAS if name in schema.model_fields]
            assert having, name
            assert any(theirs not in schema.model_fields for schema in having), theirs


@pytest.mark.parametrize(
    ("path", "unknown", "says"),
    [
        ("/v1/chat/completions", "repetition_penalty", "here it is called repeat_penalty"),
        ("/v1/chat/completions", "num_predict", "here it is called max_tokens"),
        ("/v1/chat/completions", "n_probs", "here it is called top_logprobs"),
        ("/v1/completions", "n_probs", "here it is called logprobs"),
        ("/v1/completions", "temprature", "did you mean temperature?"), ("/tokenize", "text", "here it is called content"),
        ("/extras/tokenize", "content", "here it is called input"), ("/v1/rerank", "top_k", "here it is called top_n"),
        ("/v1/chat/completions", "wibble", "supplied: wibble"),
        ("/v1/chat/completions", "x" * 10**6, "x..."),
    ],
)  # fmt: skip
def test_what_a_client_is_told(path: str, unknown: str, says: str) -> None:
    """A parameter that is not known is refused, with its name here if it has one; an error stays short."""
    error = ask(create_app(models=[]), "POST", path, json={unknown: 1}).json()["error"]
    assert error["message"].endswith(says)
    assert error["param"].startswith(unknown[:100])
    assert len(error["message"]) < 500


def test_a_null_says_nothing() -> None:
    """A parameter that is not known and null is as if it were absent, as clients of other languages write it."""
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/tokenize", {"content": "a"}),
    ):
        answer = ask(create_app(models=[]), "POST", path, json={**body, "prediction": None, "wibble": None})
        assert answer.json()["error"]["code"] == "model_not_found"


def test_no_hint() -> None:
    """A name that is like none has no hint."""
    assert hint("wibble", ["stop", "seed"]) == ""


def test_unknown_parameters_can_be_ignored() -> None:
    """With ``ignore_unknown`` they have no effect, at any depth; what is known is still checked."""
    app = create_app(models=[], ignore_unknown=True)
    tool = {"type": "function", "c": 1, "function": {"name": "f", "d": 1}}
    body = {"messages": ASKED, "wibble": 1, "response_format": {"type": "text", "a": 1}, "stream": True,
            "stream_options": {"b": 1}, "tools": [tool]}  # fmt: skip
    assert ask(app, "POST", "/v1/chat/completions", json=body).json()["error"]["code"] == "model_not_found"
    refused = ask(app, "POST", "/v1/chat/completions", json={**body, "temperature": 9}).json()["error"]
    assert refused["param"] == "temperature"
