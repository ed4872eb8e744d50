"""Read a JSON Schema before a grammar is made of it.

The keywords are those of JSON Schema 2020-12, and of earlier drafts where they differ. A schema is taken as a description of
the text to write: objects have the properties that it lists, and others only where it mentions others.

A user's own schema is read strictly: rules that no grammar can hold are refused by name and place. The schemas of tools come
from third parties: there, such rules are left out, and told. Both give the same kind of document, with plain rules and with
every reference led to a definition in ``$defs``, so that each part of it, with ``$defs``, means the same by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offgrid_llama.errors import GrammarError

from .json_shapes import Shapes
from .patterns import matching, schema_problem
from .schema_choices import read_choices
from .schema_ends import endless, without
from .schema_references import IN_PLACE, LISTS, MAPS, NOTES, ONE, Definitions, walk
from .schema_rules import (
    FORMATS,
    MAX_MULTIPLE,
    MAX_OPTIONAL,
    MAX_PATTERN_PROPERTIES,
    MAX_PATTERNS,
    check_combined,
    check_rules,
)  # fmt: skip

__all__ = [
    "FORMATS", "MAX_BYTES", "MAX_DEPTH", "MAX_MULTIPLE", "MAX_OPTIONAL", "MAX_PATTERNS", "MAX_PATTERN_PROPERTIES",
    "LooseSchema", "read_loosely", "read_schema",
]  # fmt: skip

MAX_BYTES = 64 * 1024
MAX_WHOLE = 256 * 1024
"""Characters of a schema that values can be checked against, where no grammar holds all of it."""
MAX_DEPTH = 64
"""Nesting of the schema's own JSON."""
MAX_TOLD = 16
"""The rules of one schema that are named as left out; the others are counted."""

_RULES = frozenset(
    [
        "type", "const", "enum", "minItems", "maxItems", "required", "minProperties", "maxProperties", "minLength",
        "maxLength", "pattern", "format", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    ]
)  # fmt: skip
_SCHEMAS = (ONE | LISTS | MAPS) - NOTES
"""Keywords with schemas."""
_NOT_HELD = frozenset(
    [
        "not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames", "uniqueItems",
        "unevaluatedItems", "unevaluatedProperties", "dependentRequired", "dependentSchemas", "dependencies",
        "$dynamicRef", "$recursiveRef", "disallow", "extends", "divisibleBy",
    ]
)  # fmt: skip
"""Rules of some draft that no grammar here can hold. Other unknown keywords are notes."""


@dataclass(frozen=True)
class LooseSchema:
    """A schema of a third party, as far as a grammar can hold it.

    Attributes:
        document: the rules, with references into ``$defs``.
        left_out: the rules that are not held, each as ``/place: problem``.
        whole: the schema as it came, where rules are left out and values can be checked against all of them; else None.
    """

    document: dict[str, Any]
    left_out: tuple[str, ...] = ()
    whole: dict[str, Any] | None = None


def read_schema(schema: object) -> dict[str, Any]:
    """Return a schema as plain JSON, without annotations; references lead to ``$defs``.

    Args:
        schema: a mapping, True (anything), or either of these as JSON text.

    Raises GrammarError that names the place, as a JSON pointer, for anything that is not a schema, for keywords that are not
    supported, and for limits: 64 KiB, 64 levels.
    """
    reader = _Reader(strict=True)
    plain = reader.plain(_parsed(schema), "", 0)
    size = len(json.dumps(plain))
    if size > MAX_BYTES:
        raise GrammarError(f"the schema has {size:,} characters; the limit is {MAX_BYTES:,}")
    return reader.document(plain)


def read_loosely(text: str, kind: str) -> LooseSchema:
    """Return the schema of a third party, without the rules that cannot be held. It raises nothing.

    Args:
        text: the schema as JSON.
        kind: the type of the values that it is for, such as "object"; they are closed, unless it mentions more properties.
    """
    reader = _Reader(strict=False)
    whole: Any = None
    try:
        plain = reader.plain(json.loads(text), "", 0)
        whole = plain if isinstance(plain, dict) and len(text) <= MAX_WHOLE and not reader.told() else None
        document = _of_kind(reader.document(plain), kind)
        size = len(json.dumps(document))
        problem = (
            f"has {size:,} characters; the limit is {MAX_BYTES:,}" if size > MAX_BYTES else schema_problem(document)
        )
    except _AllowsNothingError as error:
        whole, problem = None, str(error)  # it is no schema of such values
    except (GrammarError, ValueError, RecursionError) as error:
        problem = str(error)
    if problem:
        return LooseSchema({"type": kind}, (f"/: {problem}",), whole)
    left_out = reader.told()
    return LooseSchema(document, left_out, whole if left_out and not reader.allows_nothing else None)


