"""``oneOf`` of a JSON Schema as ``anyOf``, where the alternatives exclude each other or can be made to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from offgrid_llama.errors import GrammarError

from .json_shapes import Shape, Shapes, json_key
from .schema_references import walk
from .schema_rules import Refuse

__all__ = ["read_choices"]

_MAX_COMPARED = 32
"""The alternatives that are compared each with each. More must differ by a property of constants."""


def read_choices(document: dict[str, Any], refuse: Refuse, places: Mapping[str, str]) -> None:
    """Write each ``oneOf`` of a document as ``anyOf``; refuse one whose alternatives are not known to exclude each other.

    Alternatives that differ by the constants of a property exclude each other where all have it: it becomes required.
    """
    shapes = Shapes(document)
    for place, schema in list(walk(document, places)):
        if "oneOf" not in schema:
            continue
        try:
            ways = _apart(schema["oneOf"], shapes, document.get("$defs", {}))
        except GrammarError:
            ways = None
        if ways is None:
            refuse(
                f"{place}/oneOf", "the alternatives are not known to exclude each other; use anyOf, or give each of them a "
                "required property with a const of its own",
            )  # fmt: skip
            ways = schema["oneOf"]
        del schema["oneOf"]
        if "anyOf" in schema:
            schema["allOf"] = [*schema.get("allOf", ()), {"anyOf": ways}]
        else:
            schema["anyOf"] = ways


def _apart(ways: Sequence[Any], shapes: Shapes, definitions: Mapping[str, Any]) -> Sequence[Any] | None:
    """Return alternatives that exclude each other; None where they are not known to."""
    found = [shapes.of(way) for way in ways]
    for name in found[0][0].get("properties", ()) if found[0] else ():
        values = [_constants(each, name, shapes) for each in found]
        if all(values) and sum(map(len, values)) == len(set().union(*values)):
            return [_with_required(way, name, definitions) for way in ways]
    if len(ways) <= _MAX_COMPARED and all(shapes.exclude_each_other(a, b) for a, b in combinations(ways, 2)):
        return ways
    return None


def _constants(some: Sequence[Shape], name: str, shapes: Shapes) -> set[str]:
    """Return the values that a property of some shapes may have, as keys; an empty set where they are not all listed."""
    found: set[str] = set()
    for shape in some:
        ways = shapes.of(shape["properties"][name]) if name in shape.get("properties", ()) else []
        if not ways or any("enum" not in way for way in ways):
            return set()
        found.update(json_key(value) for way in ways for value in way["enum"])
    return found


def _with_required(way: Any, name: str, definitions: Mapping[str, Any]) -> Any:
    """Return a schema that requires a property, too."""
    schema = definitions[way["$ref"].removeprefix("#/$defs/")] if way.keys() == {"$ref"} else way
    if name in schema.get("required", ()):
        return way
    if "properties" in schema:
        return {**schema, "required": [*schema.get("required", ()), name]}
    return {"allOf": [way, {"required": [name]}]}
