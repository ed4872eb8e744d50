"""JSON Schemas as grammars: what is generated is valid, what cannot be held is refused by name and place."""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pydantic
import pytest
from typing_extensions import TypedDict

import offgrid_llama as og
from offgrid_llama.json_schema import MAX_BYTES, MAX_DEPTH, read_schema

SUITE: list[tuple[str, str, Any, list[tuple[Any, bool]]]] = json.loads(
    Path(__file__).with_name("data").joinpath("json_schemas.json").read_text(encoding="utf-8")
)
CANNOT = {  # what the suite's files are about, and no grammar of ours can hold
    "contains", "dependentRequired", "dependentSchemas", "if-then-else", "maxContains", "minContains", "not",
    "propertyNames", "unevaluatedItems", "unevaluatedProperties",
}  # fmt: skip


def accepts(grammar: og.Grammar, vocab: og.Vocab, text: str) -> bool:
    """Return whether a grammar lets a text be written, and end there."""
    guide = grammar.guide(vocab)
    for token in vocab.tokenize(text, add_special=False):
        guide.fill()
        if guide.error is not None or not guide.mask[token // 32] >> token % 32 & 1:
            return False
        guide.accept(token)
    return guide.error is None and guide.may_end


def usable(schema: Any, vocab: og.Vocab) -> og.Grammar | None:
    """Return the grammar of a schema, or None where it is refused."""
    try:
        grammar = og.Grammar.json_schema(schema)
        grammar.guide(vocab)
    except og.GrammarError:
        return None
    return grammar


def ordered(value: Any, schema: Any) -> Any:
    """Return a value with its properties in the order of the schema's."""
    if isinstance(value, dict) and isinstance(schema, dict):
        names = [*schema.get("properties", {}), *schema.get("required", [])]
        return {name: value[name] for name in dict.fromkeys([*names, *value]) if name in value}
    return value


def test_what_is_not_valid_cannot_be_written(smollm2: og.Model) -> None:
    """Of all that the JSON-Schema-Test-Suite calls invalid, nothing passes; of what is valid, most does."""
    wrong = []
    n_invalid = n_valid = n_written = n_schemas = 0
    for file, description, schema, tests in SUITE:
        grammar = usable(schema, smollm2.vocab)
        if grammar is None:
            continue
        n_schemas += 1
        for value, valid in tests:
            passes = accepts(grammar, smollm2.vocab, json.dumps(ordered(value, schema), ensure_ascii=False))
            if not valid and passes:
                wrong.append((file, description, value))
            n_invalid += not valid
            n_valid += valid
            n_written += valid and passes
    assert not wrong
    sys.stdout.write(
        f"{n_schemas} of {len(SUITE)} schemas; {n_invalid} invalid texts refused; {n_written} of {n_valid} valid ones pass"
    )
    assert n_schemas >= 100
    assert n_invalid >= 200
    assert n_written >= 0.6 * n_valid  # of objects only those with the listed properties


def test_what_no_grammar_can_hold_is_refused_by_name() -> None:
    """Each keyword of JSON Schema is either held to or refused: the error has its name, and where it stands."""
    for keyword in (
        "not", "if", "then", "else", "contains", "minContains", "maxContains", "propertyNames", "unevaluatedItems",
        "unevaluatedProperties", "dependentRequired", "dependentSchemas", "dependencies", "$dynamicRef", "$recursiveRef",
        "minLenght",
    ):  # fmt: skip
        with pytest.raises(
            og.GrammarError, match=rf"at /properties/a/{keyword.replace('$', '[$]')}: '.{keyword[1:]}' is not"
        ):
            og.Grammar.json_schema({"type": "object", "properties": {"a": {keyword: True}}})
    with pytest.raises(og.GrammarError, match="at /uniqueItems"):
        og.Grammar.json_schema({"uniqueItems": True})
    assert read_schema({"uniqueItems": False, "title": "T", "x-ours": 1}) == {}


@pytest.mark.parametrize("file", sorted(CANNOT))
def test_the_suites_files_about_them(file: str, smollm2: og.Model) -> None:
    """Schemas that use such a keyword never become a grammar."""
    keyword = file.partition("-")[0]
    schemas = [schema for name, _, schema, _ in SUITE if name == file and f'"{keyword}"' in json.dumps(schema)]
    assert schemas
    assert [schema for schema in schemas if usable(schema, smollm2.vocab)] == []


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ('{"type": ', "no JSON"),
        ([], "at /: a schema is an object or true"),
        (False, "at /: a schema is an object or true"),
        ({"type": "strnig"}, "at /type: there is no type"),
        ({"items": {"type": "string", "minLength": 3, "maxLength": 1}}, "at /items/minLength: is 3, and maxLength is 1"),
        ({"minimum": 3, "exclusiveMaximum": 1}, "at /minimum: is 3, and exclusiveMaximum is 1"),
        ({"minItems": -1}, "at /minItems: must be a whole number"),
        ({"properties": []}, "at /properties: must be an object"),
        ({"anyOf": {}}, "at /anyOf: must be a list"),
        ({"anyOf": []}, "at /anyOf: must not be empty"),
        ({"enum": []}, "at /enum: must not be empty"),
        ({"format": "regex"}, "at /format: the format \"regex\" is not supported"),
        ({"$ref": "http://example.com/schema"}, "at /\\$ref: must be a reference into the same schema"),
        ({"const": float("nan")}, "at /const: nan is no number"),
        ({"const": {1: 2}}, "at /const: keys must be str, not int"),
        ({"const": object()}, "at /const: must be JSON, not object"),
        ({"minProperties": 2, "additionalProperties": {"type": "integer"}}, "at /minProperties: 'minProperties' of more"),
        ({"description": "x" * MAX_BYTES}, "the limit is 65,536"),
        ("x" * (MAX_BYTES + 1), "the limit is 65,536"),
        ('{"items": ' * (MAX_DEPTH + 1) + "{" + "}" * (MAX_DEPTH + 2), "nested deeper than 64"),
        ("[" * 60_000, "no JSON"),
    ],
    ids=range(21),
)  # fmt: skip
def test_what_is_no_schema(schema: object, told: str) -> None:
    """The error says what is wrong, and where."""
    with pytest.raises(og.GrammarError, match=told):
        og.Grammar.json_schema(schema)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nsatisfiable"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 5}]}, "oneOf"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "#"}, "no text that fulfills it"),
    ],
    ids=["ref", "unsatisfiable", "oneOf", "look-around", "nothing"],
)
def test_what_only_the_compiler_finds(schema: object, told: str, smollm2: og.Model) -> None:
    """Llguidance's own errors come as GrammarError, when the grammar is used."""
    grammar = og.Grammar.json_schema(schema)
    with pytest.raises(og.GrammarError, match=told):
        grammar.guide(smollm2.vocab)


