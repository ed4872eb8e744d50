"""All rules of a schema, checked on values: what is broken is found, what is valid never is, and attacks end in time."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from offgrid_llama.sampling.grammar.json_schema import MAX_WHOLE, read_loosely
from offgrid_llama.sampling.grammar.schema_check import CheckTime, SchemaCheck

SUITE: list[tuple[str, str, Any, list[tuple[Any, bool]]]] = json.loads(
    (Path(__file__).parents[2] / "data" / "json_schemas.json").read_text(encoding="utf-8")
)
NOT_CHECKED = {
    "dynamicRef": "references that mean another schema in each place",
    "refRemote": "other documents",
    "ref": "other documents, and names of schemas below `if` and `not`",
    "defs": "another document",
    "unevaluatedItems": "beside `$dynamicRef`",
    "unevaluatedProperties": "beside `$dynamicRef`",
    "minContains": "counts that contradict each other",
}
"""Files of the suite in which not every broken rule is found, by why."""


def test_the_suite() -> None:
    """No valid value of the JSON-Schema-Test-Suite breaks a rule; an invalid one does, but where that cannot be checked."""
    wrong, missed, n_found = [], set(), 0
    for file, description, schema, tests in SUITE:
        if file == "vocabulary":
            continue  # a dialect in which `minimum` is no rule
        check = SchemaCheck(schema)
        for value, valid in tests:
            broken = check.problem(value)
            if broken and valid:
                wrong.append((description, value, broken))
            if not broken and not valid:
                missed.add(file)
            n_found += bool(broken)
    assert wrong == []
    assert missed == NOT_CHECKED.keys()
    assert n_found > 400


RULES: list[tuple[Any, Any, Any, str]] = [
    ({"not": {"const": 3}}, 3, 4, "/: not: 3 should not be valid under {'const': 3}"),
    ({"properties": {"a/~": {"uniqueItems": True}}}, {"a/~": [1, 1.0]}, {"a/~": [1, "1"]},
     "/a~1~0: uniqueItems: has items that are equal"),
    ({"items": {"multipleOf": 0.1}}, [0.3, 0.25], [0.3, 10**30], "/1: multipleOf: 0.25 is not a multiple of 0.1"),
    ({"dependencies": {"a": ["b"], "c": {"required": ["d"]}}}, {"a": 1}, {"b": 1},
     "/: dependentRequired: 'b' is a dependency of 'a'"),
    ({"items": [True, {"not": {}}], "additionalItems": False}, [1, 2], [1], "/1: not: 2 should not be valid under {}"),
    ({"minimum": 3, "exclusiveMinimum": True}, 3, 4,
     "/: exclusiveMinimum: 3 is less than or equal to the minimum of 3"),
    ({"divisibleBy": 2}, 3, 4, "/: multipleOf: 3 is not a multiple of 2"),
    ({"propertyNames": {"pattern": "^a"}}, {"b": 1}, {"ab": 1}, "/: pattern: 'b' does not match '^a'"),
    ({"$ref": "#a", "$defs": {"A": {"$anchor": "a", "contains": {"const": 1}}}}, [2], [1, 2],
     "/: contains: [2] does not contain items matching the given schema"),
    ({"patternProperties": {"^x-": {}}, "properties": {"a": {}}, "unevaluatedProperties": False}, {"b": 1},
     {"x-a": 1, "a": 2}, "/: unevaluatedProperties: the property 'b' is not allowed"),
    ({"properties": {"a": {"not": {"enum": ["x" * 300]}}}}, {"a": "x" * 300}, {"a": ""},
     '/a: not: is broken: {"enum": ["' + "x" * 189),
    ({"properties": {"a": False}}, {"a": 1}, {"b": 1}, "/a: false: no value is allowed here"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "broken", "kept", "told"), RULES)
def test_rules(schema: Any, broken: Any, kept: Any, told: str) -> None:
    """A broken rule is told by the place in the value, its keyword, and how; in the words of any draft."""
    check = SchemaCheck(schema)
    assert check.problem(kept) == ""
    assert check.problem(broken) == told


@pytest.mark.parametrize(
    ("unknown", "value"),
    [
        ({"$ref": "https://example.com/schema.json"}, 1), ({"$ref": "#/nowhere"}, 1), ({"pattern": "(?=a)"}, "a"),
        ({"pattern": 3}, "a"), ({"type": "file"}, 1), ({"required": True}, {"a": 1}), ({"minLength": "3"}, "a"),
        ({"format": "email"}, "a"), ({"enum": []}, 1), ({"properties": 3}, {"a": 1}), ({"anyOf": []}, 1),
        ({"minLength": 3, "maxLength": 2}, "a"), ({"$dynamicRef": "#a"}, 1), ({"disallow": "string"}, "a"),
        ({"patternProperties": {"(?=a)": False}}, {"a": 1}), ({"dependentRequired": {"a": "b"}}, {"a": 1}), (3, 1),
        ({"patternProperties": {"(?=a)": {}}, "additionalProperties": False}, {"a": 1}), ({"pattern": "a"}, "a" * 20_000),
        ({"allOf": [{"$ref": "#/nowhere"}], "unevaluatedProperties": False}, {"a": 1}),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_checked(unknown: Any, value: Any) -> None:
    """They are taken for kept, also where they may have to be broken."""
    for schema in (
        unknown, {"not": unknown}, {"oneOf": [unknown, True]}, {"if": unknown, "then": False, "else": False},
        {"not": {"anyOf": [{"not": {"allOf": [unknown]}}]}},
    ):  # fmt: skip
        assert SchemaCheck({"allOf": [schema]}).problem(value) == ""
    assert SchemaCheck({"contains": unknown, "maxContains": 0}).problem([value]) == ""


def test_other_documents_are_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reference to another document is no reason to look for it."""

    def no_network(*_: object) -> None:
        raise AssertionError("it asks for a document")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    for name in ("http://localhost:1/a.json", "file:///etc/passwd", "other.json"):
        schema = {
            "$id": "http://localhost:1/",
            "allOf": [{"$ref": name}],
            "$schema": name,
            "unevaluatedProperties": False,
        }
        assert SchemaCheck(schema).problem({"a": 1}) == ""


