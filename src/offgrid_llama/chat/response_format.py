"""Response format: the shape of an answer, as OpenAI's clients ask for it, made into a Grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from offgrid_llama.sampling.grammar.grammar import Grammar
from offgrid_llama.text.json_text import whole_escapes

__all__ = ["grammar_of", "parse_as"]

_KINDS = ("text", "json_object", "json_schema")


def grammar_of(response_format: object) -> Grammar | None:
    """Return the Grammar of a response format, or None where the answer is free.

    Args:
        response_format: None; a Grammar; a type, as ``Grammar.json_schema`` takes it; or one of OpenAI's dicts:
            ``{"type": "text"}``, ``{"type": "json_object"}``, or
            ``{"type": "json_schema", "json_schema": {"schema": {...}}}``; or vLLM's
            ``{"type": "structural_tag", "structures": [...], "triggers": [...]}``, see ``Grammar.structural_tags``.

    Raises GrammarError as ``Grammar.json_schema`` does; ValueError and TypeError for dicts of another shape.
    """
    if response_format is None or isinstance(response_format, Grammar):
        return response_format
    if isinstance(response_format, (str, bytes, int, float, list, tuple)):
        raise TypeError(
            "response_format must be a type, a Grammar or a dict such as {'type': 'json_object'}, not "
            f"{type(response_format).__name__}"
        )
    if not isinstance(response_format, Mapping):
        return Grammar.json_schema(response_format)
    kind = response_format.get("type")
    _check_names(response_format, kind)
    if kind == "text":
        return None
    if kind == "json_object":
        # Models are used to indented JSON: held to compact JSON without a schema, some write nothing but {}.
        return Grammar.json_schema(response_format.get("schema") or {"type": "object"}, whitespace=True)
    if kind == "json_schema":
        described: Any = response_format.get("json_schema")
        if not isinstance(described, Mapping) or "schema" not in described:
            raise ValueError("response_format['json_schema'] must be a dict with a 'schema'")
        return Grammar.json_schema(described["schema"])
    if kind == "structural_tag":
        return Grammar.structural_tags({name: value for name, value in response_format.items() if name != "type"})
    hint = "; a JSON Schema is given as Grammar.json_schema(schema)" if "properties" in response_format else ""
    known = "'text', 'json_object', 'json_schema' or 'structural_tag'"
    raise ValueError(f"response_format['type'] must be {known}, not {kind!r}{hint}")


def _check_names(response_format: Mapping[str, Any], kind: object) -> None:
    """Raise ValueError for a schema that another type than this one would have."""
    for name, its_kind in (("schema", "json_object"), ("json_schema", "json_schema")):
        if response_format.get(name) is not None and kind in _KINDS and kind != its_kind:
            raise ValueError(f"response_format[{name!r}] has no effect with the type {kind!r}; it is for {its_kind!r}")


def parse_as(response_format: Any, text: str) -> Any:
    """Return an answer as an instance of a type, as JSON values where a dict describes the format, or else as the text.

    Raises ValueError for a text that is no such answer.
    """
    if isinstance(response_format, Grammar):
        return _json_of(text) if response_format.kind == "json_schema" else text
    if isinstance(response_format, Mapping):
        return text if response_format.get("type") in ("text", "structural_tag") else _json_of(text)
    if response_format is None:
        return text
    from pydantic import TypeAdapter

    return TypeAdapter(response_format).validate_json(whole_escapes(text))


def _json_of(text: str) -> Any:
    try:
        return json.loads(whole_escapes(text))
    except RecursionError:
        raise ValueError("the answer is nested too deeply") from None