class _AllowsNothingError(GrammarError):
    """A schema allows no value of the type that it is for."""


def _of_kind(document: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return a document for values of one type. Raises GrammarError where it allows none, or has too many alternatives."""
    shapes = [shape for shape in Shapes(document).of(document) if shape["type"] == kind]
    if not shapes:
        raise _AllowsNothingError(f"allows no {kind}")
    if not {"anyOf", "allOf", "$ref"} & document.keys():
        return {**document, "type": kind}
    # Schemas that describe a value together are open. Their alternatives, written out, are closed again.
    ways = [_closed(shape) if "properties" in shape and "patternProperties" not in shape else shape for shape in shapes]
    definitions = {"$defs": document["$defs"]} if "$defs" in document else {}
    return {**(ways[0] if len(ways) == 1 else {"anyOf": ways}), **definitions}


def _parsed(schema: object) -> object:
    """Return a schema given as JSON text as its value, any other as it is."""
    if not isinstance(schema, (str, bytes)):
        return schema
    if len(schema) > MAX_BYTES:
        raise GrammarError(f"the schema has {len(schema):,} characters; the limit is {MAX_BYTES:,}")
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is no JSON: {error}") from error


class _Reader:
    """Reads one schema, strictly or not.

    Attributes:
        allows_nothing: whether it is known that the schema allows no value.
    """

    def __init__(self, *, strict: bool) -> None:
        self.allows_nothing = False
        self._strict = strict
        self._left_out: list[str] = []

    def refuse(self, place: str, problem: str) -> None:
        """Raise GrammarError; note the problem instead where the reader is not strict."""
        if self._strict:
            raise GrammarError(f"schema, at {place or '/'}: {problem}")
        self._left_out.append(f"{place[:200] or '/'}: {problem[:200]}")

    def told(self) -> tuple[str, ...]:
        """Return the problems that were noted, up to a limit."""
        found = list(dict.fromkeys(self._left_out))
        more = [f"and {len(found) - MAX_TOLD} more"] if len(found) > MAX_TOLD else []
        return (*found[:MAX_TOLD], *more)

    def plain(self, value: Any, place: str, depth: int) -> Any:
        """Return a copy of JSON values; other values are refused."""
        if depth > MAX_DEPTH:
            self.refuse(place[:200], f"nested deeper than {MAX_DEPTH}")
            return True
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if isinstance(value, Mapping):
            return {
                key: self.plain(item, f"{place}/{key}", depth + 1)
                for key, item in value.items()
                if self._is_key(key, place)
            }
        if isinstance(value, (list, tuple)):
            return [self.plain(item, f"{place}/{at}", depth + 1) for at, item in enumerate(value)]
        is_number = isinstance(value, float)
        self.refuse(
            place, f"{value} is no number of JSON" if is_number else f"must be JSON, not {type(value).__name__}"
        )
        return None

    def _is_key(self, key: object, place: str) -> bool:
        if not isinstance(key, str):
            self.refuse(place, f"keys must be str, not {type(key).__name__}")
        return isinstance(key, str)

    def document(self, root: Any) -> dict[str, Any]:
        """Return a schema that is plain JSON with its rules alone, and the definitions that they refer to."""
        self._definitions = Definitions(root)
        places = self._definitions.places
        found = self._schema(root, "")
        definitions = {name: self._schema(target, places[name]) for name, target in self._definitions.unread()}
        document = self._whole(found, definitions)
        read_choices(document, self.refuse, places)
        check_combined(document, self.refuse, places)
        _close_objects(document, places)
        return document

    def _whole(self, schema: Any, definitions: dict[str, Any]) -> dict[str, Any]:
        """Return a schema with its definitions, without those that allow nothing."""
        gone = endless(definitions)
        for name in gone:
            if definitions[name] is not False:
                told = "leads back to itself each time, so there is no text that fulfills it"
                self.refuse(self._definitions.places[name], told)
        kept = {name: without(gone, each) for name, each in definitions.items() if name not in gone}
        found = without(gone, schema)
        if found is False:
            self.allows_nothing = True
            self.refuse("", "allows no value")
        document = found if isinstance(found, dict) else {}
        return {**document, "$defs": kept} if kept else document

    def _schema(self, schema: Any, place: str) -> Any:
        """Return a schema with its rules alone."""
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, dict):
            self.refuse(place, f"a schema is an object or true, not {json.dumps(schema)[:40]}")
            return True
        clean: dict[str, Any] = {}
        if schema.get("not") in ({}, True) or (
            "$ref" in schema and self._refer(clean, schema, f"{place}/$ref") is False
        ):
            return False
        for key, value in schema.items():
            if key in _RULES:
                clean[key] = value
            elif key in _SCHEMAS:
                self._parts(clean, key, value, f"{place}/{key}")
            elif self._is_rule(key, value):
                self.refuse(f"{place}/{key}", f"{key!r} is not supported")
        if not self._strict and clean.get("format") not in FORMATS:
            clean.pop("format", None)  # an unknown format is a note
        check_rules(clean, place, self.refuse)
        if not self._strict:
            self._leave_out_inner_anchors(clean, place)
        return clean

    def _is_rule(self, key: str, value: Any) -> bool:
        """Return whether a keyword that is not held is a rule: any that is not known to be a note, to a strict reader."""
        if key in NOTES or key.startswith("x-") or (key == "uniqueItems" and value is False):
            return False
        return self._strict or key in _NOT_HELD

    def _leave_out_inner_anchors(self, clean: dict[str, Any], place: str) -> None:
        """Leave out patterns of which texts without quotes cannot be held to."""
        told = "anchors within groups are not supported"
        if "pattern" in clean and matching(clean["pattern"]) is None:
            self.refuse(f"{place}/pattern", told)
            del clean["pattern"]
        for pattern in [each for each in clean.get("patternProperties", ()) if matching(each) is None]:
            self.refuse(f"{place}/patternProperties/{pattern}", told)
            del clean["patternProperties"][pattern]

    def _parts(self, clean: dict[str, Any], key: str, value: Any, at: str) -> None:
        """Read the schemas below a keyword: one, a list of them, or some by name."""
        is_list = key in LISTS or (key == "items" and isinstance(value, list))
        kind = dict if key in MAPS else list
        if (is_list or key in MAPS) and not isinstance(value, kind):
            told = "an object" if kind is dict else "a list"
            return self.refuse(at, f"must be {told}, not {json.dumps(value)[:40]}")
        if key in IN_PLACE and not value:
            return self.refuse(at, "must not be empty")
        if key in MAPS:
            clean[key] = {name: self._schema(each, f"{at}/{name}") for name, each in value.items()}
        elif is_list:
            clean[key] = [self._schema(each, f"{at}/{i}") for i, each in enumerate(value)]
        else:
            clean[key] = self._schema(value, at)
        return None

    def _refer(self, clean: dict[str, Any], schema: dict[str, Any], place: str) -> Any:
        """Lead a reference to a definition, and return what it refers to; True, which allows all, where it leads nowhere."""
        try:
            reference, target = self._definitions.follow(schema)
        except GrammarError as error:
            self.refuse(place, str(error))
            return True
        if not isinstance(target, bool):
            clean["$ref"] = f"#/$defs/{self._definitions.name(reference, target)}"
        return target


def _close_objects(document: dict[str, Any], places: Mapping[str, str]) -> None:
    """Close objects for properties that are not listed, except those that several schemas describe together."""
    found = [schema for _, schema in walk(document, places)]
    open_: set[int] = set()
    waiting: list[Any] = [each for each in found if _composes(each)]
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, dict) and id(schema) not in open_:
            open_.add(id(schema))
            waiting += _same_value(schema, document)
    for schema in found:
        if id(schema) not in open_ and "properties" in schema and not schema.get("patternProperties"):
            schema.update(_closed(schema))


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object without properties that it does not mention, unless it speaks of further ones."""
    if "additionalProperties" in schema:
        return schema
    listed = schema["properties"]
    mentioned = {name: True for name in schema.get("required", ()) if name not in listed}
    return {**schema, "properties": {**listed, **mentioned}, "additionalProperties": False}


def _same_value(schema: dict[str, Any], document: dict[str, Any]) -> Sequence[Any]:
    """Return the schemas that describe the same value as a schema."""
    ways = [each for key in IN_PLACE for each in schema.get(key, ())]
    if "$ref" in schema:
        ways.append(document["$defs"][schema["$ref"].removeprefix("#/$defs/")])
    return ways


def _composes(schema: dict[str, Any]) -> bool:
    """Return whether a schema adds to the properties of another one, which then must stay open for them."""
    parts = [key for key in ("allOf", "anyOf", "oneOf", "$ref") if key in schema]
    return "allOf" in parts or (bool(parts) and (len(parts) > 1 or "properties" in schema))
