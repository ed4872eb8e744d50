"""Messages of Anthropic's API, and the content blocks that they are made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Tag

from offgrid_llama.server.shapes import by_shape
from offgrid_llama.server.strict import refused

from .anthropic_tools import CacheControl, Tool

__all__ = [
    "AssistantMessage", "ImageBlock", "Message", "NamedTool", "SystemPrompt", "TextBlock", "ThinkingBlock",
    "ToolAdditionBlock", "ToolReference", "ToolRemovalBlock", "ToolResultBlock", "ToolUseBlock", "UserMessage",
    "changes_of_tools",
]  # fmt: skip

MAX_KIND_CHARACTERS = 40
"""Characters of a block's type in an error, at most: the client chooses them."""

T = TypeVar("T")
Id = Annotated[str, Field(min_length=1, max_length=256)]
TextOrBlocks = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[T], Field(fail_fast=True), Tag("list")],
    by_shape("a valid string or a list of blocks"),
]


class _Block(BaseModel):
    """A part of a message. Names that are not known are left out: histories have what other servers have answered."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())
    cache_control: CacheControl | None = None


class TextBlock(_Block):
    """A text."""

    type: Literal["text"]
    text: str


class Base64Source(_Block):
    """A picture in base64."""

    type: Literal["base64"]
    media_type: str
    data: str

    @property
    def url(self) -> str:
        return f"data:{self.media_type};base64,{self.data}"


class UrlSource(_Block):
    """The place of a picture."""

    type: Literal["url"]
    url: str


class ImageBlock(_Block):
    """A picture."""

    type: Literal["image"]
    source: Annotated[Base64Source | UrlSource, Field(discriminator="type")]


class ThinkingBlock(_Block):
    """The model's thinking."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = None


class RedactedThinkingBlock(_Block):
    """The thinking of another server's model, which only that server can read."""

    type: Literal["redacted_thinking"]
    data: str | None = None


class ToolUseBlock(_Block):
    """A call of a tool."""

    type: Literal["tool_use"]
    id: Id
    name: Annotated[str, Field(min_length=1, max_length=256)]
    input: dict[str, Any] | None = None


class ToolReference(_Block):
    """The name of a tool that a search for tools has found."""

    type: Literal["tool_reference"]
    tool_name: str


class NamedTool(_Block):
    """A tool that the request has already, by its name."""

    type: Literal["tool_reference"]
    name: Annotated[str, Field(min_length=1, max_length=256)]


class DefinedTool(_Block):
    """A tool that a message brings."""

    type: Literal["tool_definition"]
    definition: Tool


def _of_types(*known: str) -> BeforeValidator:
    """Return the check of a block's type, which names one that is not supported."""

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in known:
            told = f"{kind[:MAX_KIND_CHARACTERS]!r} is not supported here, only {', '.join(map(repr, known))}"
            raise refused("type", told)
        return value

    return BeforeValidator(check)


_ResultBlock: TypeAlias = Annotated[
    TextBlock | ImageBlock | ToolReference, Field(discriminator="type"), _of_types("text", "image", "tool_reference")
]


class ToolResultBlock(_Block):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: Id
    content: TextOrBlocks[_ResultBlock] | None = None
    is_error: bool | None = None


_UserBlock: TypeAlias = Annotated[
    TextBlock | ImageBlock | ToolResultBlock, Field(discriminator="type"), _of_types("text", "image", "tool_result")
]
_AssistantBlock: TypeAlias = Annotated[
    TextBlock | ThinkingBlock | RedactedThinkingBlock | ToolUseBlock,
    Field(discriminator="type"),
    _of_types("text", "thinking", "redacted_thinking", "tool_use"),
]
SystemPrompt: TypeAlias = TextOrBlocks[Annotated[TextBlock, _of_types("text")]]


class ToolAdditionBlock(_Block):
    """From here on, the model has a tool."""

    type: Literal["tool_addition"]
    tool: Annotated[
        NamedTool | DefinedTool, Field(discriminator="type"), _of_types("tool_reference", "tool_definition")
    ]


class ToolRemovalBlock(_Block):
    """From here on, the model does not have a tool."""

    type: Literal["tool_removal"]
    tool: Annotated[NamedTool, _of_types("tool_reference")]


_SystemBlock: TypeAlias = Annotated[
    TextBlock | ToolAdditionBlock | ToolRemovalBlock,
    Field(discriminator="type"),
    _of_types("text", "tool_addition", "tool_removal"),
]


class _Message(BaseModel):
    """A message. Names that are not known are left out."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class UserMessage(_Message):
    """The user's text, and the results of tool calls."""

    role: Literal["user"]
    content: TextOrBlocks[_UserBlock]


class AssistantMessage(_Message):
    """The model's answer."""

    role: Literal["assistant"]
    content: TextOrBlocks[_AssistantBlock]


class SystemMessage(_Message):
    """Instructions within the conversation, and changes of its tools."""

    role: Literal["system"]
    content: TextOrBlocks[_SystemBlock]


Message: TypeAlias = Annotated[UserMessage | AssistantMessage | SystemMessage, Field(discriminator="role")]


def changes_of_tools(message: Message) -> list[tuple[int, ToolAdditionBlock | ToolRemovalBlock]]:
    """Return the blocks of a message that change the tools, each with its index."""
    if not isinstance(message, SystemMessage) or isinstance(message.content, str):
        return []
    return [(at, block) for at, block in enumerate(message.content) if not isinstance(block, TextBlock)]
