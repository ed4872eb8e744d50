"""JSON Schemas as grammars: what is generated is valid, what cannot be held is refused by name and place."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pydantic
import pytest
from typing_extensions import TypedDict

import offgrid_llama as og
from helpers.schemas import exact
from offgrid_llama.sampling.grammar.json_schema import MAX_BYTES, MAX_DEPTH, read_schema

SUITE: list[tuple[str, str, Any, list[tuple[Any, bool]]]] = json.loads(
    (Path(__file__).parents[2] / "data" / "json_schemas.json").read_text(encoding="utf-8")
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
            og.Grammar.json_schema({"type": "object", "properties": {"a": {keyword: {"minimum": 3}}}})
    with pytest.raises(og.GrammarError, match="at /uniqueItems"):
        og.Grammar.json_schema({"uniqueItems": True})
    assert read_schema({"uniqueItems": False, "title": "T", "x-ours": 1}) == {}


@pytest.mark.parametrize("file", sorted(CANNOT))
def test_the_suites_files_about_them(file: str, smollm2: og.Model) -> None:
    """Schemas that use such a keyword never become a grammar; ``"not": {}`` is but another way to write ``false``."""
    keyword = file.partition("-")[0]
    schemas = [
        schema for name, _, schema, _ in SUITE
        if name == file and f'"{keyword}"' in re.sub(r'"not": ({}|true)', "", json.dumps(schema))
    ]  # fmt: skip
    assert schemas
    assert [schema for schema in schemas if usable(schema, smollm2.vocab)] == []


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ('{"type": ', "no JSON"),
        ([], "at /: a schema is an object or true"),
        (False, "at /: allows no value"),
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
        ({"$ref": "#/nowhere"}, "at /\\$ref: there is no '#/nowhere'"),
        ({"$ref": "#"}, "at /\\$ref: leads back to itself, so there is no text that fulfills it"),
        ({"items": {"oneOf": [{"minimum": 1}, {"maximum": 5}]}}, "at /items/oneOf: the alternatives are not known to"),
        ({"properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}, "at /properties/a/pattern: look-around is not"),
        ({"required": "a"}, "at /required: must be a list of names"),
        ({"minimum": "3"}, "at /minimum: must be a number"),
        ({"pattern": 3}, "at /pattern: must be a str"),
        ({"type": {}}, "at /type: there is no type {}"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"minItems": 0.5}}}, "at /\\$defs/a/minItems: must be a whole number"),
        ({"allOf": [{"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}]}, "at /: leads back to itself each time"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"}, "at /: leads back to itself each time"),
        ({"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, "at /: leads back to itself each time"),
        ({"not": {}}, "at /: allows no value"),
        ({"$ref": "#/$defs/a", "$defs": {"a": False}}, "at /: allows no value"),
        (
            {"properties": {"a": {}}, "required": ["a", "b"], "additionalProperties": False},
            'at /required: "b" is not among the properties, and no others are allowed',
        ),
    ],
    ids=range(36),
)  # fmt: skip
def test_what_is_no_schema(schema: object, told: str) -> None:
    """The error says what is wrong, and where."""
    with pytest.raises(og.GrammarError, match=told):
        og.Grammar.json_schema(schema)


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "nsatisfiable"),
        ({"type": "string", "pattern": "^a$", "minLength": 3}, "Regex is empty"),
    ],
    ids=["types", "texts"],
)
def test_what_only_the_compiler_finds(schema: object, told: str, smollm2: og.Model) -> None:
    """Llguidance's own errors come as GrammarError, when the grammar is used."""
    grammar = og.Grammar.json_schema(schema)
    with pytest.raises(og.GrammarError, match=told):
        grammar.guide(smollm2.vocab)


@pytest.mark.parametrize(
    ("schema", "texts", "others"),
    [
        ({"properties": {"a": {"const": 1}}, "required": ["a", "b"], "type": "object"}, ['{"a": 1, "b": 2}'], ['{"a": 1}']),
        ({"anyOf": [{"not": {}}, {"type": "null"}]}, ["null"], ["1", "{}"]),
        ({"properties": {"a": {"not": True}, "b": {"type": "null"}}, "type": "object"}, ['{"b": null}'], ['{"a": 1}']),
        ({"items": {"$ref": "#/$defs/a"}, "type": "array", "$defs": {"a": False}}, ["[]"], ["[1]"]),
        ({"items": {"$ref": "#/$defs/a"}, "type": "array", "$defs": {"a": {"not": {}}}}, ["[]"], ["[1]"]),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}}, ["{}", '{"a": {"a": {}}}'], ['{"a": 1}'],
        ),
    ],
    ids=["required", "never", "no property", "a reference to nothing", "a definition of nothing", "an end"],
)  # fmt: skip
def test_what_may_be_left_out(schema: object, texts: list[str], others: list[str], smollm2: og.Model) -> None:
    """A required property is mentioned by that, and one that can have no value is not written."""
    grammar = og.Grammar.json_schema(schema)
    assert [text for text in (*texts, *others) if accepts(grammar, smollm2.vocab, text)] == texts


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


