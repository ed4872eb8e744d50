"""Response format: what OpenAI's clients say about the shape of an answer, made into a Grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from offgrid_llama.grammar import Grammar

__all__ = ["grammar_of", "parse_as"]


def grammar_of(response_format: object) -> Grammar | None:
    """Return the Grammar of a response format, or None where the answer is free.

    Args:
        response_format: None; a Grammar; a type, as ``Grammar.json_schema`` takes it; or one of OpenAI's dicts:
            ``{"type": "text"}``, ``{"type": "json_object"}``, or
            ``{"type": "json_schema", "json_schema": {"schema": {...}}}``.

    Raises GrammarError as ``Grammar.json_schema`` does; ValueError and TypeError for dicts of another shape.
    """
    if response_format is None or isinstance(response_format, Grammar):
        return response_format
    if not isinstance(response_format, Mapping):
        return Grammar.json_schema(response_format)
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_schema(response_format.get("schema", {"type": "object"}))
    if kind == "json_schema":
        described: Any = response_format.get("json_schema")
        if not isinstance(described, Mapping) or "schema" not in described:
            raise ValueError("response_format['json_schema'] must be a dict with a 'schema'")
        return Grammar.json_schema(described["schema"])
    raise ValueError(f"response_format['type'] must be 'text', 'json_object' or 'json_schema', not {kind!r}")


def parse_as(response_format: Any, text: str) -> Any:
    """Return an answer as the type that the response format is, as plain JSON if a dict describes it, or as it is.

    Raises ValueError for what is no such answer.
    """
    if isinstance(response_format, Grammar):
        return json.loads(text) if response_format.kind == "json_schema" else text
    if isinstance(response_format, Mapping):
        return text if response_format.get("type") == "text" else json.loads(text)
    if response_format is None:
        return text
    from pydantic import TypeAdapter

    return TypeAdapter(response_format).validate_json(text)
