"""ArgumentGrammar: the grammar of arguments that are written one by one between tags, from the tool's schema (pure).

It goes by the shapes of the schema. TaggedArguments reads what this grammar allows as a value of the same schema: a text
without quotes that would be read as a value of another type is not allowed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from offgrid_llama.sampling.grammar.json_shapes import Shape, Shapes, property_schema
from offgrid_llama.sampling.grammar.patterns import matching, may_match, slashed
from offgrid_llama.sampling.grammar.text_formats import FORMAT_PATTERNS

from .call_format import ARGUMENT, ArgumentTags, Style, ValueTags
from .lark_rules import LarkRules, before
from .literal import typed_literal

__all__ = ["ArgumentGrammar"]

_FURTHER_NAME = "/[\\p{L}_][\\p{L}\\p{N}_-]{0,63}/"
"""Names of properties that a schema does not list."""

_READ_AS: dict[str, str] = {
    "number": "[-0-9](?s:.*)", "integer": "[-0-9](?s:.*)", "boolean": "true|false|True|False", "null": "null|None",
    "array": r"[\[(](?s:.*)", "object": r"\{(?s:.*)",
}  # fmt: skip
"""The texts that may be read as a value of a type."""


class ArgumentGrammar:
    """Writes the rules of the arguments of one tool.

    Args:
        lark: takes the rules.
        tags: how arguments are written.
        document: the tool's schema, as ``read_loosely`` gives it.
        name: what the names of the rules begin with.
    """

    def __init__(self, lark: LarkRules, tags: ArgumentTags, document: Mapping[str, Any], name: str) -> None:
        self._lark = lark
        self._tags = tags
        self._document = document
        self._shapes = Shapes(document)
        self._name = name
        self._n_rules = 0
        self._own: dict[int, str] = {}
        self._quote = tags.values["string"].end

    def write(self) -> str:
        """Return the expression of all arguments."""
        shapes = [shape for shape in self._shapes.of(self._document) if shape["type"] == "object"]
        separator = self._lark.text(self._tags.separator)
        written = self._either([self._properties(shape, self._argument, separator) for shape in shapes])
        return written or self._properties({"type": "object"}, self._argument, separator)

    def _new(self, what: str = "") -> str:
        self._n_rules += 1
        return f"{self._name}{what}{self._n_rules}"

    def _either(self, ways: Iterable[str]) -> str:
        """Return the expression of one of several; empty where none of them can be written."""
        found = [way for way in ways if way]
        return self._lark.rule(self._new("either"), " | ".join(found)) if len(found) > 1 else "".join(found)

    # Objects --------------------------------------------------------------------------------------------------------

    def _properties(self, shape: Shape, pair: Any, separator: str) -> str:
        """Return the expression of the properties of an object: the required ones first, then the others.

        It is empty where a required one has no value that can be written.
        ``pair`` returns the expression of a property: of its name, as a text or an expression, and its schema.
        """
        if "enum" in shape:
            return self._either([
                self._properties(_exactly(value), pair, separator) for value in shape["enum"]
            ])  # fmt: skip
        required = list(dict.fromkeys(shape.get("required", ())))
        names = [*required, *(name for name in shape.get("properties", ()) if name not in required)]
        items = []
        for name in names:
            expression = pair(name, "", property_schema(shape, name))
            if expression:
                items.append((expression, name in required))
            elif name in required:
                return ""
        further = self._either(pair("", terminal, schema) for terminal, schema in self._further(shape, names))
        least = min(1, shape.get("minProperties", 0))
        if least and not items and not further:
            return ""
        return self._lark.in_order(self._new("order"), items, further=further, separator=separator, least=least)

    def _further(self, shape: Shape, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Yield the terminals of the names of properties that are not listed, each with the schema of its values."""
        patterns = shape.get("patternProperties", {})
        rest = shape.get("additionalProperties", not names and not patterns)
        listed = [f"~/{'|'.join(slashed(re.escape(name)) for name in names)}/"] if names else []
        found = {pattern: whole for pattern in patterns if (whole := matching(pattern)) is not None}
        for pattern, whole in found.items():
            yield from self._terminal([_FURTHER_NAME, f"/{slashed(whole)}/", *listed], patterns[pattern])
        if len(found) == len(patterns):
            others = [f"~/{slashed(whole)}/" for whole in found.values()]
            yield from self._terminal([_FURTHER_NAME, *listed, *others], rest)

    def _terminal(self, rules: Sequence[str], schema: Any) -> Iterator[tuple[str, Any]]:
        """Yield a terminal that matches some rules, and a schema, if there are names and values for them."""
        if self._shapes.of(schema) and may_match(" & ".join(rules)):
            yield self._lark.rule(self._new("NAME").upper(), " & ".join(rules)), schema

    # Arguments between tags -----------------------------------------------------------------------------------------

    def _argument(self, name: str, terminal: str, schema: Any) -> str:
        """Return the expression of one argument, with the tags around it."""
        ways = []
        for way, value in self._values(schema, name):
            before = self._lark.text(self._tags.begin + name)
            if terminal and ARGUMENT in way.end:
                continue  # the name stands behind the value, too, and a grammar cannot repeat it
            if terminal:
                before = f"{self._lark.text(self._tags.begin)} {terminal}".strip()
                ways.append(f"{before} {self._lark.text(way.middle)} {value}")
            else:
                ways.append(f"{self._lark.text(self._tags.begin + name + way.middle)} {value}")
        return self._lark.rule(self._new("arg"), " | ".join(ways)) if ways else ""

    def _values(self, schema: Any, name: str) -> Iterator[tuple[ValueTags, str]]:
        """Yield the ways to write a value, each with the expression of the value and the text behind it."""
        shapes = self._shapes.of(schema)
        groups: dict[ValueTags, list[Shape]] = {}
        for shape in shapes:
            groups.setdefault(self._tags.values[shape["type"]], []).append(shape)
        for way, kept in groups.items():
            end = way.end.replace(ARGUMENT, name)
            if way.style is Style.RAW:
                others = {each["type"] for each in shapes if self._tags.values[each["type"]].middle == way.middle}
                for shape in kept:
                    yield from ((way, each) for each in self._raw_or_fenced(shape, end, others - {"string"}) if each)
            elif way.style is Style.OWN:
                if expression := self._either([self._own_value(shape) for shape in kept]):
                    yield way, f"{expression} {self._lark.text(end)}"
            else:
                ways = [self._json(kept if len(kept) < len(shapes) else schema)]
                if way.style is Style.PYTHON:
                    ways += [each for shape in kept for each in _python(shape)]
                yield way, f"({' | '.join(ways)}) {self._lark.text(end)}"

    def _json(self, schema: Any) -> str:
        """Return a reference to JSON under a schema, or under one of several shapes."""
        if isinstance(schema, list):
            schema = {"anyOf": schema} if len(schema) > 1 else schema[0]
        definitions = {"$defs": self._document["$defs"]} if "$defs" in self._document else {}
        return self._lark.json(self._new("value"), {**(schema if isinstance(schema, dict) else {}), **definitions})

    # Texts without quotes -------------------------------------------------------------------------------------------

    def _raw_or_fenced(self, shape: Shape, end: str, others: Collection[str]) -> Iterator[str]:
        """Yield the expressions of a text without quotes, by itself and within the format's fence, as ``_raw`` does."""
        if self._tags.fence is None:
            yield self._raw(shape, end, others)
            return
        begin, close = self._tags.fence
        signs = r"\s*".join(slashed(re.escape(sign)) for sign in begin if not sign.isspace())
        yield self._raw(shape, end, others, [f"~/\\s*{signs}(?s:.*)/"])
        if "enum" not in shape:
            inside = self._raw(shape, close + end, others, [*before(close), *(before(end) if others else ())])
            yield inside and f"{self._lark.text(begin)} {inside}"

    def _raw(self, shape: Shape, end: str, others: Collection[str], further: Sequence[str] = ()) -> str:
        """Return the expression of a text without quotes, and of the text behind it; empty where there is none.

        Args:
            shape: of the text.
            end: the text behind it.
            others: the types of other values that may stand in its place.
            further: more expressions that the text must match.
        """
        if "enum" in shape:
            kinds = frozenset([*others, "string"])
            ways = [
                self._lark.text(value + end) for value in shape["enum"]
                if (value + end).find(end.strip() or end) >= len(value) and typed_literal(value, kinds, raw=True) == value
            ]  # fmt: skip
            return f"({' | '.join(ways)})" if ways else ""
        rules = [*_text_rules(shape), *_not_read_as(others), *further]
        if rules and not may_match(" & ".join([*rules, *before(end)])):
            return ""
        return self._lark.until(self._new("text"), end, rules)

    # Values with quotes of the format's own -------------------------------------------------------------------------

    def _own_value(self, shape: Shape) -> str:
        """Return the expression of a value like JSON, with the format's quotes around texts and none around keys."""
        kind = shape["type"]
        if kind == "string":
            text = self._raw(shape, self._quote, ())
            return f"{self._lark.text(self._quote)} {text}" if text else ""
        if kind == "object":
            properties = self._properties(shape, self._own_pair, _COMMA)
            return f'"{{" {properties} "}}"' if properties else ""
        if kind != "array":
            return self._json([shape])
        if "enum" in shape:
            return self._either(self._own_list(_exact_items(value)) for value in shape["enum"])
        return self._own_list(shape)

    def _own_pair(self, name: str, terminal: str, schema: Any) -> str:
        value = self._own_schema(schema)
        return f'{terminal or json.dumps(name)} ":" {value}' if value else ""

    def _own_schema(self, schema: Any) -> str:
        """Return the rule of the values of a schema, which may lead back to itself; empty where it has none."""
        known = self._own.get(id(schema))
        if known is None:
            known = self._own[id(schema)] = self._new("own")
            ways = [way for way in map(self._own_value, self._shapes.of(schema)) if way]
            if ways:
                self._lark.rule(known, " | ".join(ways))
            else:
                known = self._own[id(schema)] = ""
        return known

    def _own_list(self, shape: Shape) -> str:
        """Return the expression of a list; empty where a required item has no value."""
        first, least, most = shape.get("prefixItems", []), shape.get("minItems", 0), shape.get("maxItems")
        items = [self._own_schema(schema) for schema in first[:most]]
        n = items.index("") if "" in items else len(items)  # the list cannot go on behind that
        item = self._own_schema(shape.get("items", True)) if n == len(first) and most != n else ""
        if least > n and not item:
            return ""
        ways = [' "," '.join(items[:length]) for length in range(least, n + 1)] if least <= n else []
        if item:
            before = [*items, *[item] * max(1, least - n)]
            more = "" if most is None else most - len(before)
            ways.append(' "," '.join(before) + (f' ("," {item}){{0,{more}}}' if more != 0 else ""))
        return self._either(f'"[" {way} "]"' for way in ways)


