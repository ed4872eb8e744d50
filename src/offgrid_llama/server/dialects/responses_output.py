"""The output of a response: its items, as they grow, and the events that tell of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from offgrid_llama.worker.frames import CallChunk, Chunk, TokenLogprob

from .custom_tools import InputReader, arguments_of, input_of
from .responses_items import Item, sealed
from .responses_tools import CalledTool

__all__ = ["Emit", "Output"]


class Emit(Protocol):
    """The function that writes events."""

    def __call__(self, kind: str, **fields: Any) -> None:
        """Write an event: its type, without "response.", and its fields."""


class Output:
    """The items of a response. One of them is open at a time; what comes for another one closes it.

    Args:
        emit: writes an event.
        new_id: returns an id for an item, by its type and index.
        tools: that the model may call, by the names with which it does.
        with_encrypted: whether reasoning has ``encrypted_content``.
    """

    def __init__(
        self, emit: Emit, new_id: Callable[[str, int], str], tools: Mapping[str, CalledTool], with_encrypted: bool
    ) -> None:
        self._emit = emit
        self._new_id = new_id
        self._tools = tools
        self._with_encrypted = with_encrypted
        self._items: list[_OpenItem] = []
        self._open: _OpenItem | None = None

    def items(self) -> list[Item]:
        """Return the items as they are now."""
        return [item.item() for item in self._items]

    def add(self, chunk: Chunk) -> None:
        """Add a part of the answer."""
        if chunk.reasoning:
            self._the(_ReasoningItem).add(chunk.reasoning, ())
        if chunk.content:
            self._the(_MessageItem).add(chunk.content, chunk.logprobs or ())
        for call in chunk.calls:
            self._add_call(call)

    def _the(self, kind: type[_OpenItem]) -> _OpenItem:
        """Return the open item, if it is of this kind, or else a new one."""
        return self._open if isinstance(self._open, kind) else self._begin(kind)

    def _add_call(self, call: CallChunk) -> None:
        if call.name:
            tool = self._tools.get(call.name, CalledTool("function_call", call.name))
            named = {"name": tool.name, **({"namespace": tool.namespace} if tool.namespace else {})}
            self._begin(_BY_TYPE[tool.item_type], call_id=call.id, **named)
        if call.arguments and self._open is not None:
            self._open.add(call.arguments, ())

    def _begin(self, kind: type[_OpenItem], **fields: Any) -> _OpenItem:
        self.close("completed")
        index = len(self._items)
        if kind is _ReasoningItem:
            fields["with_encrypted"] = self._with_encrypted
        item = kind(self._emit, index, {"id": self._new_id(kind.type, index), "type": kind.type, **fields})
        self._items.append(item)
        self._open = item
        item.begin()
        return item

    def close(self, status: str) -> None:
        """End the item that is open."""
        if self._open is not None:
            self._open.end(status)
            self._open = None

    def end(self, *, is_cut: bool) -> None:
        """End the output. A whole answer without any text or call has an empty text."""
        if not is_cut and not any(isinstance(item, _ANSWERS) for item in self._items):
            self._begin(_MessageItem)
        self.close("incomplete" if is_cut else "completed")

    def replay(self, item: Item) -> None:
        """Add an item that is done."""
        kind = _BY_TYPE[item["type"]]
        fields = {name: item[name] for name in ("call_id", "name", "namespace") if name in item}
        made = self._begin(kind, **fields)
        made.add(*kind.content_of(item))
        self.close(item.get("status", "completed"))


class _OpenItem(ABC):
    """An item that grows.

    Args:
        emit: writes an event.
        index: of the item in the output.
        head: what of the item is known from the beginning.
    """

    type = ""

    def __init__(self, emit: Emit, index: int, head: dict[str, Any]) -> None:
        self._emit = emit
        self._index = index
        self._head = head
        self._status = "in_progress"
        self._texts: list[str] = []

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(self._texts)

    def item(self) -> Item:
        """Return the item as it is now."""
        return {**self._head, **self._content(), "status": self._status}

    def begin(self) -> None:
        """Tell that the item is there."""
        self._emit("output_item.added", output_index=self._index, item=self.item())

    def add(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        """Add a text, and tell of it."""
        self._texts.append(text)
        self._tell_delta(text, logprobs)

    def end(self, status: str) -> None:
        """Tell that the item is done."""
        self._tell_done()
        self._status = status
        self._emit("output_item.done", output_index=self._index, item=self.item())

    def _tell(self, kind: str, **fields: Any) -> None:
        self._emit(kind, item_id=self._head["id"], output_index=self._index, **fields)

    @abstractmethod
    def _content(self) -> dict[str, Any]:
        """Return what of the item has grown."""

    @abstractmethod
    def _tell_delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> None: ...

    @abstractmethod
    def _tell_done(self) -> None: ...

    @staticmethod
    @abstractmethod
    def content_of(item: Item) -> tuple[str, Sequence[TokenLogprob]]:
        """Return what was added to an item that is done."""


class _MessageItem(_OpenItem):
    type = "message"

    def __init__(self, emit: Emit, index: int, head: dict[str, Any]) -> None:
        super().__init__(emit, index, {**head, "role": "assistant"})
        self._logprobs: list[TokenLogprob] = []

    def begin(self) -> None:
        """Tell that the item and its text are there."""
        self._emit("output_item.added", output_index=self._index, item={**self.item(), "content": []})
        self._tell("content_part.added", content_index=0, part=self._part())

    def _part(self) -> dict[str, Any]:
        logprobs = [_logprob(each) for each in self._logprobs]
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": logprobs}

    def _content(self) -> dict[str, Any]:
        return {"content": [self._part()]}

    def _tell_delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        self._logprobs += logprobs
        self._tell("output_text.delta", content_index=0, delta=text, logprobs=[_short(each) for each in logprobs])

    def _tell_done(self) -> None:
        self._tell(
            "output_text.done", content_index=0, text=self.text, logprobs=[_short(each) for each in self._logprobs]
        )
        self._tell("content_part.done", content_index=0, part=self._part())

    @staticmethod
    def content_of(item: Item) -> tuple[str, Sequence[TokenLogprob]]:
        (part,) = item["content"]
        return part["text"], [_read_logprob(each) for each in part["logprobs"]]


class _ReasoningItem(_OpenItem):
    type = "reasoning"

    def __init__(self, emit: Emit, index: int, head: dict[str, Any]) -> None:
        self._with_encrypted = head.pop("with_encrypted")
        super().__init__(emit, index, {**head, "summary": []})

    def begin(self) -> None:
        """Tell that the item and its text are there."""
        self._emit("output_item.added", output_index=self._index, item={**self.item(), "content": []})
        self._tell("content_part.added", content_index=0, part=self._part())

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": self.text}

    def _content(self) -> dict[str, Any]:
        return {"content": [self._part()], **({"encrypted_content": sealed(self.text)} if self._with_encrypted else {})}

    def _tell_delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        self._tell("reasoning_text.delta", content_index=0, delta=text)

    def _tell_done(self) -> None:
        self._tell("reasoning_text.done", content_index=0, text=self.text)
        self._tell("content_part.done", content_index=0, part=self._part())

    @staticmethod
    def content_of(item: Item) -> tuple[str, Sequence[TokenLogprob]]:
        return "".join(part["text"] for part in item["content"]), ()


class _FunctionCallItem(_OpenItem):
    type = "function_call"

    def _content(self) -> dict[str, Any]:
        return {"arguments": self.text}

    def _tell_delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        self._tell("function_call_arguments.delta", delta=text)

    def _tell_done(self) -> None:
        self._tell("function_call_arguments.done", arguments=self.text)

    @staticmethod
    def content_of(item: Item) -> tuple[str, Sequence[TokenLogprob]]:
        return item["arguments"], ()


class _CustomCallItem(_OpenItem):
    """A call of a tool that takes a text, which the model writes as JSON."""

    type = "custom_tool_call"

    def __init__(self, emit: Emit, index: int, head: dict[str, Any]) -> None:
        super().__init__(emit, index, head)
        self._reader = InputReader()

    def item(self) -> Item:
        """Return the item as it is now. OpenAI's has no status."""
        return {**self._head, **self._content()}

    def _content(self) -> dict[str, Any]:
        return {"input": input_of(self.text)}

    def _tell_delta(self, text: str, logprobs: Sequence[TokenLogprob]) -> None:
        if more := self._reader.push(text):
            self._tell("custom_tool_call_input.delta", delta=more)

    def _tell_done(self) -> None:
        self._tell("custom_tool_call_input.done", input=self._content()["input"])

    @staticmethod
    def content_of(item: Item) -> tuple[str, Sequence[TokenLogprob]]:
        return arguments_of(item["input"]), ()


_ANSWERS = (_MessageItem, _FunctionCallItem, _CustomCallItem)
_BY_TYPE: Mapping[str, type[_OpenItem]] = {kind.type: kind for kind in (*_ANSWERS, _ReasoningItem)}


def _logprob(found: TokenLogprob) -> dict[str, Any]:
    def one(piece: bytes, logprob: float) -> dict[str, Any]:
        return {"token": piece.decode("utf-8", "replace"), "bytes": list(piece), "logprob": logprob}

    return {**one(found.piece, found.logprob), "top_logprobs": [one(*each) for each in found.top]}


def _short(found: TokenLogprob) -> dict[str, Any]:
    """Return a logprob as events have it, which are without bytes."""

    def one(piece: bytes, logprob: float) -> dict[str, Any]:
        return {"token": piece.decode("utf-8", "replace"), "logprob": logprob}

    return {**one(found.piece, found.logprob), "top_logprobs": [one(*each) for each in found.top]}


def _read_logprob(told: Mapping[str, Any]) -> TokenLogprob:
    top = [(bytes(each["bytes"]), each["logprob"]) for each in told["top_logprobs"]]
    return TokenLogprob(bytes(told["bytes"]), told["logprob"], top)
