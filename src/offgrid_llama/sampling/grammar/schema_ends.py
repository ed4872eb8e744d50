"""Definitions of a JSON Schema that allow no value, or none that ends, as each would have to hold another one (pure)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .json_shapes import property_schema
from .schema_references import LISTS, MAPS, ONE

__all__ = ["endless", "without"]


def endless(definitions: Mapping[str, Any]) -> list[str]:
    """Return the names of the definitions that allow no value which ends.

    Args:
        definitions: clean schemas, whose references lead to one another.
    """
    ending: set[str] = set()
    while found := {name for name in definitions.keys() - ending if _ends(definitions[name], ending)}:
        ending |= found
    return [name for name in definitions if name not in ending]


def without(names: Collection[str], schema: Any) -> Any:
    """Return a clean schema in which references to some definitions allow nothing."""
    if not names or not isinstance(schema, dict):
        return schema
    if schema.get("$ref", "").removeprefix("#/$defs/") in names:
        return False
    return {key: _part_without(names, key, value) for key, value in schema.items()}


def _part_without(names: Collection[str], key: str, value: Any) -> Any:
    """Return what stands under a keyword, which may be schemas."""
    if key in MAPS:
        return {name: without(names, each) for name, each in value.items()}
    if key in LISTS or (key == "items" and isinstance(value, list)):
        return [without(names, each) for each in value]
    return without(names, value) if key in ONE else value


def _ends(schema: Any, ending: Collection[str]) -> bool:
    """Return whether a value of a schema may end, where only the values of some definitions are known to."""
    return schema if isinstance(schema, bool) else all(part(schema, ending) for part in (_own_ends, _others_end))


def _own_ends(schema: Mapping[str, Any], ending: Collection[str]) -> bool:
    """Return whether a value may end that only the rules of a schema itself apply to."""
    types = schema.get("type", "any")
    kinds = [types] if isinstance(types, str) else types
    if "enum" in schema or "const" in schema or not _HOLDING.keys() >= set(kinds):
        return True
    return any(_HOLDING[kind](schema, ending) for kind in kinds)


def _others_end(schema: Mapping[str, Any], ending: Collection[str]) -> bool:
    """Return whether a value may end under each of the schemas that apply to it, too."""
    if "$ref" in schema and schema["$ref"].removeprefix("#/$defs/") not in ending:
        return False
    ways = [schema[key] for key in ("anyOf", "oneOf") if key in schema] + [[each] for each in schema.get("allOf", ())]
    return all(any(_ends(each, ending) for each in some) for some in ways)


def _object_ends(schema: Mapping[str, Any], ending: Collection[str]) -> bool:
    return all(_ends(property_schema(dict(schema), name), ending) for name in schema.get("required", ()))


def _list_ends(schema: Mapping[str, Any], ending: Collection[str]) -> bool:
    items, least = schema.get("items", True), schema.get("minItems", 0)
    first = items if isinstance(items, list) else schema.get("prefixItems", [])
    rest = schema.get("additionalItems", True) if isinstance(items, list) else items
    needed = [*first, rest] if least > len(first) else first[:least]
    return all(_ends(each, ending) for each in needed)


_HOLDING = {"object": _object_ends, "array": _list_ends}
"""By the types of values that hold others: whether a value of that type may end."""
