r"""A JSON Schema as a grammar in GBNF, for programs that go on with the text of the grammar.

The grammar allows every JSON value that the schema allows, written with at most one space between its parts. It allows more
where GBNF would be long or cannot say it: ranges of numbers, formats, patterns, and what ``allOf`` says of anything but
objects. ``LlamaGrammar.from_json_schema`` holds all of these. Arrays whose places have schemas of their own fill all places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from offgrid_llama.errors import GrammarError
from offgrid_llama.sampling.grammar.json_schema import read_loosely, read_schema

__all__ = ["gbnf_of_schema", "read_forgivingly"]

Schema = Mapping[str, Any]

SPACE = '" "?'
BASICS = {
    "space": SPACE,
    "value": "object | array | string | number | boolean | null",
    "object": '"{" space (string ":" space value ("," space string ":" space value)*)? "}" space',
    "array": '"[" space (value ("," space value)*)? "]" space',
    "string": r'"\"" char* "\"" space',
    "char": r'[^"\\\x00-\x1F\x7F] | "\\" (["/\\bfnrt] | "u" [0-9A-Fa-f]{4})',
    "number": 'whole ("." [0-9]{1,16})? ([Ee] [+-]? [0-9]{1,16})? space',
    "integer": "whole space",
    "whole": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "boolean": '("true" | "false") space',
    "null": '"null" space',
}
"""Rules that any schema may use. Digits are bounded, because models run off in them."""

NAMED = re.compile(r"[a-z]+(?:-[a-z0-9]+)*")
"""The names of rules."""
MAX_MERGED = 1000
"""Schemas that are read for one ``allOf``, which may name itself."""
QUOTED = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')
"""Strings and classes of characters, in which words are no names."""


KINDS = {
    "object": {"properties", "additionalProperties", "patternProperties"},
    "array": {"items", "prefixItems"},
    "string": {"pattern", "minLength", "maxLength", "format"},
}
"""The type that a schema without one is for, by its keywords. Such a schema allows all values of other types, strictly."""
TYPED = {"type", "$ref", "anyOf", "allOf", "const", "enum"}


def read_forgivingly(schema: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return a schema as plain JSON with types, and the rules that are left out because no grammar can hold them.

    Types that are missing are those that the keywords mean, and "object" for a schema that says nothing. Raises GrammarError
    where nothing can be used.
    """
    document, left_out = _plain(schema)
    typed = _with_types(document)
    return typed if typed.keys() & TYPED else {**typed, "type": "object"}, left_out


