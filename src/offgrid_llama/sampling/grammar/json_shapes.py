"""Shapes: a JSON Schema as a list of alternatives, each for one type of value and without references.

``{"type": ["string", "null"], "anyOf": [{"minLength": 2}, {"pattern": "^a"}]}`` has three: two of a string, and null. Code
that must know a value's type before it is read, or writes values in another way than JSON, goes by the shapes of its schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from offgrid_llama.errors import GrammarError

from .patterns import matches

__all__ = ["KIND_OF", "Shape", "Shapes", "TooManyShapesError", "is_multiple", "json_key", "property_schema"]

Shape = dict[str, Any]
"""A schema with one ``type``, and only the rules of that type. Further patterns and multiples are in ``allOf``."""

MAX_SHAPES = 256

KIND_OF: dict[type, str] = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
"""The types of JSON Schema, by the Python type of a value."""

_KINDS = frozenset(["string", "boolean", "number", "array", "object", "null"])
_NUMBER = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_RULES: dict[str, tuple[str, ...]] = {
    "string": ("minLength", "maxLength", "pattern", "format"), "number": _NUMBER, "integer": _NUMBER, "boolean": (),
    "null": (),
    "array": ("prefixItems", "items", "minItems", "maxItems"),
    "object": (
        "properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties",
    ),
}  # fmt: skip
_OBJECT_PARTS = frozenset(["properties", "additionalProperties", "patternProperties"])


class TooManyShapesError(GrammarError):
    """A schema has more alternatives than can be followed."""


class _Part:
    """Rules of one alternative, for some kinds of values."""

    __slots__ = ("kinds", "rules")

    def __init__(self, kinds: frozenset[str] = _KINDS, rules: Mapping[str, Any] | None = None) -> None:
        self.kinds = kinds
        self.rules = rules or {}


class Shapes:
    """Finds the shapes of the schemas of one document.

    Args:
        document: a schema as ``read_schema`` gives it.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._definitions: Mapping[str, Any] = document.get("$defs", {})
        self._known: dict[int, tuple[Any, list[Shape]]] = {}

    def of(self, schema: Any) -> list[Shape]:
        """Return the shapes of a schema in the document.

        Raises TooManyShapesError for more than 256, and for schemas that lead deeper than can be followed.
        """
        known = self._known.get(id(schema))
        if known is None:
            parts = self._parts(schema, frozenset(), 0)
            shapes = [shape for part in parts for shape in self._split(part)]
            known = self._known[id(schema)] = schema, shapes
        return known[1]

    def kinds(self, schema: Any) -> frozenset[str]:
        """Return the types of the values that a schema allows."""
        return frozenset(shape["type"] for shape in self.of(schema))

    def _parts(self, schema: Any, path: frozenset[str], depth: int) -> list[_Part]:
        """Return the alternatives of a schema; ``path`` has the references that have led to it."""
        if isinstance(schema, bool):
            return [_Part()] if schema else []
        if depth > 2 * 64:
            raise TooManyShapesError("references and alternatives lead deeper than 128")
        found = [_own_part(schema)]
        reference = schema.get("$ref")
        if reference is not None:
            name = reference.removeprefix("#/$defs/")
            # A reference that leads back to itself allows nothing that its other alternatives do not.
            target = [] if name in path else self._parts(self._definitions[name], path | {name}, depth + 1)
            found = _combined(found, target)
        for each in schema.get("allOf", ()):
            found = _combined(found, self._parts(each, path, depth + 1))
        for key in ("anyOf", "oneOf"):
            if key in schema:
                found = _combined(found, [part for each in schema[key] for part in self._parts(each, path, depth + 1)])
        return found

    def _split(self, part: _Part) -> Iterable[Shape]:
        """Yield the shapes of an alternative, one for each type."""
        for kind in sorted(part.kinds):
            names = (*_RULES[kind], "allOf", "enum")
            shape: Shape = {"type": kind, **{key: part.rules[key] for key in names if key in part.rules}}
            if "enum" in shape:
                rules = {key: value for key, value in shape.items() if key != "enum"}
                shape = {"type": kind, "enum": [value for value in shape["enum"] if self._fits(value, rules)]}
            if shape.get("enum") != [] and not self._is_empty(shape):
                yield shape

    def _is_empty(self, shape: Shape) -> bool:
        """Return whether no value has this shape, by its lengths and its required properties."""
        for what in ("Length", "Items", "Properties"):
            if shape.get(f"min{what}", 0) > shape.get(f"max{what}", float("inf")):
                return True
        return any(property_schema(shape, name) is False for name in shape.get("required", ()))

    # Values ---------------------------------------------------------------------------------------------------------

    def fits(self, value: Any, schema: Any) -> bool:
        """Return whether a value of JSON is valid under a schema. Formats are not looked at."""
        return any(self._fits(value, shape) for shape in self.of(schema))

    def _fits(self, value: Any, shape: Shape) -> bool:
        kind = KIND_OF[type(value)]
        if kind == "number" and value.is_integer():
            kind = "integer"
        if kind != shape["type"] and (kind, shape["type"]) != ("integer", "number"):
            return False
        if "enum" in shape:
            return json_key(value) in {json_key(each) for each in shape["enum"]}
        rules = [shape, *shape.get("allOf", ())]
        if kind == "string":
            return all(_string_fits(value, each) for each in rules)
        if kind in ("number", "integer"):
            return all(_number_fits(value, each) for each in rules)
        if kind == "array":
            return self._array_fits(value, shape)
        return kind != "object" or self._object_fits(value, shape)

    def _array_fits(self, value: Sequence[Any], shape: Shape) -> bool:
        if not shape.get("minItems", 0) <= len(value) <= shape.get("maxItems", len(value)):
            return False
        first = shape.get("prefixItems", [])
        schemas = [*first, *[shape.get("items", True)] * (len(value) - len(first))]
        return all(self.fits(each, schema) for each, schema in zip(value, schemas, strict=False))

    def _object_fits(self, value: Mapping[str, Any], shape: Shape) -> bool:
        if not shape.get("minProperties", 0) <= len(value) <= shape.get("maxProperties", len(value)):
            return False
        if any(name not in value for name in shape.get("required", ())):
            return False
        return all(self.fits(each, property_schema(shape, name)) for name, each in value.items())

    # Shapes that exclude each other ---------------------------------------------------------------------------------

    def exclude_each_other(self, a: Any, b: Any, depth: int = 0) -> bool:
        """Return whether it is certain that no value is valid under both of two schemas."""
        return all(self._disjoint(one, other, depth) for one in self.of(a) for other in self.of(b))

    def _disjoint(self, a: Shape, b: Shape, depth: int) -> bool:
        if _common_kinds(frozenset([a["type"]]), frozenset([b["type"]])) == frozenset():
            return True
        if "enum" in a or "enum" in b:
            values, other = (a["enum"], b) if "enum" in a else (b["enum"], a)
            return not any(self._fits(value, other) for value in values)
        merged = _merged(a, b)
        if merged is None or self._is_empty(merged) or _has_no_number(merged):
            return True
        if a["type"] != "object" or depth > 8:
            return False
        both = {*a.get("required", ()), *b.get("required", ())}
        return any(
            self.exclude_each_other(property_schema(a, name), property_schema(b, name), depth + 1) for name in both
        )