class Colour(enum.Enum):
    """A choice."""

    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Part:
    """A dataclass in another one."""

    name: str
    size: float | None = None


@dataclasses.dataclass
class Whole:
    """A dataclass."""

    colour: Colour
    parts: list[Part]
    kind: Literal["a", 1]


class Typed(TypedDict):
    """A dict with known keys."""

    a: int


class Person(pydantic.BaseModel):
    """A Pydantic model."""

    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=120)
    friends: list[Person] = []


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Whole, '{"colour": "red", "parts": [{"name": "x", "size": null}], "kind": 1}', '{"colour": "green", '),
        (Typed, '{"a": 3}', '{"a": "3"}'),
        (Person, '{"name": "Ann", "age": 3, "friends": [{"name": "Bo", "age": 4}]}', '{"name": "Ann", "age": 121}'),
        (Person, '{"name": "Ann", "age": 3, "friends": []}', '{"name": "Ann", "age": 3, "friends": [], "other": 1}'),
        (list[int], "[1, 2]", "[1, a]"),
        (int, "12", "1.5"),
    ],
    ids=["dataclass", "TypedDict", "pydantic", "closed", "list", "int"],
)
def test_types(kind: Any, good: str, bad: str, smollm2: og.Model) -> None:
    """A type is its schema; an object has the properties that it lists."""
    grammar = og.Grammar.json_schema(kind)
    assert accepts(grammar, smollm2.vocab, good)
    assert not accepts(grammar, smollm2.vocab, bad)
    pydantic.TypeAdapter(kind).validate_json(good)


