"""chat/tools/tool.py: functions and schemas as tools, which of them may be called, and what is no tool."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from functools import partial
from typing import Any, Literal

import pytest

import offgrid_llama as og
from helpers.tools import CLOCK, TOOLS
from offgrid_llama.chat.tools.tool import KEPT_MAX_CHARACTERS, Tool, ToolCall, choose_tools, read_tools


def look_up(city: str, unit: Literal["celsius", "kelvin"] = "celsius", days: list[int] | None = None) -> str:
    """Return the weather of a city.

    More of this is not for the model.
    """
    return f"{city} {unit} {days}"


def test_functions_are_tools() -> None:
    """A typed function has a name, a description and a schema, and is called with the types it asks for."""
    (tool,) = read_tools([look_up])
    assert (tool.name, tool.description) == ("look_up", "Return the weather of a city.")
    assert tool.parameters["required"] == ["city"]
    assert tool.parameters["properties"]["unit"]["enum"] == ["celsius", "kelvin"]
    call = ToolCall("a", "look_up", '{"city": "Bern", "days": [1, 2]}')
    assert call.run([tool]) == "Bern celsius [1, 2]"
    with pytest.raises(ValueError, match="no parameter where"):
        ToolCall("a", "look_up", '{"city": "Bern", "where": 1}').run([tool])
    with pytest.raises(ValueError, match="days"):
        ToolCall("a", "look_up", '{"city": "Bern", "days": "some"}').run([tool])
    with pytest.raises(og.ToolError, match="no function other"):
        ToolCall("a", "other", "{}").run([tool])
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        ToolCall("a", "look_up", '{"city').run([tool])


def _no_type(city) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """Say nothing."""


def pay(amount: Decimal, to: str) -> None:
    """Pay."""


def test_types_are_as_tight_as_those_of_answers() -> None:
    """A parameter's type is held as that of an answer is: a Decimal is a number in a text, and no other text."""
    tool = Tool.of(pay)
    assert tool.schema.left_out == ()
    assert tool.fits({"amount": "12.50", "to": "Ann"})
    assert not tool.fits({"amount": "twelve", "to": "Ann"})


def test_arguments_that_are_nested_too_deeply() -> None:
    """They are a ValueError, as all that are no arguments."""
    with pytest.raises(ValueError, match="nested too deeply"):
        _ = ToolCall("1", "pay", "[" * 100_000).parsed


def _many(*cities: str) -> None:
    """Say nothing."""


@pytest.mark.parametrize(
    ("tools", "error", "told"),
    [
        ("look_up", TypeError, "must be a list"),
        ([1], TypeError, r"tools\[0\] must be"),
        ([{"type": "function"}], ValueError, r"tools\[0\] must be"),
        ([{"type": "function", "function": {"name": "a b"}}], ValueError, "1 to 128 letters"),
        ([{"type": "function", "function": {"name": "a", "parameters": 1}}], TypeError, "JSON Schema"),
        ([look_up, look_up], ValueError, "more than once"),
        ([_no_type], TypeError, "no type"),
        ([_many], TypeError, "cannot be a parameter"),
        ([look_up] * 513, ValueError, "the limit is 512"),
    ],
)  # fmt: skip
def test_tools_that_are_none(tools: object, error: type[Exception], told: str) -> None:
    """A value that is no tool is refused with its place."""
    with pytest.raises(error, match=told):
        read_tools(tools)


NOTES: dict[str, Any] = {
    "nullable": True, "enumNames": ["a"], "markdownDescription": "*a*", "format": "uint", "x-order": 3, "example": 1,
    "minLenght": 2,
}  # fmt: skip
"""Keywords that no rule of JSON Schema knows, and a format that no validator knows."""
LEFT_OUT: dict[str, Any] = {
    "propertyNames": {"pattern": "^a"}, "uniqueItems": True, "not": {"type": "null"}, "if": {"type": "string"},
    "unevaluatedProperties": False, "pattern": "(?=a)", "minLength": "3", "type": "file", "required": True,
    "$ref": "https://example.com/schema.json", "enum": [], "oneOf": [{"minimum": 1}, {"maximum": 5}],
}  # fmt: skip
"""Rules that cannot be held, and rules that are none."""


def of_parameters(parameters: Any) -> Tool:
    """Return the tool of a third party, as its description comes."""
    return read_tools([{"type": "function", "function": {"name": "a", "parameters": parameters}}])[0]


def test_schemas_of_third_parties() -> None:
    """A schema never refuses a tool: notes are ignored, rules that cannot be held are left out and told by their place."""
    noted = of_parameters({"type": "object", "properties": {"b": {"type": "integer", **NOTES}}})
    assert noted.schema.left_out == ()
    assert noted.schema.document["properties"] == {"b": {"type": "integer"}}
    for keyword, value in LEFT_OUT.items():
        tool = of_parameters({"properties": {"b": {"minimum": 2, keyword: value}}, "required": ["b"]})
        assert [told.partition(":")[0] for told in tool.schema.left_out] == [f"/properties/b/{keyword}"]
        assert tool.schema.document["required"] == ["b"]
    for whole in (
        {"type": "string"},
        {"$ref": "#"},
        {"properties": {"b": False}, "required": ["b"]},
        {"allOf": [False]},
    ):
        assert of_parameters(whole).schema.left_out
        assert of_parameters(whole).schema.document["type"] == "object"


