"""LlamaGrammar: GBNF and JSON Schema, read where llama-cpp-python reads them, as grammars of offgrid_llama."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.gbnf_samples import NAMES, verdict
from offgrid_llama.compat.llama_cpp import llama_grammar
from offgrid_llama.compat.llama_cpp.llama_grammar import LlamaGrammar

DATA = Path(__file__).parents[1] / "data"
THEIRS = json.loads((DATA / "llama_cpp_chat_formats.json").read_text("utf-8"))["grammars"]


@pytest.mark.parametrize("name", NAMES)
def test_grammars_allow_the_same_texts(name: str, smollm2: og.Model) -> None:
    """Random texts of llama-cpp-python's grammars, and such texts with an error in them."""
    grammar = og.Grammar.gbnf(getattr(llama_grammar, name))
    theirs = {text: told for each, text, told in THEIRS if each == name}
    assert {"whole", "begun", "refused"} & set(theirs.values())
    assert {text: verdict(text, grammar, smollm2.vocab) for text in theirs} == theirs


def test_any_json_object_is_quick(smollm2: og.Model) -> None:
    """It is followed by other rules than its text has, which allow the same texts."""
    quick = LlamaGrammar.from_string(llama_grammar.JSON_GBNF).grammar
    assert quick.kind == "lark"
    theirs = {text: told for each, text, told in THEIRS if each == "JSON_GBNF"}
    assert {text: verdict(text, quick, smollm2.vocab) for text in theirs} == theirs


def test_any_json_object_without_llguidance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then it stays GBNF, which llama.cpp follows as well."""
    monkeypatch.setattr(og.Grammar, "guided", False)
    assert LlamaGrammar.from_string(llama_grammar.JSON_GBNF).grammar.kind == "gbnf"


def test_gbnf_is_read_when_it_is_used() -> None:
    """An invalid grammar is a ValueError then, with line and column; it is offgrid_llama's GrammarError as well."""
    made = LlamaGrammar.from_string("root ::= (")
    assert made._grammar == "root ::= ("
    with pytest.raises(ValueError, match="line 1, column 10") as caught:
        _ = made.grammar
    assert isinstance(caught.value, og.GrammarError)


def test_a_grammar_is_made_once() -> None:
    """It is the same object each time, and resetting changes nothing."""
    made = LlamaGrammar(_grammar='root ::= "a" | "b"')
    assert made._root == "root"
    grammar = made.grammar
    made.reset()
    assert made.grammar is grammar
    assert grammar.kind == "gbnf"


def test_grammars_of_files(tmp_path: Path) -> None:
    """UTF-8; an empty file is a ValueError, one that is not there an OSError."""
    file = tmp_path / "a.gbnf"
    file.write_text('root ::= "ß"', encoding="utf-8")
    assert LlamaGrammar.from_file(file).grammar.text == 'root ::= "ß"'
    assert LlamaGrammar.from_file(str(file), verbose=False).grammar.text == 'root ::= "ß"'
    file.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="is empty"):
        LlamaGrammar.from_file(file)
    with pytest.raises(FileNotFoundError):
        LlamaGrammar.from_file(tmp_path / "b.gbnf")


def test_grammars_of_schemas(smollm2: og.Model) -> None:
    """JSON that is valid under the schema, with one space behind each colon."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    grammar = LlamaGrammar.from_json_schema(json.dumps(schema)).grammar
    for text, told in [('{"n": 1}', "whole"), ('{"n":1}', "refused"), ('{"n": "1"}', "refused"), ("{}", "refused")]:
        assert verdict(text, grammar, smollm2.vocab) == told


@pytest.mark.parametrize("text", ["", "nonsense", "[]", '{"type": "nonsense"}', '{"$ref": "#/nowhere"}', "1"])
def test_what_is_no_schema_is_refused_at_once(text: str) -> None:
    """It is a ValueError."""
    with pytest.raises(ValueError, match=r".+"):
        LlamaGrammar.from_json_schema(text)


def test_rules_that_no_grammar_holds_are_left_out(caplog: pytest.LogCaptureFixture, smollm2: og.Model) -> None:
    """The others hold, and a warning names what is left out, unless it is not wanted."""
    schema = json.dumps({"type": "array", "items": {"type": "integer"}, "uniqueItems": True})
    with caplog.at_level(logging.WARNING, "offgrid_llama.compat"):
        LlamaGrammar.from_json_schema(schema, verbose=False)
        assert not caplog.records
        grammar = LlamaGrammar.from_json_schema(schema).grammar
    assert "uniqueItems" in caplog.text
    assert verdict("[1, 1]", grammar, smollm2.vocab) == "whole"
    assert verdict('["', grammar, smollm2.vocab) == "refused"


def read_cases() -> list[tuple[dict[str, Any], list[str]]]:
    """Return schemas of JSON Schema's test suite, each with values as JSON."""
    cases = []
    for _, _, schema, values in json.loads((DATA / "json_schemas.json").read_text("utf-8")):
        written = json.dumps(schema)
        if (
            "prefixItems" not in written and "-2.0" not in written
        ):  # arrays of some places are whole; -2.0 is not -2 here
            cases.append((schema, [json.dumps(value, ensure_ascii=False) for value, _ in values]))
    return cases


