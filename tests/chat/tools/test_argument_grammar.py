"""Arguments in every style of call: what the grammar allows is read as a value that is valid under the tool's schema."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from llguidance import LLMatcher

from helpers.golden_chats import known
from helpers.schemas import exact
from helpers.tools import WRITTEN
from helpers.walking import TOKENIZER, NoControls, walk
from offgrid_llama.chat.tools.call_format import ARGUMENT, Style, ToolFormat
from offgrid_llama.chat.tools.call_grammar import tool_grammar
from offgrid_llama.chat.tools.call_reader import ToolReader
from offgrid_llama.chat.tools.deltas import gathered
from offgrid_llama.chat.tools.lark_rules import LarkRules
from offgrid_llama.chat.tools.tool import Tool, read_tools

SUITE: list[tuple[str, str, Any, list[tuple[Any, bool]]]] = json.loads(
    (Path(__file__).parents[2] / "data" / "json_schemas.json").read_text(encoding="utf-8")
)
STYLES = {
    "JSON in marks": "Qwen-Qwen2.5-7B-Instruct.jinja", "bare JSON": "meta-llama-Llama-3.2-3B-Instruct.jinja",
    "XML-like": "Qwen3-Coder.jinja", "Python-like": "LFM2.5-8B-A1B.jinja",
}  # fmt: skip
OTHERS = [
    "GLM-4.6.jinja", "MiniMax-M2.jinja", "Kimi-K3.jinja", "deepseek-ai-DeepSeek-V3.2.jinja", "openbmb-MiniCPM5-1B.jinja",
    "google-gemma-4-31B-it.jinja", "Qwen3.5-4B.jinja",
]  # fmt: skip


def tool_of(parameters: Any) -> Tool:
    """Return a tool with these parameters, as a client sends it."""
    return read_tools([{"type": "function", "function": {"name": "f", "parameters": parameters}}])[0]


def read(form: ToolFormat, tool: Tool, text: str) -> list[Any]:
    """Return the arguments of the calls in a text, which are the same when it arrives character by character."""
    found = []
    for step in (len(text), 1):
        reader = ToolReader(form, [tool], lambda _: "id")
        told = [*(reader.push(text[at : at + step]) for at in range(0, len(text), step)), reader.finish()]
        found.append([json.loads(call.arguments) for call in gathered(delta for each in told for delta in each.calls)])
    assert found[0] == found[1], text
    return found[0]


def called(form: ToolFormat, tool: Tool, seeds: Sequence[int]) -> list[Any]:
    """Return the arguments of random calls that the grammar allows, of those that end by themselves."""
    grammar = tool_grammar(form, [tool], NoControls(), required=True, parallel=False)  # type: ignore[arg-type]
    ends = [b"}", b"]"]
    if form.tags is not None:
        ends += [value.end.replace(ARGUMENT, "value").encode() for value in form.tags.values.values()] * 2
    found = []
    for seed in seeds:
        text = walk(grammar._source or "", seed, [end for end in ends if end])
        if text is not None:
            calls = read(form, tool, text)
            assert len(calls) == 1, text
            found.append(calls[0])
    return found


@pytest.mark.parametrize("template", STYLES.values(), ids=STYLES)
def test_calls_under_the_suites_schemas(template: str) -> None:
    """Every call under a schema of the JSON-Schema-Test-Suite that is held as a whole is valid, in every style."""
    form = known(template)[1]
    n_calls = n_tools = 0
    wrong = []
    for at, (file, description, schema, _) in enumerate(SUITE):
        inner = {"$id": "http://localhost/inner", **schema} if isinstance(schema, dict) else schema
        within = {"type": "object", "properties": {"value": inner, "n": {"type": "integer"}}, "required": ["value"]}
        for parameters in (within, schema if isinstance(schema, dict) else within):
            tool = tool_of(parameters)
            if tool.schema.left_out:
                continue
            n_tools += 1
            validator = exact(jsonschema.validators.validator_for(parameters, default=jsonschema.Draft202012Validator))
            for value in called(form, tool, [2 * at, 2 * at + 1]):
                n_calls += 1
                if not validator(parameters).is_valid(value):
                    wrong.append((file, description, value))
    assert wrong == []
    sys.stdout.write(f"{n_calls} of {n_calls} calls of {n_tools} tools are valid")
    assert n_tools > 250
    assert n_calls >= 500


A_OBJECT = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "a reference to values": (
        {"properties": {"c": {"$ref": "#/$defs/C"}}, "required": ["c"], "$defs": {"C": {"enum": ["red", "blue"]}}},
        {"c": {"enum": ["red", "blue"]}},
    ),
    "a reference to an object": (
        {"properties": {"c": {"$ref": "#/$defs/C"}}, "required": ["c"], "$defs": {"C": A_OBJECT}}, {"c": A_OBJECT},
    ),
    "a pattern": (
        {"properties": {"c": {"type": "string", "pattern": "^[0-9]{4}$"}}, "required": ["c"]},
        {"c": {"pattern": "^[0-9]{4}$"}},
    ),
    "a reference to a neighbour": (
        {"properties": {"a": {"type": "string", "maxLength": 2}, "c": {"$ref": "#/properties/a"}}, "required": ["c"]},
        {"c": {"type": "string", "maxLength": 2}},
    ),
    "text or number": (
        {"properties": {"c": {"anyOf": [{"type": "string", "pattern": "^[0-9a]{2}$"}, {"type": "integer", "maximum": 3}]}},
         "required": ["c"]},
        {"c": {"anyOf": [{"type": "string", "pattern": "^[0-9a]{2}$"}, {"type": "integer", "maximum": 3}]}},
    ),
    "lengths": (
        {"properties": {"c": {"type": "string", "minLength": 2, "maxLength": 5}}, "required": ["c"]},
        {"c": {"type": "string", "minLength": 2, "maxLength": 5}},
    ),
    "one item": (
        {"properties": {"c": {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 1}}, "required": ["c"]},
        {"c": {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 1}},
    ),
    "a required property that is not listed": (
        {"properties": {"a": {"type": "integer"}}, "required": ["a", "c"]}, {"a": {"type": "integer"}, "c": {}},
    ),
    "a text, or what is left out": (
        {"properties": {"c": {"anyOf": [{"anyOf": [{"not": {}}, {"const": 1}]}, {"type": "null"}]}}, "required": ["c"]},
        {"c": {"enum": [1, None]}},
    ),
    "a definition without an end": (
        {"properties": {"c": {"type": "integer"}, "d": {"$ref": "#/$defs/N"}}, "required": ["c"],
         "$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}, "required": ["n"]}}},
        {"c": {"type": "integer"}, "d": False},
    ),
    "a format": (
        {"properties": {"c": {"type": "string", "format": "uuid"}}, "required": ["c"]},
        {"c": {"pattern": "^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("template", [*STYLES.values(), *OTHERS])
@pytest.mark.parametrize("kind", KINDS)
def test_one_schema_in_every_format(kind: str, template: str) -> None:
    """The schema of an argument holds in whichever way a model writes calls."""
    parameters, held = KINDS[kind]
    found = called(known(template)[1], tool_of(parameters), range(8))
    assert found
    for value in found:
        jsonschema.validate(value, {"properties": held, "required": ["c"]})


@pytest.mark.parametrize("template", [*STYLES.values(), *OTHERS])
def test_alternatives_of_the_whole(template: str) -> None:
    """Parameters of alternatives give the arguments of one of them."""
    parameters = {
        "type": "object",
        "anyOf": [
            {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"]},
        ],
    }
    names = {tuple(value) for value in called(known(template)[1], tool_of(parameters), range(40))}
    assert names == {("a",), ("b",)}


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"$ref": "#/$defs/T"}, "12", "12"), ({"type": ["string", "integer"]}, "12", 12),
        ({"type": ["string", "integer"]}, "12 apples", "12 apples"), ({"allOf": [{"type": "string"}]}, "true", "true"),
        ({"enum": ["1", "2"]}, "1", "1"), ({"type": "object"}, '{"a": "</parameter>"}', {"a": "</parameter>"}),
        ({}, '["</parameter>"]', ["</parameter>"]), ({"type": "number"}, "1e999", float("inf")),
        ({"type": "integer"}, "many", "many"), ({}, "NaN", "NaN"), ({}, "  a ", "  a "),
        ({}, " [ not a list", " [ not a list"), ({"type": "array"}, '["</para"]', ["</para"]),
    ],
)  # fmt: skip
def test_texts_and_other_values(schema: Any, text: str, value: Any) -> None:
    """Where a format has no quotes around texts, the schema tells texts from other values."""
    tool = tool_of({"properties": {"c": schema}, "$defs": {"T": {"type": "string"}}})
    call = f"<tool_call>\n<function=f>\n<parameter=c>\n{text}\n</parameter>\n</function>\n</tool_call>"
    assert read(known("Qwen3-Coder.jinja")[1], tool, call) == [{"c": value}]


def test_names_that_are_repeated() -> None:
    """Where a format repeats a name behind the value, only names that the schema lists can be written."""
    tool = tool_of({"properties": {"a": {"type": "boolean"}}, "additionalProperties": {"type": "boolean"}})
    found = called(known("MiniMax-M3.jinja")[1], tool, range(12))
    assert found
    assert {name for value in found for name in value} <= {"a"}


def test_names_with_the_sign_that_ends_names() -> None:
    """The name of an argument may have any character in it."""
    tool = tool_of({"properties": {'a"b': {"type": "integer"}, 'a">c': {"type": "integer"}}, "required": ['a"b']})
    for value in called(known("openbmb-MiniCPM5-1B.jinja")[1], tool, range(8)):
        assert 'a"b' in value
        assert value.keys() <= {'a"b', 'a">c'}


# Texts without quotes -------------------------------------------------------------------------------------------------

TEXTS: dict[str, Any] = {
    "any": {"type": "string"}, "long": {"type": "string", "minLength": 6},
    "a pattern": {"type": "string", "pattern": "[a-z<>/]{3}"}, "or a number": {"type": ["string", "integer"]},
}  # fmt: skip
RAW = [name for name in WRITTEN if (tags := known(name)[1].tags) and tags.values["string"].style is Style.RAW]


def is_allowed(source: str, text: str) -> bool:
    """Return whether a grammar in llguidance's form allows a text as a whole."""
    matcher = LLMatcher(TOKENIZER, source, log_level=0)
    tokens = TOKENIZER.tokenize_str(text)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens) and (matcher.is_accepting() or matcher.is_stopped()))


