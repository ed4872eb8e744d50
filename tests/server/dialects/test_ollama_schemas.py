"""Schemas of Ollama's requests: forgiving where Ollama is, and bounded."""

from __future__ import annotations

import math
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from offgrid_llama.server.dialects import ollama_schemas as schemas
from offgrid_llama.server.dialects.ollama_schemas import ChatBody, EmbedBody, GenerateBody, ModelBody, ModelOptions

N = 500
WRONG: dict[str, Any] = {
    "numbers": [1.5] * N, "texts": ["a"] * N, "nulls": [None] * N, "lists": [[]] * N, "objects": [{}] * N,
    "full objects": [{"a b": 1.5}] * N, "names": {f"name {i}": None for i in range(N)}, "long": [[1.5] * N],
}  # fmt: skip
SCHEMAS = [schema for name in schemas.__all__ if isinstance(schema := getattr(schemas, name), type)]


def n_errors(schema: type[BaseModel], body: Any) -> int:
    try:
        schema.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    return 0


def error_of(schema: type[BaseModel], **body: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate({"model": "m", **body})
    return str(caught.value)


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("wrong", WRONG)
def test_few_errors(schema: type[BaseModel], wrong: str) -> None:
    """A list of wrong items and an object of wrong names make few errors, wherever in a body they are."""
    required = {name: "" for name, field in schema.model_fields.items() if field.is_required()}
    bodies: list[Any] = [{**required, name: WRONG[wrong]} for name in schema.model_fields]
    for body in (*bodies, WRONG[wrong]):
        assert n_errors(schema, body) <= len(required) + 4


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        (300, 300), (0, 0), (1.5, 1.5), (-1, math.inf), ("5m", 300), ("1h30m", 5400), ("300ms", 0.3), ("1.5h", 5400),
        ("-1s", math.inf), ("-1", math.inf), ("0", 0), ("24h", 86400), ("10us", 1e-5), ("90", 90), ("+2s", 2),
    ],
)  # fmt: skip
def test_durations(said: Any, seconds: float) -> None:
    """Seconds, or as Go writes them; below 0 is for ever."""
    assert ChatBody(model="m", keep_alive=said).keep_alive == pytest.approx(seconds)


@pytest.mark.parametrize("said", ["", "5 minutes", "m", "1d", "s5", True, [], "5m" * 9, "1" * 30, "nan", "inf"])
def test_what_is_no_duration(said: Any) -> None:
    """It is refused with its name, and an example."""
    assert 'such as "5m"' in error_of(ChatBody, keep_alive=said)


def test_options() -> None:
    """A fraction is cut off where an integer is meant; what is unknown, null or of a load has no effect."""
    said = {"top_k": 40.9, "num_predict": -1.0, "seed": None, "wibble": 3, "num_ctx": 2048, "numa": True, "stop": "a"}
    found = GenerateBody.model_validate({"model": "m", "options": said}).options
    assert (found.top_k, found.num_predict, found.seed, found.stop) == (40, -1, None, ["a"])
    assert ChatBody.model_validate({"model": "m", "options": None}).options == ModelOptions()
    for wrong in ({"top_k": True}, {"top_k": "x"}, {"temperature": math.inf}, {"repeat_penalty": 0}, {"mirostat": 3}):
        assert next(iter(wrong)) in error_of(ChatBody, options=wrong)


def test_what_is_refused_by_name() -> None:
    """What is no picture, unknown formats and levels of thinking; a model must be named."""
    assert "valid string" in error_of(GenerateBody, images=[5])
    assert "valid list" in error_of(ChatBody, messages=[{"role": "user", "images": "aGk="}])
    assert "'json' or a JSON Schema" in error_of(ChatBody, format="xml")
    assert '"low", "medium", "high" or "max"' in error_of(ChatBody, think="very")
    assert "model" in error_of(ChatBody, model="")
    assert "valid string or a list of strings" in error_of(EmbedBody, input=[1])


def test_what_is_empty() -> None:
    """No pictures, no format and no calls are as if they were absent."""
    message: dict[str, Any] = {
        "role": "USER",
        "content": None,
        "images": [],
        "tool_calls": None,
        "thinking": None,
        "extra": 1,
    }
    body = ChatBody.model_validate({"model": "m", "messages": [message], "format": "", "tools": None, "think": None})
    assert (body.messages[0].content, body.messages[0].tool_calls, body.format, body.tools) == ("", None, "", [])
    assert body.stream
    assert GenerateBody(model="m", images=[]).prompt == ""


def test_names_of_older_clients() -> None:
    """A request about a model may call it ``name``."""
    assert [ModelBody.model_validate(body).named for body in ({"model": "a"}, {"name": "b"}, {})] == ["a", "b", ""]
