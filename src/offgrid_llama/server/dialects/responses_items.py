"""Items of OpenAI's Responses API: those of a request, as clients write them, and as they are stored and listed.

Clients send back items that a server of any version has made: names that are not known are left out. Items of tools
that only OpenAI runs, and parts of other kinds than text, pictures and sound, are refused by name.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from offgrid_llama.server.shapes import by_shape
from offgrid_llama.server.strict import refused

from .openai_messages import MAX_ARGUMENTS_CHARACTERS, check_arguments

__all__ = [
    "Input", "Item", "input_items", "item_id", "new_response_id", "references", "response_of_item", "sealed",
]  # fmt: skip

MAX_ITEMS = 4096
MAX_ID_CHARACTERS = 256
_SEAL = "text:"
"""The beginning of ``encrypted_content`` that this server has written; the text follows in base64."""

Item: TypeAlias = dict[str, Any]
"""An item with its id, as OpenAI lists it."""


def new_response_id() -> str:
    """Return an id for a response."""
    return f"resp_{secrets.token_hex(16)}"


def item_id(kind: str, response_id: str, index: int) -> str:
    """Return the id of an item, from which the response that it came with can be told.

    Args:
        kind: the type of the item.
        response_id: of the response.
        index: of the item among the input and then the output of the response.
    """
    return f"{_PREFIXES[kind]}_{response_id.removeprefix('resp_')}{index:04x}"


def response_of_item(id_: str) -> str:
    """Return the id of the response that an item came with, if the item has an id of ours."""
    return f"resp_{id_.partition('_')[2][:-4]}"


def sealed(text: str) -> str:
    """Return a reasoning as ``encrypted_content``, which clients keep without reading it. It is not secret."""
    return _SEAL + base64.b64encode(text.encode()).decode()


def _unsealed(content: str | None) -> str:
    """Return the reasoning in ``encrypted_content``; "" for what another server has written."""
    if content is None or not content.startswith(_SEAL):
        return ""
    try:
        return base64.b64decode(content.removeprefix(_SEAL), validate=True).decode()
    except ValueError:
        return ""


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class Part(_Loose):
    """A text in an item."""

    text: str

    def input(self) -> dict[str, Any]:
        """Return it as a part of what a user, or a tool, says."""
        return {"type": "input_text", "text": self.text}

    @model_validator(mode="before")
    @classmethod
    def _check_kind(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        if given.get("type") == "refusal":
            return {"text": given.get("refusal")}
        if given.get("type") not in _KINDS_OF_TEXT:
            raise refused("type", f"parts of this type are not supported here: {str(given.get('type'))[:40]!r}")
        return given


class ImagePart(_Loose):
    """A picture in an item."""

    type: Literal["input_image"]
    image_url: str
    detail: str = "auto"

    def input(self) -> dict[str, Any]:
        """Return it as a part of what a user, or a tool, says."""
        return {"type": "input_image", "image_url": self.image_url, "detail": self.detail}


class AudioFile(_Loose):
    """A sound: the file itself, in base64."""

    data: str
    format: str = ""


class AudioPart(_Loose):
    """A sound in an item."""

    type: Literal["input_audio"]
    input_audio: AudioFile

    def input(self) -> dict[str, Any]:
        """Return it as a part of what a user, or a tool, says."""
        return {"type": "input_audio", "input_audio": self.input_audio.model_dump()}


_KINDS_OF_TEXT = (None, "input_text", "output_text", "text", "summary_text", "reasoning_text")


def _kind_of_part(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return kind if kind in ("input_image", "input_audio") else "text"


Parts = Annotated[list[Part], Field(max_length=MAX_ITEMS, fail_fast=True)]
AnyPart: TypeAlias = Annotated[
    Annotated[Part, Tag("text")] | Annotated[ImagePart, Tag("input_image")] | Annotated[AudioPart, Tag("input_audio")],
    Discriminator(_kind_of_part),
]
TextOrParts: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[AnyPart], Field(max_length=MAX_ITEMS, fail_fast=True), Tag("list")],
    by_shape("a valid string or a list of parts"),
]
Id = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARACTERS)]


class _Item(_Loose):
    id: Id | None = None
    type: str

    def stored(self, id_: str) -> Item:
        """Return the item as it is listed; ``id_`` is its id if it has none."""
        return {"id": self.id or id_, "type": self.type, **self._fields(), "status": "completed"}

    def _fields(self) -> dict[str, Any]:
        raise NotImplementedError


class MessageItem(_Item):
    """A message of anyone."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: TextOrParts

    def _fields(self) -> dict[str, Any]:
        parts = [Part(text=self.content)] if isinstance(self.content, str) else self.content
        if self.role == "assistant":
            texts = [part.text for part in parts if isinstance(part, Part)]
            content: list[Any] = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
        else:
            content = [part.input() for part in parts]
        return {"role": self.role, "content": content}


