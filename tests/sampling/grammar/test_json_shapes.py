"""Shapes: alternatives of one type each, and values that fit a schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offgrid_llama.sampling.grammar.json_schema import read_loosely
from offgrid_llama.sampling.grammar.json_shapes import Shapes, TooManyShapesError, json_key, property_schema

SUITE: list[tuple[str, str, Any, list[tuple[Any, bool]]]] = json.loads(
    (Path(__file__).parents[2] / "data" / "json_schemas.json").read_text(encoding="utf-8")
)


def shapes_of(schema: Any) -> list[dict[str, Any]]:
    """Return the shapes of a schema without references."""
    return Shapes({}).of(schema)


def test_values_of_the_suite() -> None:
    """Values that JSON-Schema-Test-Suite calls invalid fit no shape; most of those that it calls valid do."""
    wrong = []
    n_valid = n_fitting = 0
    for file, description, schema, tests in SUITE:
        for kind in ("object", "array", "string", "integer", "number", "boolean", "null"):
            found = read_loosely(json.dumps(schema), kind)
            if found.left_out:
                continue
            shapes = Shapes(found.document)
            for value, valid in tests:
                fits = shapes.fits(value, found.document)
                if fits and not valid:
                    wrong.append((file, description, value))
                if valid and json_key(value)[0] == {"object": "{", "array": "["}.get(kind):
                    n_valid += 1
                    n_fitting += fits
    assert wrong == []
    assert n_fitting > 0.6 * n_valid > 30


@pytest.mark.parametrize(
    ("schema", "shapes"),
    [
        (True, 6), (False, 0), ({}, 6), ({"type": ["string", "null"]}, 2), ({"type": ["integer", "number"]}, 1),
        ({"anyOf": [{"type": "string"}, {"type": "object"}]}, 2), ({"const": 3}, 1), ({"enum": [1, "a", None]}, 3),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, 1), ({"allOf": [{"const": 1}, {"type": "string"}]}, 0),
        ({"type": "string", "enum": ["ab", "b"], "pattern": "^b"}, 1), ({"minLength": 2, "maxLength": 1}, 5),
    ],
)  # fmt: skip
def test_one_for_each_type(schema: Any, shapes: int) -> None:
    """A schema has one shape for each type of each alternative, and none for what nothing fits."""
    assert len(shapes_of(schema)) == shapes


def test_rules_together() -> None:
    """Schemas for the same value add up: limits to the narrower one, properties to both rules."""
    [shape] = shapes_of({
        "type": "object", "required": ["a"], "properties": {"a": {"minimum": 1}},
        "additionalProperties": {"type": "integer"},
        "allOf": [{"required": ["b"], "properties": {"a": {"maximum": 3}}, "maxProperties": 4}, {"maxProperties": 2}],
    })  # fmt: skip
    assert shape["required"] == ["a", "b"]
    assert shape["maxProperties"] == 2
    assert property_schema(shape, "a") == {"allOf": [{"minimum": 1}, {"maximum": 3}]}
    assert property_schema(shape, "b") == {"type": "integer"}


def test_a_schema_that_leads_back_to_itself() -> None:
    """A reference back to the same value adds nothing to its other alternatives."""
    document = {"$defs": {"d": {"anyOf": [{"$ref": "#/$defs/d"}, {"type": "string"}]}}}
    assert Shapes(document).of({"$ref": "#/$defs/d"}) == [{"type": "string"}]


def test_too_many() -> None:
    """More than 256 combinations of alternatives are refused, before they are made."""
    ways = [{"anyOf": [{"minimum": i}, {"maximum": i}]} for i in range(40)]
    with pytest.raises(TooManyShapesError, match="more than 256"):
        shapes_of({"allOf": ways})