def test_what_has_no_schema() -> None:
    """A type without a schema is refused."""
    with pytest.raises(og.GrammarError, match="has no JSON Schema"):
        og.Grammar.json_schema(og.Model)


def test_objects_are_closed_unless_composed() -> None:
    """Objects have the properties that are listed, and others only where a schema speaks of them or is put together."""
    listed = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    read = read_schema(listed)
    assert read["additionalProperties"] is False
    assert read["properties"]["a"]["additionalProperties"] is False
    assert "additionalProperties" not in listed
    for composed in (
        {"allOf": [listed]},
        {**listed, "anyOf": [{"required": ["a"]}]},
        {**listed, "patternProperties": {"x": True}},
    ):
        assert "additionalProperties" not in read_schema(composed)
    assert read_schema({**listed, "additionalProperties": True})["additionalProperties"] is True
    assert read_schema({"type": "object"}) == {"type": "object"}


def test_spaces(smollm2: og.Model) -> None:
    """One space after commas and colons, or as the model likes."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["a", "b"]}
    usual, free = og.Grammar.json_schema(schema), og.Grammar.json_schema(schema, whitespace=True)
    texts = ['{"a": 1, "b": null}', '{"a":1,"b":null}', '{\n  "a": 1,\n  "b": null\n}']
    assert [accepts(usual, smollm2.vocab, text) for text in texts] == [True, False, False]
    assert [accepts(free, smollm2.vocab, text) for text in texts] == [True, True, True]


def schemas_to_generate(vocab: og.Vocab) -> list[Any]:
    """Return the suite's schemas that have a grammar, and say enough to be generated from: no ``true`` alone."""
    found = []
    for _, _, schema, _ in SUITE:
        if (
            isinstance(schema, dict)
            and schema.keys() - {"$id", "$comment", "default", "title"}
            and usable(schema, vocab)
        ):
            found.append(schema)
    return found


def _is_multiple(error: jsonschema.ValidationError) -> bool:
    """Return whether a number is a multiple after all: as floats, -42.2001 is none of 0.0001."""
    if error.validator != "multipleOf":
        return False
    return Fraction(repr(error.instance)) % Fraction(repr(error.validator_value)) == 0


def test_generated_texts_are_valid(smollm2: og.Model, pytestconfig: pytest.Config) -> None:
    """At a temperature of 1.5, over the schemas of the suite: all that ended by itself is valid, the rest a beginning."""
    n_cases = pytestconfig.getoption("--hazard-cases") or 100
    schemas = schemas_to_generate(smollm2.vocab)
    assert len(schemas) >= 50
    validators = [jsonschema.Draft202012Validator(schema) for schema in schemas]
    n_whole = n_cut = 0
    with og.Engine(smollm2, n_seq_max=8, n_ctx=8 * 512, max_queue=100_000) as engine:
        grammars = [og.Grammar.json_schema(schema) for schema in schemas]
        begun = []
        for seed in range(n_cases):
            at = seed % len(schemas)
            prompt = f"A JSON value under the schema {json.dumps(schemas[at])[:300]}:\n"
            options = {
                "grammar": grammars[at],
                "temperature": 1.5,
                "top_k": 0,
                "top_p": 1.0,
                "min_p": 0.0,
                "seed": seed,
            }
            begun.append((at, engine.submit(prompt, max_tokens=100, **options)))  # type: ignore[arg-type]
        for at, completion in begun:
            text = completion.result().text
            if completion.finish_reason is og.FinishReason.STOP:
                errors = [
                    error.message for error in validators[at].iter_errors(json.loads(text)) if not _is_multiple(error)
                ]
                assert not errors, (schemas[at], text)
                n_whole += 1
            else:
                guide = grammars[at].guide(smollm2.vocab)
                for token in completion.tokens:
                    guide.accept(token)
                assert guide.error is None, (schemas[at], text, guide.error)
                n_cut += 1
    sys.stdout.write(
        f"{n_whole} valid of {n_whole} that ended by themselves; {n_cut} cut by the limit of tokens; {len(schemas)} schemas"
    )
    assert n_whole >= n_cases / 4