class Cat(pydantic.BaseModel):
    """One of two."""

    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(pydantic.BaseModel):
    """The other."""

    kind: Literal["dog"]
    name: str


@pytest.mark.parametrize("whole", [False, True])
def test_unions_told_apart_by_a_constant(smollm2: og.Model, *, whole: bool) -> None:
    """``oneOf`` of references that a constant tells apart is held, as pydantic writes it; the constant is required."""
    union = Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
    schema: Any = pydantic.TypeAdapter(union if whole else list[union]).json_schema()
    assert "oneOf" in json.dumps(schema)
    grammar = og.Grammar.json_schema(schema)
    for text, good in (
        ('{"kind": "cat", "lives": 3}', True), ('{"kind": "dog", "name": "Rex"}', True),
        ('{"kind": "dog", "lives": 3}', False), ('{"lives": 3}', False),
    ):  # fmt: skip
        assert accepts(grammar, smollm2.vocab, text if whole else f"[{text}]") is good


@pytest.mark.parametrize(
    ("ways", "held"),
    [
        ([{"type": "string"}, {"type": "integer"}], True), ([{"maximum": 3}, {"minimum": 4}], False),
        ([{"const": 1}, {"enum": [2, 3]}], True), ([{"const": 1}, {"minimum": 1}], False),
        ([{"type": "number", "maximum": 3}, {"type": "integer", "exclusiveMinimum": 3}], True),
        ([{"type": "integer"}, {"type": "number"}], False), ([{"maxLength": 3}, {"minLength": 3}], False),
        ([{"type": "string", "maxLength": 2}, {"type": "string", "minLength": 3}], True),
        ([{"type": "array", "maxItems": 1}, {"type": "array", "minItems": 2}], True),
        ([{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}], False),
        ([{"type": "object", "properties": {"a": {"type": each}}, "required": ["a"]} for each in ("string", "null")], True),
        ([{"type": "object", "properties": {"a": {"const": n}}} for n in range(100)], True),
    ],
)  # fmt: skip
def test_alternatives_that_exclude_each_other(ways: list[Any], *, held: bool) -> None:
    """``oneOf`` becomes ``anyOf`` where no value fits two of its alternatives; it is refused where one might."""
    if held:
        assert "anyOf" in read_schema({"oneOf": ways})
    else:
        with pytest.raises(og.GrammarError, match="at /oneOf: the alternatives are not known to exclude each other"):
            read_schema({"oneOf": ways})


def test_references_by_name(smollm2: og.Model) -> None:
    """A reference may be a pointer, an anchor or an ``$id`` of the schema, as seen from where it stands."""
    schema = {
        "$id": "http://localhost/root.json", "type": "array", "prefixItems": [
            {"$ref": "#/$defs/a%25b"}, {"$ref": "inner.json"}, {"$ref": "#there"}, {"$ref": "inner.json#/$defs/b"},
        ],
        "items": False, "minItems": 4, "$defs": {
            "a%b": {"const": 1}, "c": {"$anchor": "there", "const": 3},
            "d": {"$id": "inner.json", "$ref": "#/$defs/x", "$defs": {"x": {"const": 2}, "b": {"const": 4}}},
        },
    }  # fmt: skip
    grammar = og.Grammar.json_schema(schema)
    assert accepts(grammar, smollm2.vocab, "[1, 2, 3, 4]")
    assert not accepts(grammar, smollm2.vocab, "[1, 2, 3, 3]")


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
    """One space after commas and colons; or a space or an indented line wherever JSON allows them, and no more."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["a", "b"]}
    usual, free = og.Grammar.json_schema(schema), og.Grammar.json_schema(schema, whitespace=True)
    texts = ['{"a": 1, "b": null}', '{"a":1,"b":null}', '{\n  "a": 1,\n  "b": null\n}']
    assert [accepts(usual, smollm2.vocab, text) for text in texts] == [True, False, False]
    assert [accepts(free, smollm2.vocab, text) for text in texts] == [True, True, True]
    for spaces, allowed in (
        (" ", True),
        ("  ", False),
        ("\n" + " " * 24, True),
        ("\n" + " " * 25, False),
        ("\n\n", False),
    ):
        assert accepts(free, smollm2.vocab, f'{{{spaces}"a": 1, "b": null}}') is allowed


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


def test_generated_texts_are_valid(smollm2: og.Model, pytestconfig: pytest.Config) -> None:
    """At a temperature of 1.5, over the schemas of the suite: all that ended by itself is valid, the rest a beginning."""
    n_cases = pytestconfig.getoption("--hazard-cases") or 100
    schemas = schemas_to_generate(smollm2.vocab)
    assert len(schemas) >= 50
    validator = exact(jsonschema.Draft202012Validator)
    validators = [validator(schema) for schema in schemas]
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
                errors = [error.message for error in validators[at].iter_errors(json.loads(text))]
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
