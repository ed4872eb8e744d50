"""The rules of a JSON Schema that a grammar cannot hold, or only some values of.

Each check reads one schema that has its rules alone. It calls ``refuse(place, problem)``, which may raise; where it returns,
the check takes the rule out of the schema.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, TypeAlias

from .patterns import pattern_problem
from .schema_references import walk

__all__ = [
    "FORMATS", "MAX_MULTIPLE", "MAX_OPTIONAL", "MAX_PATTERNS", "MAX_PATTERN_PROPERTIES", "Refuse", "check_combined",
    "check_rules", "check_values", "is_names",
]  # fmt: skip

Refuse: TypeAlias = Callable[[str, str], None]

MAX_PATTERNS = 8
"""Patterns and formats that one text must satisfy at once (by allOf): llguidance's time doubles with each."""

MAX_MULTIPLE = 10_000
"""The largest ``multipleOf``, without its point: llguidance makes that number of states."""

MAX_PATTERN_PROPERTIES = 32
"""Patterns of one object's property names; llguidance compares each with every other."""

MAX_OPTIONAL = 400
"""Optional properties of one object: llguidance follows all combinations at once."""

MAX_LEVELS = 128
"""Alternatives and references that lead to one another for one value: llguidance follows them by recursion."""

FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"]
)
"""The values of ``format`` that are supported."""

_TYPES = frozenset(["string", "number", "integer", "boolean", "null", "object", "array"])
_COUNTS = ("Length", "Items", "Properties", "Contains")
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_LARGEST = 1e300
"""The largest number: llguidance reads numbers as float64."""


def check_rules(schema: dict[str, Any], place: str, refuse: Refuse) -> None:
    """Check all rules of one schema."""
    check_values(schema, place, refuse)
    _check_words(schema, place, refuse)
    _check_properties(schema, place, refuse)


def check_values(schema: dict[str, Any], place: str, refuse: Refuse) -> None:
    """Check that the rules for the value itself are rules: types, listed values, counts and limits."""
    _check_types(schema, place, refuse)
    _check_counts(schema, place, refuse)
    _check_numbers(schema, place, refuse)


def _check_types(schema: dict[str, Any], place: str, refuse: Refuse) -> None:
    types = schema.get("type", [])
    for each in types if isinstance(types, list) else [types]:
        if not isinstance(each, str) or each not in _TYPES:
            refuse(f"{place}/type", f"there is no type {_shown(each)}")
            schema.pop("type", None)
    values = schema.get("enum")
    if values == [] or ("enum" in schema and not isinstance(values, list)):
        refuse(f"{place}/enum", "must not be empty" if values == [] else f"must be a list, not {_shown(values)}")
        del schema["enum"]


def _check_counts(schema: dict[str, Any], place: str, refuse: Refuse) -> None:
    """Refuse lengths that are not whole numbers; make the others ints."""
    for what in _COUNTS:
        for key in (f"min{what}", f"max{what}"):
            count = schema.get(key, 0)
            if not _is_number(count) or not 0 <= count <= _LARGEST or count != int(count):
                refuse(f"{place}/{key}", f"must be a whole number from 0, not {_shown(count)}")
                del schema[key]
            elif key in schema:
                schema[key] = int(count)
        _check_order(schema, place, f"min{what}", f"max{what}", refuse)


def _check_numbers(schema: dict[str, Any], place: str, refuse: Refuse) -> None:
    for key in _LIMITS:
        _read_draft_4(schema, key)
        if key in schema and not (_is_number(schema[key]) and abs(schema[key]) <= _LARGEST):
            refuse(f"{place}/{key}", f"must be a number, not {_shown(schema[key])}")
            del schema[key]
    for low in ("minimum", "exclusiveMinimum"):
        for high in ("maximum", "exclusiveMaximum"):
            _check_order(schema, place, low, high, refuse)
    multiple = schema.get("multipleOf", 1)
    if not _is_number(multiple) or not 0 < multiple <= _LARGEST:
        refuse(f"{place}/multipleOf", f"must be a number larger than 0, not {_shown(multiple)}")
        del schema["multipleOf"]


def _read_draft_4(schema: dict[str, Any], key: str) -> None:
    """Make ``exclusiveMinimum: true`` of draft 4, which says how ``minimum`` is meant, a limit of its own."""
    if key.startswith("exclusive") and isinstance(schema.get(key), bool):
        inclusive = key.removeprefix("exclusive").lower()
        if schema.pop(key) and inclusive in schema:
            schema[key] = schema.pop(inclusive)


def _check_words(schema: dict[str, Any], place: str, refuse: Refuse) -> None:
    form = schema.get("format")
    if "format" in schema and form not in FORMATS:
        known = ", ".join(sorted(FORMATS - {"unknown"}))
        refuse(f"{place}/format", f"the format {_shown(form)} is not supported; there are {known}")
        del schema["format"]
    pattern = schema.get("pattern")
    if "pattern" in schema and (problem := pattern_problem(pattern)):
        refuse(f"{place}/pattern", problem)
        del schema["pattern"]