def pieces_of_marks(form: ToolFormat) -> list[str]:
    """Return texts that look like the marks around an argument named ``value``, and like parts of them."""
    tags = form.tags
    assert tags is not None
    way = tags.values["string"]
    end = way.end.replace(ARGUMENT, "value")
    core = end.strip()
    parts = [piece for at in range(1, len(core)) for piece in (core[:at], core[at:])]
    whole = [core, end, end + tags.begin, way.middle, tags.begin, core.replace("value", "valu"), *(tags.fence or ())]
    return [*parts, *whole * 3, *["abc def"] * max(6, len(parts) // 4), "\n", " ", "x<y", "12", '"']


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("kind", TEXTS)
def test_texts_with_marks_in_them(name: str, kind: str) -> None:
    """Whatever text a grammar allows between tags is read as it was written, the tags' own marks and parts of them too."""
    form = known(name)[1]
    tool = tool_of({"properties": {"value": TEXTS[kind], "z": {"type": "integer"}}, "required": ["value"]})
    source = tool_grammar(form, [tool], NoControls(), required=True, parallel=False)._source or ""  # type: ignore[arg-type]
    rng, pieces = random.Random(7), pieces_of_marks(form)
    n_allowed = 0
    for _ in range(60):
        value = "".join(rng.choices(pieces, k=rng.randint(1, 4)))
        text = form.write([("f", {"value": value}, "abcdefghi")]).lstrip()
        if is_allowed(source, text):
            n_allowed += 1
            (found,) = read(form, tool, text)
            assert str(found["value"]) == value or (kind == "or a number" and found["value"] == literal(value))
    assert n_allowed > 5


def literal(text: str) -> Any:
    """Return a text that is a number as that number."""
    return int(text) if text.strip().isdecimal() else text


def test_texts_that_end_like_their_own_tag() -> None:
    """The text behind MiniMax-M3's values begins and ends with the same mark: a value cannot end as that text begins."""
    form = known("MiniMax-M3.jinja")[1]
    tool = tool_of({"properties": {"value": {"type": "string", "minLength": 9}}, "required": ["value"]})
    source = tool_grammar(form, [tool], NoControls(), required=True, parallel=False)._source or ""  # type: ignore[arg-type]
    mark = "]<]minimax[>["
    for value, fits in (
        (f"a{mark}</value>", False),
        (f"a{mark}</value> b", True),
        (f"a{mark}</valu>", True),
        (mark, True),
    ):
        text = form.write([("f", {"value": value}, "")]).lstrip()
        assert is_allowed(source, text) == fits, value
        assert not fits or read(form, tool, text) == [{"value": value}]


@pytest.mark.parametrize("value", ["", " ", "]<]minimax", '["a"]'])
def test_texts_that_begin_like_other_values(value: str) -> None:
    """MiniMax-M3 writes lists between tags of their own: the beginning of such a tag is not taken for a quote."""
    form = known("MiniMax-M3.jinja")[1]
    assert form.tags is not None
    assert {way.style for way in form.tags.values.values()} == {Style.RAW, Style.JSON}
    tool = tool_of({"properties": {"value": {"type": "string"}}})
    assert read(form, tool, form.write([("f", {"value": value}, "")])) == [{"value": value}]


def test_texts_in_a_fence() -> None:
    """Where a format fences texts that look like markup, a grammar allows them with the fence, and tags within it."""
    form = known("openbmb-MiniCPM5-1B.jinja")[1]
    tool = tool_of({"properties": {"value": {"type": "string"}}, "required": ["value"]})
    source = tool_grammar(form, [tool], NoControls(), required=True, parallel=False)._source or ""  # type: ignore[arg-type]
    for value, fits in (
        ("<b>x</b>", True),
        ("a</param>b", True),
        ("<![CDATA[", True),
        ("a]]>", True),
        ("<a]]>b", False),
    ):
        text = form.write([("f", {"value": value}, "")]).lstrip()
        assert is_allowed(source, text) == fits, value
        assert not fits or read(form, tool, text) == [{"value": value}]


def test_grammars_lead_to_no_dead_end() -> None:
    """A text that may be a number, too, is refused at the first sign of another type, not somewhere behind it."""
    form = known("Qwen3-Coder.jinja")[1]
    tool = tool_of({"properties": {"value": {"type": ["string", "integer"]}}, "required": ["value"]})
    source = tool_grammar(form, [tool], NoControls(), required=True, parallel=False)._source or ""  # type: ignore[arg-type]
    begin = form.write([("f", {"value": "@"}, "")]).lstrip().partition("@")[0]
    matcher = LLMatcher(TOKENIZER, source, log_level=0)
    assert matcher.consume_tokens(TOKENIZER.tokenize_str(begin))
    assert not matcher.consume_tokens(TOKENIZER.tokenize_str('"quoted"'))


def test_marks_that_are_control_tokens() -> None:
    """A text before a control token has no text in it that looks like the token: it would be taken for the end."""
    lark = LarkRules({"<sep>": 7}, ["<sep>"], {})
    assert lark.until("t", "<sep>") == "BODYT <[7]>"
    assert lark.rules == ["BODYT: /(?s:.*)/ & ~/(?s:.*)<sep>(?s:.*)/"]
