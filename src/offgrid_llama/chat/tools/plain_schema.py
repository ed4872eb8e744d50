"""The schema of a tool's arguments as any template can read it (pure).

Some templates read of each property what need not be there: they fail without a description, without the items of a list,
with several types, or recurse for ever at a type that they do not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offgrid_llama.sampling.grammar.json_shapes import Shape, Shapes, TooManyShapesError

__all__ = ["plain_schema"]

MAX_SCHEMAS = 2000
"""A schema that has more of them within it is not written."""
MAX_LEVELS = 12
"""Levels of a schema; a part that lies deeper is any value. Schemas may contain themselves."""
_BY_WEIGHT = ("object", "array", "string", "number", "integer", "boolean")
_ANY_VALUE = frozenset(["string", "object", "array"])


def plain_schema(shapes: Shapes, document: Any, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema in which each one has one type and a description, each list its items, and each object its properties.

    Args:
        shapes: of the schema's document.
        document: the rules of the schema.
        parameters: the schema as it was given, with its descriptions.

    Raises TooManyShapesError for one that would become too large.
    """
    return _PlainSchema(shapes, parameters).of(document, parameters, 0)


class _PlainSchema:
    def __init__(self, shapes: Shapes, parameters: Mapping[str, Any]) -> None:
        self._shapes = shapes
        self._parameters = parameters
        self._n_schemas = 0

    def of(self, schema: Any, given: Any, level: int) -> dict[str, Any]:
        """Return the plain form of a schema; ``given`` is the same one as it was given, where that is known."""
        self._n_schemas += 1
        if self._n_schemas > MAX_SCHEMAS:
            raise TooManyShapesError(f"it has more than {MAX_SCHEMAS} schemas")
        shapes = self._shapes.of(schema)
        kind = _kind_of(shapes)
        plain: dict[str, Any] = {"type": kind, "description": self._description(given)}
        shapes = [shape for shape in shapes if shape["type"] == kind]
        if shapes and all("enum" in shape for shape in shapes):
            plain["enum"] = [value for shape in shapes for value in shape["enum"]]
        if kind == "object":
            plain |= self._object(shapes, given, level)
        elif kind == "array":
            items = next(filter(None, (shape.get("items") for shape in shapes)), True)
            plain["items"] = self._within(items, self._given(given, "items"), level)
        return plain

    def _object(self, shapes: list[Shape], given: Any, level: int) -> dict[str, Any]:
        properties = {name: each for shape in shapes for name, each in shape.get("properties", {}).items()}
        required = [name for name in properties if all(name in shape.get("required", ()) for shape in shapes)]
        further = next((more for shape in shapes if (more := shape.get("additionalProperties"))), True)
        described = {
            name: self._within(each, self._given(given, "properties", name), level) for name, each in properties.items()
        }
        return {
            "properties": described,
            "required": required,
            "additionalProperties": self._within(further, None, level),
        }

    def _within(self, schema: Any, given: Any, level: int) -> dict[str, Any]:
        return self.of(schema if level < MAX_LEVELS else True, given, level + 1)

    def _description(self, given: Any) -> str:
        for each in self._ways(given):
            if each.get("description"):
                return str(each["description"])
        return ""

    def _given(self, given: Any, *path: str) -> Any:
        """Return what stands at a place in a schema as it was given, or in an alternative of it; None where nothing does."""
        for found in self._ways(given):
            each: Any = found
            for name in path:
                each = each.get(name) if isinstance(each, Mapping) else None
            if each is not None:
                return each
        return None

    def _ways(self, given: Any) -> list[Mapping[str, Any]]:
        """Return a schema as it was given, and those that it refers to."""
        found: list[Mapping[str, Any]] = []
        todo = [given]
        while todo and len(found) < MAX_LEVELS:
            each = todo.pop(0)
            if not isinstance(each, Mapping):
                continue
            found.append(each)
            todo += [self._referred(each.get("$ref"))]
            todo += [one for key in ("allOf", "anyOf", "oneOf") if isinstance(each.get(key), list) for one in each[key]]
        return found

    def _referred(self, reference: Any) -> Any:
        """Return what a reference to a place in the schema leads to; None for any other one."""
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return None
        found: Any = self._parameters
        for name in reference[2:].split("/"):
            found = found.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(found, Mapping) else None
        return found


def _kind_of(shapes: list[Shape]) -> str:
    """Return the one type that says most of the alternatives of a schema."""
    kinds = {shape["type"] for shape in shapes}
    return "string" if kinds >= _ANY_VALUE else next((each for each in _BY_WEIGHT if each in kinds), "string")
