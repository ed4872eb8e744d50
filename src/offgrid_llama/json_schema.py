"""Read a JSON Schema before a grammar is made of it (pure): what no grammar can hold is refused by name and place.

The words are those of JSON Schema 2020-12, and of draft 7 where they were others. A schema is taken as a description of
what is to be written: objects have the properties that it lists, and others only where it speaks of others.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from .errors import GrammarError

__all__ = [
    "FORMATS", "MAX_BYTES", "MAX_DEPTH", "MAX_MULTIPLE", "MAX_OPTIONAL", "MAX_PATTERNS", "MAX_PATTERN_PROPERTIES",
    "read_schema",
]  # fmt: skip

MAX_BYTES = 64 * 1024
MAX_DEPTH = 64
"""Nesting of the schema's own JSON."""

MAX_PATTERNS = 8
"""Patterns and formats that one text must fulfill at once (by allOf): llguidance's time doubles with each."""

MAX_MULTIPLE = 10_000
"""Largest ``multipleOf``, without its point: llguidance makes so many states of it."""

MAX_PATTERN_PROPERTIES = 32
"""Patterns of one object's property names, each of which is compared with each."""

MAX_OPTIONAL = 400
"""Properties of one object that may be left out, of which llguidance must follow all ways at once."""

FORMATS = frozenset(
    ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"]
)
"""What ``format`` may be."""

