"""Tools of the Responses API, and the choice among them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from offgrid_llama.server.strict import Strict, refused

from .custom_tools import as_function, input_schema
from .openai_messages import MAX_TOOLS, GrammarText, ToolName

__all__ = ["CalledTool", "ToolChoice", "Tools", "called_tools", "chat_choice", "chat_tools", "full_name"]

MAX_NAME_CHARACTERS = 64


def full_name(name: str, namespace: str | None) -> str:
    """Return the name by which the model calls a tool."""
    return name if namespace is None else f"{namespace}.{name}"


class CalledTool(NamedTuple):
    """A tool, as the items of its calls have it: their type, its name and its namespace."""

    item_type: Literal["function_call", "custom_tool_call"]
    name: str
    namespace: str | None = None


class FunctionTool(Strict):
    """A function that the model may call."""

    type: Literal["function"]
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    output_schema: dict[str, Any] | None = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None

    def schema_of_arguments(self) -> dict[str, Any] | None:
        """Return the JSON Schema of the arguments; None is any."""
        return self.parameters


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class GrammarFormat(Strict):
    """Texts of a grammar."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: GrammarText


def _kind(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


class CustomTool(Strict):
    """A tool that takes a text. The model calls it as a function with one argument, ``input``."""

    type: Literal["custom"]
    name: ToolName
    description: str | None = None
    format: (
        Annotated[
            Annotated[TextFormat, Tag("text")] | Annotated[GrammarFormat, Tag("grammar")],
            Discriminator(_kind, custom_error_type="wrong_shape", custom_error_message="Input should be a format"),
        ]
        | None
    ) = None
    allowed_callers: list[str] | None = None
    defer_loading: bool | None = None

    def schema_of_arguments(self) -> dict[str, Any]:
        """Return the JSON Schema of the arguments."""
        form = self.format
        return input_schema(form.syntax, form.definition) if isinstance(form, GrammarFormat) else input_schema()


_CHOICE = Discriminator(_kind, custom_error_type="wrong_shape", custom_error_message="Input should be a tool")


def _of_kind(*kinds: str) -> BeforeValidator:
    """Return a check that refuses tools of other types by their names."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and _kind(value) not in kinds:
            ours = "only functions and custom tools are supported"
            raise refused("type", f"{ours}, not {str(_kind(value))[:40]!r}; with ignore_unknown others are left out")
        return value

    return BeforeValidator(check)


def _known(given: Any, info: ValidationInfo) -> Any:
    """Leave out tools that only OpenAI runs, with ``ignore_unknown``."""
    if (info.context or {}).get("ignore_unknown") and isinstance(given, list):
        return [tool for tool in given if not isinstance(tool, dict) or _kind(tool) in _KINDS]
    return given


_Function: TypeAlias = Annotated[FunctionTool, Tag("function")]
_Custom: TypeAlias = Annotated[CustomTool, Tag("custom")]


class NamespaceTool(Strict):
    """Tools whose names have the same beginning."""

    type: Literal["namespace"]
    name: ToolName
    description: str | None = None
    tools: Annotated[
        list[Annotated[_Function | _Custom, _CHOICE, _of_kind("function", "custom")]],
        Field(max_length=MAX_TOOLS, fail_fast=True),
    ]

    @model_validator(mode="after")
    def _check_names(self) -> NamespaceTool:
        long = next(
            (tool.name for tool in self.tools if len(full_name(tool.name, self.name)) > MAX_NAME_CHARACTERS), None
        )
        if long is not None:
            raise refused("name", f"with that of its tool {long} it has more than {MAX_NAME_CHARACTERS} characters")
        return self


_KINDS = ("function", "custom", "namespace")
Tools = Annotated[
    list[Annotated[_Function | _Custom | Annotated[NamespaceTool, Tag("namespace")], _CHOICE, _of_kind(*_KINDS)]],
    Field(max_length=MAX_TOOLS, fail_fast=True),
    BeforeValidator(_known),
]


class NamedTool(Strict):
    """A tool of the request, by its name."""

    type: Literal["function", "custom"]
    name: ToolName


class AllowedTools(Strict):
    """The tools that the model may call now."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


def _kind_of_choice(value: Any) -> str | None:
    if isinstance(value, str):
        return "text"
    return "allowed" if _kind(value) == "allowed_tools" else "named"


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("text")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[AllowedTools, Tag("allowed")],
    Discriminator(_kind_of_choice),
]


_AnyTool: TypeAlias = FunctionTool | CustomTool | NamespaceTool


def _each(tools: Sequence[_AnyTool]) -> Iterator[tuple[FunctionTool | CustomTool, str | None]]:
    """Yield the tools, each with its namespace or None."""
    for tool in tools:
        if isinstance(tool, NamespaceTool):
            yield from ((each, tool.name) for each in tool.tools)
        else:
            yield tool, None


def called_tools(tools: Sequence[_AnyTool]) -> dict[str, CalledTool]:
    """Return what the items of calls have, by the names with which the model calls."""
    return {
        full_name(tool.name, namespace): CalledTool(
            "custom_tool_call" if isinstance(tool, CustomTool) else "function_call", tool.name, namespace
        )
        for tool, namespace in _each(tools)
    }


def chat_tools(tools: Sequence[_AnyTool]) -> list[dict[str, Any]]:
    """Return tools as those of chat completions."""
    return [
        as_function(full_name(tool.name, namespace), tool.description, tool.schema_of_arguments())
        for tool, namespace in _each(tools)
    ]


def chat_choice(choice: str | NamedTool | AllowedTools | None) -> Any:
    """Return a choice as that of chat completions."""
    if isinstance(choice, NamedTool):
        return _named(choice)
    if isinstance(choice, AllowedTools):
        allowed = {"mode": choice.mode, "tools": [_named(tool) for tool in choice.tools]}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice


def _named(tool: NamedTool) -> dict[str, Any]:
    return {"type": "function", "function": {"name": tool.name}}
