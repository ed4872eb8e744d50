"""References: the places of a JSON Schema that its references lead to (pure)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from offgrid_llama.errors import GrammarError

__all__ = ["IN_PLACE", "LISTS", "MAPS", "NOTES", "ONE", "Definitions", "References", "subschemas", "walk"]

ONE = frozenset(["items", "additionalProperties", "additionalItems"])
"""Keywords with one schema; ``items`` may also have a list, in draft 7."""
IN_PLACE = frozenset(["anyOf", "oneOf", "allOf"])
"""Keywords with schemas for the same value."""
LISTS = IN_PLACE | {"prefixItems"}
MAPS = frozenset(["properties", "patternProperties", "$defs", "definitions"])
NOTES = frozenset(
    [
        "$schema", "$id", "id", "$comment", "$anchor", "$vocabulary", "title", "description", "default", "example",
        "examples", "readOnly", "writeOnly", "deprecated", "contentMediaType", "contentEncoding", "contentSchema",
        "discriminator", "$defs", "definitions", "$ref",
    ]
)  # fmt: skip
"""Keywords that are no rules for a value themselves."""


def subschemas(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the schemas directly in a schema, each with its place below that."""
    for key, value in schema.items():
        if key in MAPS and isinstance(value, dict):
            yield from ((f"/{key}/{name}", each) for name, each in value.items())
        elif (key in LISTS or key == "items") and isinstance(value, list):
            yield from ((f"/{key}/{at}", each) for at, each in enumerate(value))
        elif key in ONE:
            yield f"/{key}", value


def walk(document: dict[str, Any], places: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all schemas of a document, each with its place.

    Args:
        document: a schema whose references lead to ``$defs``.
        places: the places of the definitions, by their names.
    """
    waiting: list[tuple[str, Any]] = [("", document)]
    waiting += [(places[name], each) for name, each in document.get("$defs", {}).items()]
    while waiting:
        place, schema = waiting.pop()
        if isinstance(schema, dict):
            yield place, schema
            waiting += [(place + below, each) for below, each in subschemas(schema) if not below.startswith("/$defs/")]


class References:
    """Finds what a reference means: a pointer into its document, an ``$anchor``, or an ``$id`` of the same schema.

    Args:
        root: the schema, as plain JSON. Its objects are told apart by identity, so it must stay as it is.
    """

    def __init__(self, root: Any) -> None:
        self._bases: dict[int, str] = {}
        self._documents: dict[str, Any] = {"": root}
        self._anchors: dict[tuple[str, str], Any] = {}
        waiting = [(root, "")]
        while waiting:
            schema, base = waiting.pop()
            if not isinstance(schema, dict):
                continue
            base = self._index(schema, base)
            waiting += [(each, base) for _, each in subschemas(schema)]

    def _index(self, schema: dict[str, Any], base: str) -> str:
        """Remember the names of one schema; return the base of the references in it."""
        name = schema.get("$id")
        if isinstance(name, str) and not name.startswith("#"):
            base = _joined(base, name)
            self._documents.setdefault(base, schema)
        self._bases[id(schema)] = base
        for anchor in (schema.get("$anchor"), name[1:] if isinstance(name, str) and name.startswith("#") else None):
            if isinstance(anchor, str):
                self._anchors.setdefault((base, anchor), schema)
        return base

    def find(self, reference: str, schema: dict[str, Any]) -> Any:
        """Return what a reference in ``schema`` leads to. Raises KeyError where it leads nowhere."""
        base, fragment = urldefrag(_joined(self._bases.get(id(schema), ""), reference))
        found = self._documents[base]
        if fragment and not fragment.startswith("/"):
            return self._anchors[base, fragment]
        for key in unquote(fragment).split("/")[1:]:
            name = key.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            elif isinstance(found, dict) and name in found:
                found = found[name]
            else:
                raise KeyError(reference)
        return found


class Definitions:
    """The schemas that the references of a document lead to, each with a name of its own.

    Args:
        root: as for References.

    Attributes:
        places: the places of the schemas, by their names.
    """

    def __init__(self, root: Any) -> None:
        self.places: dict[str, str] = {}
        self._references = References(root)
        self._names: dict[int, str] = {}  # by the identity of the schemas
        self._unread: list[tuple[str, Any]] = []

    def follow(self, schema: dict[str, Any]) -> tuple[str, Any]:
        """Return the last reference, and what it leads to: a reference to nothing but another reference is followed.

        Raises GrammarError for one that leads nowhere, or back to itself.
        """
        seen: set[int] = set()
        while True:
            reference = schema["$ref"]
            try:
                target = self._references.find(reference, schema)
            except (KeyError, TypeError, AttributeError):
                inside = isinstance(reference, str) and reference.startswith("#")
                told = (
                    f"there is no {reference[:80]!r}" if inside else "must be a reference into the same schema, '#/...'"
                )
                raise GrammarError(told) from None
            if id(target) in seen:
                raise GrammarError("leads back to itself, so there is no text that fulfills it")
            seen.add(id(target))
            if not isinstance(target, dict) or "$ref" not in target or not target.keys() <= NOTES:
                return reference, target
            schema = target

    def name(self, reference: str, target: Any) -> str:
        """Return the name of what a reference leads to."""
        name = self._names.get(id(target))
        if name is None:
            name = self._names[id(target)] = f"d{len(self._names)}"
            self.places[name] = reference.removeprefix("#")
            self._unread.append((name, target))
        return name

    def unread(self) -> Iterator[tuple[str, Any]]:
        """Yield each schema with its name, also those that are named meanwhile."""
        while self._unread:
            yield self._unread.pop()


def _joined(base: str, reference: str) -> str:
    """Return a reference as seen from a base; one that is no URI stays as it is."""
    try:
        return urljoin(base, reference) if base and not reference.startswith("#") else base + reference
    except ValueError:
        return reference