class _CallItem(_Item):
    call_id: Id
    name: Annotated[str, Field(min_length=1)]
    namespace: str | None = None

    def _call(self) -> dict[str, Any]:
        namespace = {} if self.namespace is None else {"namespace": self.namespace}
        return {"call_id": self.call_id, "name": self.name, **namespace}


def _check_unless_cut(arguments: str, info: ValidationInfo) -> str:
    return arguments if info.data.get("status") == "incomplete" else check_arguments(arguments)


class FunctionCallItem(_CallItem):
    """A call of a function, which the model has made. One that was cut has arguments that are not whole."""

    type: Literal["function_call"]
    status: str | None = None
    arguments: Annotated[str, Field(max_length=MAX_ARGUMENTS_CHARACTERS), AfterValidator(_check_unless_cut)]

    def stored(self, id_: str) -> Item:
        """Return the item as it is listed; ``id_`` is its id if it has none."""
        cut = {"status": "incomplete"} if self.status == "incomplete" else {}
        return {**super().stored(id_), **cut}

    def _fields(self) -> dict[str, Any]:
        return {**self._call(), "arguments": self.arguments}


class CustomCallItem(_CallItem):
    """A call of a custom tool, which the model has made."""

    type: Literal["custom_tool_call"]
    input: str

    def _fields(self) -> dict[str, Any]:
        return {**self._call(), "input": self.input}


class OutputItem(_Item):
    """The output of a tool."""

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Id
    output: TextOrParts

    def _fields(self) -> dict[str, Any]:
        if isinstance(self.output, str):
            return {"call_id": self.call_id, "output": self.output}
        return {"call_id": self.call_id, "output": [part.input() for part in self.output]}


class ReasoningItem(_Item):
    """A reasoning of the model: its text, or what a client keeps in place of it."""

    type: Literal["reasoning"]
    summary: Parts = []
    content: Parts | None = None
    encrypted_content: str | None = None

    def _fields(self) -> dict[str, Any]:
        text = "".join(part.text for part in self.content or ()) or _unsealed(self.encrypted_content)
        return {
            "summary": [{"type": "summary_text", "text": part.text} for part in self.summary],
            "content": [{"type": "reasoning_text", "text": text}] if text else [],
        }  # fmt: skip


class ItemReference(_Loose):
    """An item of an earlier response, by its id."""

    type: Literal["item_reference"] = "item_reference"
    id: Id


def _kind(value: Any) -> str | None:
    """Return the tag of an item: of JSON, and of an instance when it is written as JSON again."""
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None and isinstance(value, dict):
        kind = "message" if "role" in value else "item_reference"
    return "output" if kind in ("function_call_output", "custom_tool_call_output") else kind


def _check_kind(value: Any) -> Any:
    """Refuse an item of an unknown type by its name."""
    kind = _kind(value)
    if isinstance(value, dict) and kind not in _KINDS:
        raise refused("type", f"items of the type {str(kind)[:40]!r} are not supported here")
    return value


AnyItem: TypeAlias = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[OutputItem, Tag("output")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[ItemReference, Tag("item_reference")],
    Discriminator(_kind, custom_error_type="wrong_shape", custom_error_message="Input should be an item"),
    BeforeValidator(_check_kind),
]
_KINDS = ("message", "function_call", "custom_tool_call", "output", "reasoning", "item_reference")

Input: TypeAlias = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[AnyItem], Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True), Tag("list")],
    by_shape("a valid string or a list of items"),
]

_PREFIXES = {
    "message": "msg", "function_call": "fc", "function_call_output": "fco", "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco", "reasoning": "rs",
}  # fmt: skip


def input_items(given: Input, response_id: str, referenced: Mapping[str, Item]) -> list[Item]:
    """Return the items of a request as they are stored and listed.

    Args:
        given: the input of the request.
        response_id: of its response.
        referenced: the items that its references name, by their ids.
    """
    items = [MessageItem(role="user", content=given)] if isinstance(given, str) else given
    return [
        referenced[item.id] if isinstance(item, ItemReference) else item.stored(item_id(item.type, response_id, index))
        for index, item in enumerate(items)
    ]


def references(given: Input) -> list[str]:
    """Return the ids of the items that a request refers to."""
    return [] if isinstance(given, str) else [item.id for item in given if isinstance(item, ItemReference)]