def _doubled(keyword: str, last: Any) -> dict[str, Any]:
    """Return a schema of some kilobytes with 2 ** 60 ways through it."""
    ways = {f"d{i}": {keyword: [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(60)}
    return {"$ref": "#/$defs/d0", "$defs": {**ways, "d60": last}}


def _dependent() -> dict[str, Any]:
    """Return the same, through schemas of which only the names of properties are of interest."""
    ways = {
        f"d{i}": {"dependentSchemas": {name: {"$ref": f"#/$defs/d{i + 1}"} for name in "ab"}} for i in range(60)
    }  # fmt: skip
    return {"unevaluatedProperties": False, "$ref": "#/$defs/d0", "$defs": {**ways, "d60": {}}}


SLOW = [
    (_doubled("allOf", {"type": "integer"}), 1),
    (_doubled("anyOf", {"type": "integer"}), "x" * 100_000),
    (_dependent(), {"a": 1, "b": 1}),
    ({"items": {"allOf": [{"pattern": f".{{1000}}.*(a.{{{n}}}|b.{{999}})"} for n in range(950, 1000)]}},
     ["ab" * 4000] * 1000),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value"), SLOW)
def test_checks_end_in_time(schema: Any, value: Any) -> None:
    """A check whose parts multiply is given up after its time."""
    with pytest.raises(og.GrammarError, match=r"checks take more than 1 s|has more than 20,000 errors"):
        SchemaCheck(schema).problem(value)


def test_checks_share_their_time() -> None:
    """Many checks under one allowance take no longer than one."""
    schema, value = SLOW[0]
    allowed, check = CheckTime(), SchemaCheck(schema)
    for _ in range(1000):
        with pytest.raises(og.GrammarError, match="more than 1 s"):
            check.problem(value, allowed)


@pytest.mark.parametrize(
    "dialect", ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema"]
)
def test_patterns_take_no_exponential_time(dialect: str) -> None:
    """A pattern that takes Python's re exponential time takes little, wherever it stands and in each dialect."""
    pattern, text = "^(a+)+$", "a" * 5000 + "!"
    within: Any = {"$schema": dialect, "pattern": pattern}
    assert SchemaCheck({"properties": {"a": within}}).problem({"a": text}).startswith("/a: pattern: ")
    for keyword in ("additionalProperties", "unevaluatedProperties"):
        within = {"$schema": dialect, "patternProperties": {pattern: True}, keyword: False}
        assert SchemaCheck({"allOf": [within]}).problem({text: 1}).startswith(f"/: {keyword}: ")
        assert SchemaCheck({"allOf": [within]}).problem({text[:-1]: 1}) == ""


def test_large_values() -> None:
    """Equal items of a long list are found without a comparison of each with every other one."""
    items: list[Any] = [{"x": i} for i in range(50_000)]
    check = SchemaCheck({"properties": {"a": {"uniqueItems": True, "items": True}}})
    assert check.problem({"a": items}) == ""
    assert check.problem({"a": [*items, {"x": 7}]}) == "/a: uniqueItems: has items that are equal"


def test_values_and_schemas_that_lead_too_deep() -> None:
    """They are not checked; what raises within the library is one error."""
    deep = json.loads('{"a":' * 500 + "1" + "}" * 500)
    with pytest.raises(og.GrammarError, match="RecursionError"):
        SchemaCheck({"properties": {"a": {"$ref": "#"}}}).problem(deep)
    with pytest.raises(og.GrammarError, match="RecursionError"):
        SchemaCheck({"allOf": [{"anyOf": [{"$ref": "#"}]}]}).problem({})


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "referencing", None)
    with pytest.raises(og.GrammarError, match=r"takes jsonschema: pip install 'offgrid-llama\[chat\]'"):
        SchemaCheck({}).problem({})


@pytest.mark.parametrize(
    ("schema", "checked"),
    [
        ({"properties": {"a": {"not": {"const": 1}}}}, True), ({"properties": {"a": {}}}, False),
        ({"type": "string"}, False), ({"allOf": [False]}, False), ({"not": {}}, False),
        ({"properties": {"a": {"enum": ["x" * 70_000]}}}, True),
        ({"properties": {"a": {"enum": ["x" * MAX_WHOLE]}}}, False),
        ({"minProperties": 2, "properties": {"a": json.loads('{"items":' * 70 + "{}" + "}" * 70)}}, False),
    ],
)  # fmt: skip
def test_schemas_that_are_checked(schema: Any, checked: bool) -> None:
    """Those with rules that are left out; not those that allow no object, are too large, or could be read in part only."""
    assert (read_loosely(json.dumps(schema), "object").whole is not None) == checked
