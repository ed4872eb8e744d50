"""The functions of a request as functionary models read them: a namespace in TypeScript."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["namespace_of"]

HEAD = "// Supported function definitions that should be called when necessary.\nnamespace functions {\n\n"
END = "} // namespace functions"


def namespace_of(functions: Sequence[Mapping[str, Any]], margin: str = "") -> str:
    """Return the text that tells a model of functions.

    Args:
        functions: each with a name; a description and parameters, a JSON Schema, if it has them.
        margin: the spaces before a function. A parameter has them twice.
    """
    shared: dict[str, Any] = {}
    for function in functions:
        shared.update(_parameters(function).get("$defs") or {})
    definitions = [f"  type {name} = {_type(schema, 1)};\n" for name, schema in shared.items()]
    described = [line for function in functions for line in _function(function, margin)]
    return "".join([HEAD, *definitions, *described, END])


def _parameters(function: Mapping[str, Any]) -> Mapping[str, Any]:
    return function.get("parameters") or {}


def _function(function: Mapping[str, Any], margin: str) -> Iterator[str]:
    """Yield the lines of a function."""
    parameters = _parameters(function)
    required = parameters.get("required") or ()
    yield f"{margin}// {_description(function)}\n{margin}type {function['name']} = (_: {{\n"
    for name, schema in (parameters.get("properties") or {}).items():
        mark = "" if name in required else "?"
        yield f"{margin * 2}// {_description(schema)}\n{margin * 2}{name}{mark}: {_type(schema, 2)},\n"
    yield f"{margin}}}) => any;\n\n"


def _description(described: Any) -> str:
    return (described.get("description") or "") if isinstance(described, Mapping) else ""


def _type(schema: Any, level: int) -> str:
    """Return a JSON Schema as a type. ``level`` is the indent of an object's closing brace."""
    if not isinstance(schema, Mapping):
        return "any"
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    kind = schema.get("type", "any")
    if kind == "array":
        return f"Array<{_type(schema.get('items') or {}, level + 1)}>"
    if kind == "object":
        return _object(schema.get("properties") or {}, "  " * level, level)
    if "enum" in schema:
        return " | ".join(f'"{value}"' for value in schema["enum"])
    return " | ".join(map(str, kind)) if isinstance(kind, list) else str(kind)


def _object(properties: Mapping[str, Any], indent: str, level: int) -> str:
    fields = [f"{indent}  {name}: {_type(schema, level + 1)},\n" for name, schema in properties.items()]
    return "".join(["{\n", *fields, indent, "}"])
