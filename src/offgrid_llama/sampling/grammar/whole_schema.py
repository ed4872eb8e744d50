"""Read all rules of a JSON Schema, those that no grammar can hold among them, so that values can be checked against it.

The result is a schema of 2020-12 in which every reference leads to ``$defs``: it names no dialect and no other document, so
that each reader goes by this text alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from offgrid_llama.errors import GrammarError

from .schema_references import LISTS, MAPS, NOTES, ONE, Definitions
from .schema_rules import check_values, is_names

__all__ = ["NOTHING", "UNKNOWN", "read_whole"]

UNKNOWN = "$unknown"
"""Stands in a schema for rules that cannot be checked: malformed ones, other documents, and formats, which may be notes."""

NOTHING: dict[str, Any] = {"false": True}
"""Stands for the schema ``false``, with a keyword of its own."""

_VALUES = frozenset(
    [
        "type", "const", "enum", "minItems", "maxItems", "required", "minProperties", "maxProperties", "minLength",
        "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "uniqueItems",
        "minContains", "maxContains", "dependentRequired",
    ]
)  # fmt: skip
_ONE = ONE | {"not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems", "unevaluatedProperties"}
_MAPS = (MAPS - NOTES) | {"dependentSchemas"}
_OTHERS = frozenset(["format", "$dynamicRef", "$recursiveRef", "disallow", "extends"])
_NOTE: Any = object()
"""Stands for a keyword that is no rule."""


def read_whole(root: Any) -> dict[str, Any]:
    """Return a schema with all of its rules.

    Args:
        root: the schema as plain JSON. Its objects are told apart by identity, so it must stay as it is.
    """
    reader = _Reader(root)
    document = reader.schema(root)
    return {**document, "$defs": {name: reader.schema(target) for name, target in reader.definitions.unread()}}


class _Reader:
    """Reads the schemas of one document."""

    def __init__(self, root: Any) -> None:
        self.definitions = Definitions(root)

    def schema(self, schema: Any) -> dict[str, Any]:
        """Return a schema with its rules alone."""
        if isinstance(schema, bool):
            return {} if schema else NOTHING
        if not isinstance(schema, dict):
            return {UNKNOWN: True}
        found = {key: self._rule(key, value, schema) for key, value in _in_new_words(schema).items()}
        clean = {key: rule for key, rule in found.items() if rule is not _NOTE}
        _leave_out_malformed(clean)
        return clean

    def _rule(self, key: str, value: Any, schema: dict[str, Any]) -> Any:
        """Return the value of a keyword, with the schemas in it read; None where it is malformed."""
        if key == "$ref":
            return self._reference(schema)
        if key in _ONE:
            return self.schema(value)
        if key in LISTS:
            return [self.schema(each) for each in value] if isinstance(value, list) and value else None
        if key in _MAPS:
            return {name: self.schema(each) for name, each in value.items()} if isinstance(value, dict) else None
        if key in _VALUES:
            return value
        return None if key in _OTHERS else _NOTE

    def _reference(self, schema: dict[str, Any]) -> str | None:
        """Return a reference into ``$defs``; None for one that leads nowhere."""
        try:
            reference, target = self.definitions.follow(schema)
        except GrammarError:
            return None
        return f"#/$defs/{self.definitions.name(reference, target)}"


def _in_new_words(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of a schema, those of earlier drafts as they are called in 2020-12."""
    found = dict(schema)
    rest = found.pop("additionalItems", None)
    if isinstance(found.get("items"), list):
        found["prefixItems"] = found.pop("items")
        found |= {} if rest is None else {"items": rest}
    if "divisibleBy" in found:
        found["multipleOf"] = found.pop("divisibleBy")
    dependencies = found.pop("dependencies", None)
    if isinstance(dependencies, dict):
        names = {name: rule for name, rule in dependencies.items() if isinstance(rule, list)}
        schemas = {name: rule for name, rule in dependencies.items() if name not in names}
        found |= {"dependentRequired": names} if names else {}
        found |= {"dependentSchemas": schemas} if schemas else {}
    return found


def _leave_out_malformed(clean: dict[str, Any]) -> None:
    """Leave out what is no rule."""
    wrong = [key for key, rule in clean.items() if not _is_rule(key, rule)]
    for key in wrong:
        del clean[key]
    check_values(clean, "", lambda place, _: wrong.append(place))
    if wrong:
        clean[UNKNOWN] = True


def _is_rule(key: str, rule: Any) -> bool:
    if rule is None:
        return key == "const"
    return key not in _IS_RULE or _IS_RULE[key](rule)


def _is_lists_of_names(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_names, value.values()))


_IS_RULE: dict[str, Callable[[Any], bool]] = {
    "required": is_names, "dependentRequired": _is_lists_of_names, "uniqueItems": lambda value: isinstance(value, bool),
    "pattern": lambda value: isinstance(value, str),
}  # fmt: skip
"""Whether the value of a keyword is as it must be, for those that ``check_values`` does not look at."""