def property_schema(shape: Shape, name: str) -> Any:
    """Return the schema of a property of an object."""
    found = [shape["properties"][name]] if name in shape.get("properties", ()) else []
    found += [each for pattern, each in shape.get("patternProperties", {}).items() if matches(pattern, name)]
    return _both(*found) if found else shape.get("additionalProperties", True)


def _own_part(schema: Mapping[str, Any]) -> _Part:
    """Return the rules of a schema itself."""
    rules = {
        key: value for key, value in schema.items() if key not in ("type", "$ref", "allOf", "anyOf", "oneOf", "$defs")
    }
    types = schema.get("type", _KINDS)
    kinds = frozenset([types] if isinstance(types, str) else types)
    if "const" in rules:
        constant = rules.pop("const")
        listed = rules.get("enum")
        rules["enum"] = (
            [constant] if listed is None or json_key(constant) in {json_key(each) for each in listed} else []
        )
    if isinstance(rules.get("items"), list):
        rules["prefixItems"] = rules.pop("items")
        if "additionalItems" in rules:
            rules["items"] = rules.pop("additionalItems")
    rules.pop("additionalItems", None)
    return _Part(kinds - {"integer"} if "number" in kinds else kinds, rules)


def _combined(some: Sequence[_Part], others: Sequence[_Part]) -> list[_Part]:
    """Return the alternatives of values that fit one of each of two lists."""
    if len(some) * len(others) > MAX_SHAPES:
        raise TooManyShapesError(f"more than {MAX_SHAPES} combinations of alternatives")
    found = []
    for a in some:
        for b in others:
            kinds = _common_kinds(a.kinds, b.kinds)
            rules = _merged(a.rules, b.rules) if kinds else None
            if rules is not None:
                found.append(_Part(kinds, rules))
    return found


def _common_kinds(a: frozenset[str], b: frozenset[str]) -> frozenset[str]:
    integers = {"integer"} if ("integer" in a and "number" in b) or ("number" in a and "integer" in b) else set()
    return (a & b) | integers