def _with_types(schema: Any) -> Any:
    """Return a schema in which all schemas have types, as far as their keywords mean one."""
    if isinstance(schema, list):
        return [_with_types(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    typed = dict(schema)
    if not TYPED & schema.keys():
        kinds = [{"type": kind} for kind, keywords in KINDS.items() if keywords & schema.keys()]
        typed |= kinds[0] if kinds else {}
    for name in ("items", "prefixItems", "anyOf", "allOf", "additionalProperties"):
        if name in schema:
            typed[name] = _with_types(schema[name])
    for name in ("properties", "patternProperties", "$defs"):
        if name in schema:
            typed[name] = {key: _with_types(value) for key, value in schema[name].items()}
    return typed


def _plain(schema: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    try:
        return read_schema(schema), ()
    except GrammarError:
        kind = schema.get("type", "object") if isinstance(schema, dict) else None
        loose = read_loosely(json.dumps(schema), kind) if isinstance(kind, str) else None
        if loose is None or loose.document == {"type": kind}:  # nothing is left of it
            raise
        return loose.document, loose.left_out


def gbnf_of_schema(document: Schema, order: Sequence[str] = ()) -> str:
    """Return a grammar, whose first rule is ``root``.

    Args:
        document: a schema as ``read_forgivingly`` returns it.
        order: names of properties that come first in objects, in this order.
    """
    return _Writer(order).written(document)


class _Writer:
    def __init__(self, order: Sequence[str]) -> None:
        self.places = {name: at for at, name in enumerate(order)}
        self.rules: dict[str, str] = {}
        self.definitions: Mapping[str, Schema] = {}

    def written(self, document: Schema) -> str:
        self.definitions = document.get("$defs", {})
        for name, schema in self.definitions.items():
            self.rules[f"def-{name}"] = self.rule(schema)
        rules = {"root": self.rule(document), **self.rules}
        todo = list(rules.values())
        while todo:
            for name in NAMED.findall(QUOTED.sub(" ", todo.pop())):
                if name in BASICS and name not in rules:
                    rules[name] = BASICS[name]
                    todo.append(BASICS[name])
        return "".join(f"{name} ::= {rule}\n" for name, rule in rules.items())

    def rule(self, schema: Any) -> str:
        """Return what a schema allows, as a rule's right side."""
        if not isinstance(schema, Mapping) or not schema:
            return "value"
        if "$ref" in schema:
            return f"def-{schema['$ref'].rpartition('/')[2]}"
        if "const" in schema:
            return self.values([schema["const"]])
        if "enum" in schema:
            return self.values(schema["enum"])
        if "anyOf" in schema:
            return " | ".join(map(self.group, schema["anyOf"]))
        if "allOf" in schema:
            return self.rule(self.merged(schema))
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return " | ".join(self.group({**schema, "type": kind}) for kind in kinds)
        return self.of_kind(kinds, schema)

    def group(self, schema: Any) -> str:
        rule = self.rule(schema)
        return rule if NAMED.fullmatch(rule) else f"({rule})"

    def named(self, rule: str) -> str:
        """Return a name for a rule, the same for the same rule."""
        known = next((name for name, each in self.rules.items() if each == rule), None)
        name = known or f"part-{len(self.rules)}"
        self.rules[name] = rule
        return name

    def of_kind(self, kind: str | None, schema: Schema) -> str:
        if "patternProperties" in schema and kind == "object":
            return "object"
        if kind == "object" and (schema.get("properties") or isinstance(schema.get("additionalProperties"), Mapping)):
            return self.object(schema)
        if kind == "array" and {"items", "prefixItems", "minItems", "maxItems"} & schema.keys():
            return self.array(schema)
        if kind == "string" and {"minLength", "maxLength"} & schema.keys():
            times = _times(schema.get("minLength", 0), schema.get("maxLength"))
            return rf'"\"" char{times} "\"" space'
        return kind or "value"

    def merged(self, schema: Schema) -> dict[str, Any]:
        """Return one schema for those of ``allOf``: their properties, else the first one that says anything."""
        properties: dict[str, Any] = {}
        required: list[str] = []
        first: Schema = {}
        todo: list[Any] = [{name: value for name, value in schema.items() if name != "allOf"}, *schema["allOf"]]
        for each in todo[:MAX_MERGED]:
            if not isinstance(each, Mapping):
                continue
            if "$ref" in each:
                todo.append(self.definitions.get(each["$ref"].rpartition("/")[2], {}))
            todo += each.get("allOf", ())
            properties |= each.get("properties", {})
            required += each.get("required", ())
            first = first or {name: value for name, value in each.items() if name not in ("$defs", "allOf")}
        if not properties:
            return dict(first)
        patterns = {"patternProperties": None} if any("patternProperties" in each for each in todo) else {}
        return {"type": "object", "properties": properties, "required": required, **patterns}

    def values(self, values: Iterable[Any]) -> str:
        return "(" + " | ".join(_quoted(json.dumps(value, ensure_ascii=False)) for value in values) + ") space"

    def object(self, schema: Schema) -> str:
        """Return the rule of objects: those properties that must come, and of the others any, in their order."""
        properties = schema.get("properties", {})
        required = set(schema.get("required", ())) & properties.keys()
        names = sorted(properties, key=lambda name: self.places.get(name, len(self.places)))
        pairs = {
            name: f'{_quoted(json.dumps(name, ensure_ascii=False))} space ":" space {self.group(properties[name])}'
            for name in names
        }
        parts = [(pairs[name], name in required) for name in names]
        more = schema.get("additionalProperties", False)
        if more is not False:
            pair = f'string ":" space {self.group(more)}'
            parts.append((f'{pair} ("," space {pair})*', False))
        return f'"{{" space {self.members(parts)} "}}" space'

    def members(self, parts: Sequence[tuple[str, bool]]) -> str:
        """Return the members of an object, with commas between them; each comes if it must, and may come otherwise."""
        rest = ""  # what may follow a member that has come
        begun = ""  # what may come where no member has
        for pair, must in reversed(parts):
            follows = f'"," space {pair} {rest}'.strip()
            here = f"{pair} {rest}".strip()
            if must:
                rest, begun = self.named(follows), self.named(here)
            else:
                begun = self.named(f"{here} | {begun}" if begun else f"({here})?")
                rest = self.named(f"{follows} | {rest}" if rest else f"({follows})?")
        return begun

    def array(self, schema: Schema) -> str:
        first = [self.group(each) for each in schema.get("prefixItems", ())]
        items = schema.get("items", True)
        if isinstance(items, list):
            first, items = [self.group(each) for each in items], schema.get("additionalItems", True)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if first:
            more = "" if items is False else f' ("," space {self.group(items)})*'
            return '"[" space ' + ' "," space '.join(first) + more + ' "]" space'
        if items is False or most == 0:
            return '"[" space "]" space'
        item = self.group(items)
        times = _times(max(least - 1, 0), None if most is None else most - 1)
        return f'"[" space ({item} ("," space {item}){times}){"" if least else "?"} "]" space'


def _times(least: int, most: int | None) -> str:
    if most is None:
        return {0: "*", 1: "+"}.get(least, f"{{{least},}}")
    return f"{{{least},{most}}}"


def _quoted(text: str) -> str:
    """Return a text, which has no characters below a space, as a string of GBNF."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
