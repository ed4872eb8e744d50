"""Conversations in requests: messages with their calls, tools, and the choice among them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from offgrid_llama.server.shapes import by_shape
from offgrid_llama.server.strict import Described, Strict, refused
from offgrid_llama.text.json_text import read_json_text

from .custom_tools import arguments_of

__all__ = [
    "MAX_ARGUMENTS_CHARACTERS",
    "MAX_TOOLS",
    "ChatMessage",
    "ChatTool",
    "GrammarText",
    "ToolChoice",
    "ToolDefinition",
    "ToolName",
    "check_arguments",
]

MAX_TOOLS = 128
MAX_ARGUMENTS_CHARACTERS = 2**20
GrammarText = Annotated[str, Field(max_length=64 * 1024)]
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class _Open(BaseModel):
    """An object of which the model's template may know further names."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class TextPart(_Open):
    """A text in a message's content."""

    type: str | None = None
    text: str

    @model_validator(mode="before")
    @classmethod
    def _check_kind(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kind = given.get("type")
        if kind == "refusal":
            return {"text": given["refusal"], **given} if "refusal" in given else given
        if isinstance(kind, str) and kind != "text" and (kind in given or "text" not in given):
            raise refused("type", f"only parts with text, image_url and input_audio are supported, not {kind[:40]!r}")
        return given


class ImageUrl(_Open):
    """The place of a picture: a ``data:`` URL, which has the file itself."""

    url: str


class ImagePart(_Open):
    """A picture in a message's content."""

    type: Literal["image_url"]
    image_url: Annotated[
        Annotated[str, Tag("text")] | Annotated[ImageUrl, Tag("object")], by_shape("a URL, or an object with one")
    ]


class InputAudio(_Open):
    """A sound: the file itself, in base64."""

    data: str
    format: str | None = None


class AudioPart(_Open):
    """A sound in a message's content."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def _kind_of_part(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind in ("image_url", "input_audio") else "text"


ContentPart: TypeAlias = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[ImagePart, Tag("image_url")]
    | Annotated[AudioPart, Tag("input_audio")],
    Discriminator(_kind_of_part),
]
Content: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[ContentPart], Field(fail_fast=True), Tag("list")],
    by_shape("a valid string or a list of parts"),
]


def check_arguments(text: str) -> str:
    """Refuse arguments that are no JSON object of limited depth. No arguments at all are an empty text, or null."""
    if not text.strip():
        return text
    try:
        value = read_json_text(text)
    except ValueError as error:
        raise PydanticCustomError("arguments", "it is not valid JSON: {why}", {"why": str(error)}) from None
    if value is not None and not isinstance(value, dict):
        raise PydanticCustomError("arguments", "it must be a JSON object")
    return text


class CalledFunction(_Open):
    """The function that a call in the history calls."""

    name: Annotated[str, Field(min_length=1)]
    arguments: (
        Annotated[
            Annotated[str, Field(max_length=MAX_ARGUMENTS_CHARACTERS), AfterValidator(check_arguments), Tag("text")]
            | Annotated[dict[str, Any], Tag("object")],
            by_shape("JSON of an object, or an object"),
        ]
        | None
    ) = None


class CalledTool(_Open):
    """A call in the history."""

    id: str | None = None
    type: Literal["function"] | None = None
    function: CalledFunction

    @model_validator(mode="before")
    @classmethod
    def _check_custom(cls, given: Any) -> Any:
        """Make the call of a custom tool that of a function, as the model has written it."""
        if not isinstance(given, dict) or given.get("type") != "custom":
            return given
        custom = given.get("custom")
        if not isinstance(custom, dict) or not isinstance(custom.get("input"), str):
            raise refused("custom", "it must be an object with a name and an input")
        function = {"name": custom.get("name"), "arguments": arguments_of(custom["input"])}
        return {
            **{name: value for name, value in given.items() if name != "custom"},
            "type": "function",
            "function": function,
        }


class ChatMessage(_Open):
    """A message. Further fields go to the model's template."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: Content | None = None
    tool_calls: Annotated[list[CalledTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    function_call: Annotated[CalledFunction | None, Field(description="The one call of earlier clients.")] = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(Described):
    """A function that the model may call."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(Described):
    """A tool that the model may use."""

    type: Literal["function"]
    function: Function


class AnyText(Strict):
    """The format of any text."""

    type: Literal["text"]


class Grammar(Strict):
    """A grammar of texts."""

    syntax: Literal["lark", "regex"]
    definition: GrammarText


class GrammarFormat(Strict):
    """The format of the texts of a grammar."""

    type: Literal["grammar"]
    grammar: Grammar


def _kind(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else getattr(value, "type", None)


class Custom(Described):
    """The description of a tool that takes a text."""

    name: ToolName
    description: str | None = None
    format: (
        Annotated[
            Annotated[AnyText, Tag("text")] | Annotated[GrammarFormat, Tag("grammar")],
            Discriminator(_kind, custom_error_type="wrong_shape", custom_error_message="Input should be a format"),
        ]
        | None
    ) = None


class CustomTool(Described):
    """A tool that takes a text."""

    type: Literal["custom"]
    custom: Custom


def _kind_of_tool(value: Any) -> str:
    return "custom" if _kind(value) == "custom" else "function"


ChatTool: TypeAlias = Annotated[
    Annotated[ToolDefinition, Tag("function")] | Annotated[CustomTool, Tag("custom")], Discriminator(_kind_of_tool)
]


class NamedFunction(Strict):
    """The name of a tool's function."""

    name: ToolName


class NamedTool(Strict):
    """A tool of the request, by its name."""

    type: Literal["function", "custom"] | None = None
    function: NamedFunction | None = None
    custom: NamedFunction | None = None

    @model_validator(mode="after")
    def _check_one(self) -> NamedTool:
        kind = self.type or ("function" if self.custom is None else "custom")
        for name in ("function", "custom"):
            if (getattr(self, name) is not None) != (name == kind):
                raise refused(name, "required" if name == kind else f"not allowed with the type {kind}")
        return self


class AllowedTools(Strict):
    """The tools that the model may call now."""

    mode: Literal["auto", "required"] | None = None
    tools: Annotated[list[NamedTool], Field(max_length=MAX_TOOLS, fail_fast=True)]


class AllowedToolsChoice(Strict):
    """A choice of some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(value: Any) -> str | None:
    """Return the tag of a choice: of JSON, and of an instance when it is written as JSON again."""
    if isinstance(value, (dict, NamedTool, AllowedToolsChoice)):
        kind = value.get("type") if isinstance(value, dict) else value.type
        return "allowed" if kind == "allowed_tools" else "named"
    return "text" if isinstance(value, str) else None


ToolChoice: TypeAlias = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("text")]
    | Annotated[NamedTool, Tag("named")]
    | Annotated[AllowedToolsChoice, Tag("allowed")],
    Discriminator(
        _kind_of_choice, custom_error_type="wrong_shape",
        custom_error_message="Input should be 'none', 'auto' or 'required', or an object",
    ),
]  # fmt: skip