_COMMA = '","'
_SPACES = "[ \\t\\r\\n]*"


def _exactly(value: Mapping[str, Any]) -> Shape:
    """Return the shape of one object."""
    properties = {name: {"enum": [each]} for name, each in value.items()}
    return {"type": "object", "properties": properties, "required": list(value), "additionalProperties": False}


def _exact_items(value: Sequence[Any]) -> Shape:
    """Return the shape of one list."""
    return {
        "type": "array",
        "prefixItems": [{"enum": [each]} for each in value],
        "minItems": len(value),
        "items": False,
    }


def _text_rules(shape: Shape) -> Iterator[str]:
    """Yield the regular expressions, with slashes, that a text of a shape matches as a whole."""
    for rules in (shape, *shape.get("allOf", ())):
        if "pattern" in rules:
            yield f"/{slashed(matching(rules['pattern']) or '')}/"
        if rules.get("format") in FORMAT_PATTERNS:
            yield f"/{slashed(FORMAT_PATTERNS[rules['format']])}/"
    if "minLength" in shape or "maxLength" in shape:
        yield f"/(?s:.{{{shape.get('minLength', 0)},{shape.get('maxLength', '')}}})/"


def _not_read_as(kinds: Collection[str]) -> Iterator[str]:
    """Yield a regular expression against texts that would be read as a value of one of some types."""
    if kinds:
        ways = "|".join(["[\"'](?s:.*)", *sorted({_READ_AS[kind] for kind in kinds})])
        yield f"~/{slashed(_SPACES + '(' + ways + ')' + _SPACES)}/"


def _python(shape: Shape) -> Iterator[str]:
    """Yield the expressions of values in Python where they are no JSON."""
    kind = shape["type"]
    if "enum" in shape:
        yield from (
            json.dumps(repr(value)) for value in shape["enum"] if isinstance(value, (str, bool)) or value is None
        )
    elif kind == "string" and shape.keys() == {"type"}:
        yield "/'(\\\\.|[^'\\\\\\n])*'/"
    elif kind == "boolean":
        yield '"True" | "False"'
    elif kind == "null":
        yield '"None"'
