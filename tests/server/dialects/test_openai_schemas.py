"""Schemas: no body makes an error for each of its items, and an error is about the member of a union that was meant."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from offgrid_llama.server.dialects import openai_schemas as schemas

N = 500
WRONG: dict[str, Any] = {
    "numbers": [1.5] * N, "texts": ["a b"] * N, "nulls": [None] * N, "lists": [[]] * N, "full lists": [[1.5]] * N,
    "deep lists": [[[1.5] * N] * N], "objects": [{}] * N, "full objects": [{"a b": 1.5}] * N, "long": [[1.5] * N],
    "names": {f"name {i}": None for i in range(N)}, "many names": {f"name {i}": None for i in range(4 * N)},
}  # fmt: skip
SCHEMAS = [schema for name in schemas.__all__ if isinstance(schema := getattr(schemas, name), type)]


def errors(schema: type[BaseModel], body: Any) -> int:
    try:
        schema.model_validate(body)
    except ValidationError as error:
        return error.error_count()
    return 0


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("wrong", WRONG)
def test_few_errors(schema: type[BaseModel], wrong: str) -> None:
    """A list of wrong items and an object of wrong names make few errors, wherever in a body they are."""
    value = WRONG[wrong]
    required = {name: "" for name, field in schema.model_fields.items() if field.is_required()}
    for name in schema.model_fields:
        few = len(required) + 2
        if name == "logit_bias":
            few += schemas.MAX_BIASES  # objects do not end at their first error
        assert errors(schema, {**required, name: value}) <= few
    assert errors(schema, value) <= 2


@pytest.mark.parametrize("wrong", WRONG)
def test_few_errors_within(wrong: str) -> None:
    """The same in the objects of a chat."""
    value = WRONG[wrong]
    message: dict[str, Any] = {"role": "user", "content": "a"}
    call: dict[str, Any] = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    function: dict[str, Any] = {"name": "f", "parameters": {}}
    shape: dict[str, Any] = {"name": "a", "schema": {}}
    bodies: list[dict[str, Any]] = [
        *({"messages": [{**message, name: value}] * 9} for name in (*message, "tool_calls", "tool_call_id")),
        *({"messages": [{**message, "tool_calls": [{**call, name: value}] * 9}]} for name in call),
        *({"tools": [{"type": "function", "function": {**function, name: value}}] * 9} for name in function),
        *({"response_format": {"type": "json_schema", "json_schema": {**shape, name: value}}} for name in shape),
        {"tools": [{"type": value, "function": value}] * 9}, {"tool_choice": {"type": "function", "function": value}},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": value}}, {"stream_options": value},
    ]  # fmt: skip
    for body in bodies:
        assert errors(schemas.ChatRequest, {"messages": [message], **body}) <= 4


@pytest.mark.parametrize("schema", SCHEMAS)
def test_unions(schema: type[BaseModel]) -> None:
    """The shape of a value chooses the member of a union; pydantic tries no member that was not meant."""
    tried = []

    def look(node: Any) -> None:
        if isinstance(node, dict):
            members = [member for member in node.get("anyOf", ()) if member != {"type": "null"}]
            tried.extend(members if len(members) > 1 else [])
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            look(child)

    look(schema.model_json_schema())
    assert not tried