def _check_properties(schema: dict[str, Any], place: str, refuse: Refuse) -> None:
    """Refuse objects of which llguidance would follow too many ways, or count a property twice."""
    for pattern in [each for each in schema.get("patternProperties", ()) if pattern_problem(each)]:
        refuse(f"{place}/patternProperties/{pattern}", pattern_problem(pattern))
        del schema["patternProperties"][pattern]
    if len(schema.get("patternProperties", ())) > MAX_PATTERN_PROPERTIES:
        refuse(f"{place}/patternProperties", f"more than {MAX_PATTERN_PROPERTIES}")
        del schema["patternProperties"]
    required = _required_names(schema, place, refuse)
    optional = set(schema.get("properties", ())) - set(required)
    if len(optional) > MAX_OPTIONAL:
        refuse(f"{place}/properties", f"more than {MAX_OPTIONAL} of them may be left out")
        schema["properties"] = dict(list(schema["properties"].items())[:MAX_OPTIONAL])
    _check_property_counts(schema, place, required, optional, refuse)


def _required_names(schema: dict[str, Any], place: str, refuse: Refuse) -> list[str]:
    """Return the names that are required, of which each must be allowed."""
    required: list[str] = schema.get("required", [])
    if not is_names(required):
        refuse(f"{place}/required", f"must be a list of names, not {_shown(required)}")
        del schema["required"]
        return []
    if schema.get("additionalProperties") is not False or schema.get("patternProperties"):
        return required
    for name in [each for each in dict.fromkeys(required) if each not in schema.get("properties", ())]:
        refuse(f"{place}/required", f"{_shown(name)} is not among the properties, and no others are allowed")
        schema["required"] = [each for each in schema["required"] if each != name]
    return schema["required"] if required else []


def _check_property_counts(
    schema: dict[str, Any], place: str, required: list[str], optional: set[str], refuse: Refuse
) -> None:
    if schema.get("minProperties", 0) > max(1, len(set(required))):
        # Names that are not listed may come twice, and a reader of the JSON counts them as one property.
        refuse(f"{place}/minProperties", "'minProperties' of more than 1, and more than are required, is not supported")
        del schema["minProperties"]
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    most = schema.get("maxProperties", len(required) + len(optional))
    if (
        "maxProperties" in schema
        and (optional or not closed)
        and not (closed and most >= len(required) + len(optional))
    ):
        refuse(f"{place}/maxProperties", "'maxProperties' is not supported where properties may be left out or added")
        del schema["maxProperties"]


def is_names(value: Any) -> bool:
    """Return whether a value of JSON is a list of names."""
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return json.dumps(value)[:40]


def _check_order(schema: dict[str, Any], place: str, low: str, high: str, refuse: Refuse) -> None:
    if low in schema and high in schema and schema[low] > schema[high]:
        refuse(f"{place}/{low}", f"is {schema[low]}, and {high} is {schema[high]}")
        del schema[low], schema[high]


# Rules that add up ---------------------------------------------------------------------------------------------------


def check_combined(document: dict[str, Any], refuse: Refuse, places: Mapping[str, str]) -> None:
    """Check that no text must satisfy more patterns, and no number a larger multiple, than llguidance can follow.

    Args:
        document: a clean schema, whose references lead to ``$defs``.
        refuse: as above.
        places: the places of the definitions, by their names.
    """
    known: dict[str, tuple[int, int]] = {}
    for place, schema in list(walk(document, places)):
        try:
            n_patterns, multiple = _together(schema, document, known, 0)
        except RecursionError:
            n_patterns, multiple = 0, MAX_MULTIPLE + 1
            refuse(place, f"alternatives and references lead deeper than {MAX_LEVELS}")
        if n_patterns > MAX_PATTERNS:
            refuse(place, f"more than {MAX_PATTERNS} patterns and formats for one text")
        if multiple > MAX_MULTIPLE:
            told = f"may be {MAX_MULTIPLE:,} at most, without a point, and all for one number multiplied"
            refuse(place, f"'multipleOf' {told}")
        if n_patterns > MAX_PATTERNS or multiple > MAX_MULTIPLE:
            kept: dict[str, Any] = {key: schema[key] for key in ("type", "$defs") if key in schema}
            schema.clear()
            schema.update(kept)


def _together(schema: Any, root: dict[str, Any], known: dict[str, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Return how many patterns and formats one text must satisfy under a schema, and the product of its multiples.

    ``known`` has the results of references. Raises RecursionError where alternatives and references lead too deep.
    """
    if depth > MAX_LEVELS:
        raise RecursionError
    if not isinstance(schema, dict):
        return 0, 1
    n, multiple = ("pattern" in schema) + ("format" in schema), 1
    if "multipleOf" in schema:
        digits = Decimal(str(schema["multipleOf"])).normalize().as_tuple().digits
        multiple = int("".join(map(str, digits[:9])))
    parts = [_together(each, root, known, depth + 1) for each in schema.get("allOf", ())]
    ways = [_together(each, root, known, depth + 1) for key in ("anyOf", "oneOf") for each in schema.get(key, ())]
    if ways:
        parts.append((max(way[0] for way in ways), max(way[1] for way in ways)))
    reference = schema.get("$ref")
    if reference is not None:
        if reference not in known:
            known[reference] = 0, 1  # for a reference that leads back to itself
            known[reference] = _together(root["$defs"][reference.removeprefix("#/$defs/")], root, known, depth + 1)
        parts.append(known[reference])
    for more, factor in parts:
        n, multiple = min(n + more, MAX_PATTERNS + 1), min(multiple * factor, MAX_MULTIPLE + 1)
    return n, multiple