def test_schemas_that_are_large_or_deep() -> None:
    """A schema of any size, depth and chain of references is read in bounded time, and held as far as it can be."""
    deep: Any = {"type": "integer"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    chain = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}]} for i in range(1500)}
    plain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(1500)}
    last = {"d1500": {"type": "integer"}}
    for parameters in (
        {"properties": {"a": deep}}, {"properties": {"a": {"enum": ["x" * 70_000]}}},
        {"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**chain, **last}},
    ):  # fmt: skip
        assert of_parameters(parameters).schema.left_out
    tool = of_parameters({"properties": {"a": {"$ref": "#/$defs/d0"}}, "$defs": {**plain, **last}})
    assert tool.schema.left_out == ()
    assert tool.argument_types("a") == {"integer"}


def test_what_is_left_out_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log names the tool and the rules, the first time that they are read."""
    parameters = {"properties": {"once": {"type": "array", "contains": {}}}}
    for _ in range(3):
        assert of_parameters(parameters).schema.left_out
    assert [record.getMessage() for record in caplog.records] == [
        "tool 'a': calls are not held to all of its schema: /properties/once/contains: 'contains' is not supported"
    ]


def test_choices() -> None:
    """Which tools may be called, and whether one must be."""
    assert choose_tools(TOOLS, None) == (TOOLS, False)
    assert choose_tools(TOOLS, "none") == ([], False)
    assert choose_tools(TOOLS, "required") == (TOOLS, True)
    assert choose_tools(TOOLS, "clock") == ([CLOCK], True)
    assert choose_tools(TOOLS, {"type": "function", "function": {"name": "clock"}}) == ([CLOCK], True)
    for choice in ("never", 3, {"type": "function"}):
        with pytest.raises(ValueError, match="tool_choice must be"):
            choose_tools(TOOLS, choice)
    with pytest.raises(ValueError, match="there is none"):
        choose_tools([], "required")


def test_long_schemas_are_not_kept() -> None:
    """A short one is read once and kept for further requests; a long one is not kept, as clients send megabytes."""
    for n, is_kept in ((100, True), (KEPT_MAX_CHARACTERS, False)):
        schema = {"type": "object", "properties": {"a": {"type": "string", "description": "x" * n}}}
        first, second = (Tool("long", "", dict(schema)) for _ in range(2))
        assert (first.schema is second.schema) == is_kept
        assert first.fits({"a": "b"})


class Clock:
    """A clock."""

    def __call__(self, hour: int, zone: Literal["UTC", "CET"] = "UTC") -> str:
        """Return the time.

        More.
        """
        return f"{hour} {zone}"


class AsyncClock(Clock):
    async def __call__(self, hour: int, zone: str = "UTC") -> str:  # type: ignore[override]
        return f"{hour} {zone}"


@pytest.mark.parametrize(
    ("function", "name", "description"),
    [
        (Clock(), "Clock", "Return the time."),
        (partial(Clock()), "Clock", "Return the time."),
        (partial(Clock().__call__, zone="CET"), "__call__", "Return the time."),
        (partial(partial(look_up, unit="kelvin"), "Bern"), "look_up", "Return the weather of a city."),
        (AsyncClock(), "AsyncClock", ""),
    ],
)
def test_what_is_called_like_a_function(function: Any, name: str, description: str) -> None:
    """An object that can be called, and a partial, are tools as the function is that runs."""
    tool = Tool.of(function)
    assert (tool.name, tool.description.rstrip(".")) == (name, description.rstrip("."))
    if "hour" in tool.argument_names:
        assert tool.argument_types("hour") == {"integer"}
        called = ToolCall("1", name, '{"hour": 3}').prepared([tool])
        assert inspect.iscoroutinefunction(type(function).__call__) or called().startswith("3 ")


def test_functions_that_say_less_than_their_schema() -> None:
    """A Tool's own schema holds: its function need have no types, and may take any names."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {}}}

    def untyped(a, b=2):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return a, b

    for function in (untyped, lambda **given: (given["a"], given.get("b", 2))):
        assert ToolCall("1", "f", '{"a": "x"}').run([Tool("f", "", schema, function)]) == ("x", 2)
    with pytest.raises(ValueError, match="f has no parameter c"):
        ToolCall("1", "f", '{"c": 1}').run([Tool("f", "", schema, untyped)])


def _some(n: int) -> Iterator[int]:
    yield n


async def _some_async(n: int) -> AsyncIterator[int]:
    yield n


@pytest.mark.parametrize("function", [_some, _some_async, partial(_some, 1)])
def test_generators(function: Any) -> None:
    """A generator would never run, so it is refused."""
    with pytest.raises(TypeError, match=r"_some.* is a generator: a tool returns its result"):
        read_tools([function])


def test_schemas_with_texts_and_numbers_that_json_has_not() -> None:
    """Half of a character and infinity cost a schema nothing but themselves; what is no JSON is refused by its place."""
    tool = of_parameters(
        {"properties": {"a": {"enum": ["\ud83d"], "title": float("inf")}, "\udc00": {"type": "integer"}}}
    )
    assert tool.schema.left_out == ()
    assert tool.fits({"a": "\ufffd", "\ufffd": 3})
    assert not tool.fits({"a": "b"})
    for wrong, told in (
        ({3}, "set is no type"),
        ([b"a"], "bytes is no type"),
        ({1: 2}, "names must be str"),
        (10**5000, "digits"),
    ):
        with pytest.raises((TypeError, ValueError), match=rf"^tools\[0\]: parameters: .*{told}"):
            of_parameters({"properties": {"a": {"default": wrong}}})