def _merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> Shape | None:
    """Return the rules of two schemas together; None where nothing fulfills both."""
    if not a or not b:
        return dict(a or b)
    found: Shape = dict(a)
    for key in b.keys() - _OBJECT_PARTS - {"prefixItems", "items", "type"}:
        if key not in a:
            found[key] = b[key]
        elif key in _MERGED:
            found[key] = _MERGED[key](a[key], b[key])
    # Two patterns or multiples cannot be written as one.
    others = [{key: b[key]} for key in b.keys() & a.keys() & _SINGLE if a[key] != b[key]]
    if others:
        found["allOf"] = [*found.get("allOf", ()), *others]
    _merge_items(found, a, b)
    _merge_properties(found, a, b)
    return None if found.get("enum") == [] else found


def _in_both(values: Sequence[Any], others: Sequence[Any]) -> list[Any]:
    wanted = {json_key(each) for each in others}
    return [each for each in values if json_key(each) in wanted]


_SINGLE = frozenset(["pattern", "format", "multipleOf"])
_MERGED: dict[str, Callable[[Any, Any], Any]] = {
    **dict.fromkeys(("minLength", "minItems", "minProperties", "minimum", "exclusiveMinimum"), max),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties", "maximum", "exclusiveMaximum"), min),
    "enum": _in_both,
    "required": lambda names, others: list(dict.fromkeys([*names, *others])),
    "allOf": lambda rules, others: [*rules, *others],
}
"""How two values of a keyword become one."""


def _merge_items(found: Shape, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    if not {"prefixItems", "items"} & b.keys():
        return
    first, second = a.get("prefixItems", []), b.get("prefixItems", [])
    n = max(len(first), len(second))
    rest = a.get("items", True), b.get("items", True)
    firsts = [*first, *[rest[0]] * (n - len(first))], [*second, *[rest[1]] * (n - len(second))]
    if n:
        found["prefixItems"] = [_both(*each) for each in zip(*firsts, strict=True)]
    found["items"] = _both(*rest)


def _merge_properties(found: Shape, a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    if not _OBJECT_PARTS & b.keys():
        return
    names = dict.fromkeys([*a.get("properties", ()), *b.get("properties", ())])
    patterns = {**a.get("patternProperties", {}), **b.get("patternProperties", {})}
    rest = _both(a.get("additionalProperties", True), b.get("additionalProperties", True))
    if patterns and rest is not True and a.get("patternProperties") != b.get("patternProperties"):
        raise TooManyShapesError("'patternProperties' beside 'additionalProperties' of another schema")
    if names:
        found["properties"] = {
            name: _both(property_schema(dict(a), name), property_schema(dict(b), name)) for name in names
        }
    if patterns:
        shared = a.get("patternProperties", {}).keys() & b.get("patternProperties", {}).keys()
        found["patternProperties"] = {
            pattern: _both(a["patternProperties"][pattern], each) if pattern in shared else each
            for pattern, each in patterns.items()
        }
    if rest is not True:
        found["additionalProperties"] = rest


def _both(*schemas: Any) -> Any:
    """Return the schema of values that are valid under all of some."""
    found = [each for each in schemas if each is not True and each != {}]
    if any(each is False for each in found):
        return False
    if all(each == found[0] for each in found):
        return found[0] if found else True
    return {"allOf": found}


def _has_no_number(shape: Shape) -> bool:
    """Return whether no number is within the limits."""
    low, high = shape.get("minimum", float("-inf")), shape.get("maximum", float("inf"))
    above, below = shape.get("exclusiveMinimum", float("-inf")), shape.get("exclusiveMaximum", float("inf"))
    return bool(max(low, above) > min(high, below) or above >= high or low >= below or above >= below)


def json_key(value: Any) -> str:
    """Return a text that is the same for values that are equal in JSON Schema."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{','.join(map(json_key, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(sorted(f'{json.dumps(name)}:{json_key(each)}' for name, each in value.items()))}}}"
    return json.dumps(value)


def _string_fits(value: str, rules: Mapping[str, Any]) -> bool:
    if not rules.get("minLength", 0) <= len(value) <= rules.get("maxLength", len(value)):
        return False
    return "pattern" not in rules or matches(rules["pattern"], value)


def _number_fits(value: float, rules: Mapping[str, Any]) -> bool:
    if not rules.get("minimum", value) <= value <= rules.get("maximum", value):
        return False
    if value <= rules.get("exclusiveMinimum", float("-inf")) or value >= rules.get("exclusiveMaximum", float("inf")):
        return False
    return "multipleOf" not in rules or is_multiple(value, rules["multipleOf"])


def is_multiple(value: float, of: float) -> bool:
    """Return whether a number is a whole multiple of another one, both as they are written in decimals."""
    try:
        return Fraction(str(value)) % Fraction(str(of)) == 0
    except ValueError:  # an infinite number, as Python reads 1e999
        return False