def test_gbnf_of_a_schema_allows_what_the_schema_allows(smollm2: og.Model) -> None:
    """Values that the grammar of the schema allows are allowed by its GBNF, too, and some that it refuses are refused."""
    allowed = refused = 0
    for schema, values in read_cases():
        try:
            made = LlamaGrammar.from_json_schema(json.dumps(schema), verbose=False)
        except ValueError:
            continue
        told = [_told(made.grammar, value, smollm2.vocab) for value in values]
        gbnf = [_told(og.Grammar.gbnf(made._grammar), value, smollm2.vocab) for value in values]
        assert [value for value, exact, loose in zip(values, told, gbnf, strict=True) if exact and not loose] == [], (
            schema
        )
        allowed += sum(told)
        refused += len(gbnf) - sum(gbnf)
    assert allowed > 200
    assert refused > 200


def _told(grammar: og.Grammar, text: str, vocab: og.Vocab) -> bool:
    try:
        return verdict(text, grammar, vocab) == "whole"
    except og.GrammarError:  # no text satisfies the schema
        return False


SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer"},
        "b": {"enum": ["x", 'y"\\ü']},
        "c": {"type": "array", "items": {"$ref": "#/$defs/d"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["b"],
    "$defs": {"d": {"type": ["null", "string"], "maxLength": 2}},
}
TEXTS = {
    '{"b": "x"}': True,
    '{"a": 1, "b": "x", "c": [null]}': True,
    '{"b": "x", "c": ["ab", null]}': True,
    '{"a": -20, "b": "y\\"\\\\ü"}': True,
    "{}": False,
    '{"a": 1}': False,
    '{"b": "x", "a": 1}': False,
    '{"b": "x", "c": []}': False,
    '{"b": "x", "c": [null, null, null]}': False,
    '{"b": "x", "c": ["abc"]}': False,
    '{"b": "x", "d": 1}': False,
    '{"a": 01, "b": "x"}': False,
}


@pytest.mark.parametrize("text", TEXTS)
def test_gbnf_of_an_object(text: str, smollm2: og.Model) -> None:
    """Properties that must come, others that may, their order; lengths, references and types."""
    grammar = og.Grammar.gbnf(llama_grammar.json_schema_to_gbnf(json.dumps(SCHEMA)))
    assert _told(grammar, text, smollm2.vocab) == TEXTS[text]


def test_the_order_of_properties(smollm2: og.Model) -> None:
    """Those that are named come first, and the others as the schema has them."""
    grammar = og.Grammar.gbnf(llama_grammar.json_schema_to_gbnf(json.dumps(SCHEMA), prop_order=["c", "b"]))
    assert _told(grammar, '{"c": [null], "b": "x", "a": 1}', smollm2.vocab)
    assert _told(grammar, '{"b": "x", "a": 1}', smollm2.vocab)
    assert not _told(grammar, '{"a": 1, "b": "x"}', smollm2.vocab)


def test_llama_cpp_reads_the_gbnf(smollm2: og.Model) -> None:
    """Its own parser takes the text."""
    made = LlamaGrammar.from_json_schema(json.dumps(SCHEMA))
    with og.SamplerChain([og.Grammar.gbnf(made._grammar).sampler(smollm2.vocab)]):
        pass


def test_types_inside_that_are_missing(smollm2: og.Model) -> None:
    """They are those that the keywords are for."""
    parts = {"o": {"properties": {"x": {}}}, "l": {"items": {"type": "null"}}, "s": {"maxLength": 3}}
    made = LlamaGrammar.from_json_schema(json.dumps({"properties": parts}))
    for grammar in (made.grammar, og.Grammar.gbnf(made._grammar)):
        assert _told(grammar, '{"o": {"x": 1}, "l": [null], "s": "a"}', smollm2.vocab)
        for text in ('{"o": 1}', '{"l": 1}', '{"s": 1}'):
            assert not _told(grammar, text, smollm2.vocab)


@pytest.mark.parametrize("schema", [{}, {"properties": {"a": {}}}, {"additionalProperties": {"type": "integer"}}])
def test_schemas_without_a_type(schema: dict[str, Any], smollm2: og.Model) -> None:
    """They are for objects, as in llama-cpp-python: the model cannot write a bare number."""
    made = LlamaGrammar.from_json_schema(json.dumps(schema))
    for grammar in (made.grammar, og.Grammar.gbnf(made._grammar)):
        assert _told(grammar, '{"a": 1}', smollm2.vocab)
        assert not _told(grammar, "1", smollm2.vocab)