_ONE = frozenset(["items", "additionalProperties", "additionalItems"])
_LISTS = frozenset(["anyOf", "oneOf", "allOf", "prefixItems"])
_MAPS = frozenset(["properties", "patternProperties", "$defs", "definitions"])
_RULES = frozenset(
    [
        "type", "const", "enum", "$ref", "minItems", "maxItems", "required", "minProperties", "maxProperties", "minLength",
        "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    ]
)  # fmt: skip
_NOTES = frozenset(
    [
        "$schema", "$id", "id", "$comment", "$anchor", "$vocabulary", "title", "description", "default", "example",
        "examples", "readOnly", "writeOnly", "deprecated", "contentMediaType", "contentEncoding", "contentSchema",
        "discriminator",
    ]
)  # fmt: skip
_TYPES = frozenset(["string", "number", "integer", "boolean", "null", "object", "array"])
_COUNTS = ("Length", "Items", "Properties")


def read_schema(schema: object) -> Any:
    """Return a schema as plain JSON, without what only annotates it.

    Args:
        schema: a mapping, True (anything), or either of these as JSON text.

    Raises GrammarError that names the place, as a JSON pointer, for what is no schema, for keywords that are not supported,
    and for limits: 64 KiB, 64 levels.
    """
    if isinstance(schema, (str, bytes)):
        if len(schema) > MAX_BYTES:
            raise GrammarError(f"the schema has {len(schema):,} characters; the limit is {MAX_BYTES:,}")
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise GrammarError(f"the schema is no JSON: {error}") from error
    plain = _plain(schema, "", 0)
    size = len(json.dumps(plain))
    if size > MAX_BYTES:
        raise GrammarError(f"the schema has {size:,} characters; the limit is {MAX_BYTES:,}")
    clean = _clean(plain, "")
    if not isinstance(clean, dict):
        return {}
    known: dict[str, tuple[int, int]] = {}
    for place, each in _places(clean, ""):
        n_patterns, multiple = _together(each, clean, known)
        if n_patterns > MAX_PATTERNS:
            raise _fail(place, f"more than {MAX_PATTERNS} patterns and formats for one text")
        if multiple > MAX_MULTIPLE:
            told = f"may be {MAX_MULTIPLE:,} at most, without a point, and all for one number multiplied"
            raise _fail(place, f"'multipleOf' {told}")
    if not any(_composes(each) for _, each in _places(clean, "")):
        for _, each in _places(clean, ""):
            if "properties" in each and "patternProperties" not in each:
                each.setdefault("additionalProperties", False)
    return clean


def _fail(place: str, problem: str) -> GrammarError:
    return GrammarError(f"schema, at {place or '/'}: {problem}")


def _plain(value: Any, place: str, depth: int) -> Any:
    """Return a copy of JSON values, or raise for others."""
    if depth > MAX_DEPTH:
        raise _fail(place[:200], f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _fail(place, f"{value} is no number of JSON")
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise _fail(place, f"keys must be str, not {type(key).__name__}")
        return {str(key): _plain(item, f"{place}/{key}", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{place}/{at}", depth + 1) for at, item in enumerate(value)]
    raise _fail(place, f"must be JSON, not {type(value).__name__}")


def _clean(schema: Any, place: str) -> Any:
    """Return a schema with the rules alone; raise for what is wrong with it."""
    if schema is False and place:
        return False
    if schema is True:
        return True
    if not isinstance(schema, dict):
        raise _fail(place, f"a schema is an object or true, not {json.dumps(schema)[:40]}")
    clean: dict[str, Any] = {}
    for key, value in schema.items():
        at = f"{place}/{key}"
        if key in _MAPS:
            clean[key] = _each(value, at, dict, lambda items, at: {k: _clean(v, f"{at}/{k}") for k, v in items.items()})
        elif key in _LISTS or (key == "items" and isinstance(value, list)):
            clean[key] = _each(value, at, list, lambda items, at: [_clean(v, f"{at}/{i}") for i, v in enumerate(items)])
            if key in {"anyOf", "oneOf", "allOf"} and not value:
                raise _fail(at, "must not be empty")
        elif key in _ONE:
            clean[key] = _clean(value, at)
        elif key in _RULES:
            clean[key] = value
        elif key == "uniqueItems" and value is False:
            continue
        elif key not in _NOTES and not key.startswith("x-"):
            raise _fail(at, f"{key!r} is not supported")
    _check_rules(clean, place)
    return clean


def _each(value: Any, place: str, kind: type, read: Callable[[Any, str], Any]) -> Any:
    if not isinstance(value, kind):
        raise _fail(place, f"must be {'an object' if kind is dict else 'a list'}, not {json.dumps(value)[:40]}")
    return read(value, place)


def _check_rules(schema: dict[str, Any], place: str) -> None:
    """Raise for rules of which a grammar would make something else, or nothing in reasonable time."""
    types = schema.get("type", [])
    for each in types if isinstance(types, list) else [types]:
        if each not in _TYPES:
            raise _fail(f"{place}/type", f"there is no type {json.dumps(each)[:40]}")
    for what in _COUNTS:
        for key in (f"min{what}", f"max{what}"):
            count = schema.get(key, 0)
            if isinstance(count, bool) or not isinstance(count, (int, float)) or count < 0 or count != int(count):
                raise _fail(f"{place}/{key}", f"must be a whole number from 0, not {json.dumps(count)[:40]}")
            if key in schema:
                schema[key] = int(count)
        _check_order(schema, place, f"min{what}", f"max{what}")
    for low in ("minimum", "exclusiveMinimum"):
        for high in ("maximum", "exclusiveMaximum"):
            _check_order(schema, place, low, high)
    multiple = schema.get("multipleOf", 1)
    if isinstance(multiple, bool) or not isinstance(multiple, (int, float)) or multiple <= 0:
        raise _fail(f"{place}/multipleOf", f"must be a number larger than 0, not {json.dumps(multiple)[:40]}")
    if schema.get("enum") == []:
        raise _fail(f"{place}/enum", "must not be empty")
    form = schema.get("format")
    if form is not None and form not in FORMATS:
        known = ", ".join(sorted(FORMATS - {"unknown"}))
        raise _fail(f"{place}/format", f"the format {json.dumps(form)[:40]} is not supported; there are {known}")
    reference = schema.get("$ref")
    if reference is not None and not (isinstance(reference, str) and reference.startswith("#")):
        raise _fail(f"{place}/$ref", "must be a reference into the same schema, '#/...'")
    listed = set(schema.get("required", ())) if isinstance(schema.get("required", ()), list) else set()
    if len(schema.get("patternProperties", ())) > MAX_PATTERN_PROPERTIES:
        raise _fail(f"{place}/patternProperties", f"more than {MAX_PATTERN_PROPERTIES}")
    if len(set(schema.get("properties", ())) - listed) > MAX_OPTIONAL:
        raise _fail(f"{place}/properties", f"more than {MAX_OPTIONAL} of them may be left out")
    if schema.get("minProperties", 0) > max(1, len(listed)):
        # Names that are not listed may come twice, which is one property for whoever reads them.
        raise _fail(
            f"{place}/minProperties", "'minProperties' of more than 1, and more than are required, is not supported"
        )


def _check_order(schema: dict[str, Any], place: str, low: str, high: str) -> None:
    if low in schema and high in schema:
        for key in (low, high):
            if isinstance(schema[key], bool) or not isinstance(schema[key], (int, float)):
                raise _fail(f"{place}/{key}", f"must be a number, not {json.dumps(schema[key])[:40]}")
        if schema[low] > schema[high]:
            raise _fail(f"{place}/{low}", f"is {schema[low]}, and {high} is {schema[high]}")


def _places(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a clean schema and all in it, with where they stand."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for key, value in schema.items():
        if key in _MAPS:
            for name, each in value.items():
                yield from _places(each, f"{place}/{key}/{name}")
        elif key in _LISTS or (key == "items" and isinstance(value, list)):
            for at, each in enumerate(value):
                yield from _places(each, f"{place}/{key}/{at}")
        elif key in _ONE:
            yield from _places(value, f"{place}/{key}")


def _together(schema: Any, root: dict[str, Any], known: dict[str, tuple[int, int]]) -> tuple[int, int]:
    """Return what one text must fulfill under a schema: how many patterns and formats, and the product of multiples.

    ``known`` is that of references.
    """
    if not isinstance(schema, dict):
        return 0, 1
    n, multiple = ("pattern" in schema) + ("format" in schema), 1
    if "multipleOf" in schema:
        multiple = int("".join(map(str, Decimal(str(schema["multipleOf"])).normalize().as_tuple().digits)))
    parts = [_together(each, root, known) for each in schema.get("allOf", ())]
    ways = [_together(each, root, known) for key in ("anyOf", "oneOf") for each in schema.get(key, ())]
    if ways:
        parts.append((max(way[0] for way in ways), max(way[1] for way in ways)))
    reference = schema.get("$ref")
    if reference is not None:
        if reference not in known:
            known[reference] = 0, 1  # where it comes back to itself
            known[reference] = _together(_target(root, reference), root, known)
        parts.append(known[reference])
    for more, factor in parts:
        n, multiple = min(n + more, MAX_PATTERNS + 1), min(multiple * factor, MAX_MULTIPLE + 1)
    return n, multiple


def _target(root: dict[str, Any], reference: str) -> Any:
    """Return what a reference into the schema points at; None where there is nothing."""
    found: Any = root
    for key in unquote(reference[1:]).split("/")[1:]:
        name = key.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        elif isinstance(found, dict):
            found = found.get(name)
        else:
            return None
    return found


def _composes(schema: dict[str, Any]) -> bool:
    """Return whether a schema adds to the properties of another one, which then must not be closed to others."""
    parts = [key for key in ("allOf", "anyOf", "oneOf", "$ref") if key in schema]
    return "allOf" in parts or (bool(parts) and (len(parts) > 1 or "properties" in schema))
