"""The parts that a piece of a model's text adds to its message, and the calls that such deltas are of (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from .tool import ToolCall

__all__ = ["CallDelta", "DeltaCollector", "MessageDelta", "gathered"]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """The part of a call that a piece of text adds.

    Attributes:
        index: the number of the call in its message, from 0.
        id, name: of the call, in its first delta; empty in the others.
        arguments: more of their JSON text.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class MessageDelta(NamedTuple):
    """The part of a message that a piece of text adds."""

    reasoning: str
    content: str
    calls: list[CallDelta]

    def followed_by(self, other: MessageDelta) -> MessageDelta:
        """Return the sum of this delta and the next one."""
        calls = _one_each([*self.calls, *other.calls])
        return MessageDelta(self.reasoning + other.reasoning, self.content + other.content, calls)


class DeltaCollector:
    """Collects what the readers of calls find in a piece of text.

    Args:
        new_id: returns an id for the call of an index, for formats without ids.

    Attributes:
        reasoning, content: texts, in order.
        calls: the deltas of calls, in order.
        index: the number of the last call of the message; -1 before the first.
    """

    __slots__ = ("_new_id", "calls", "content", "index", "reasoning")

    def __init__(self, new_id: Callable[[int], str]) -> None:
        self._new_id = new_id
        self.reasoning: list[str] = []
        self.content: list[str] = []
        self.calls: list[CallDelta] = []
        self.index = -1

    def begin_call(self, name: str, id_: str) -> None:
        """Begin the next call. An empty id is replaced by a new one."""
        self.index += 1
        self.calls.append(CallDelta(self.index, id_ or self._new_id(self.index), name))

    def add_arguments(self, text: str) -> None:
        """Add JSON text to the arguments of the last call."""
        if text:
            self.calls.append(CallDelta(self.index, arguments=text))

    def take(self) -> MessageDelta:
        """Return what was collected since the last time."""
        delta = MessageDelta("".join(self.reasoning), "".join(self.content), _one_each(self.calls))
        self.reasoning.clear()
        self.content.clear()
        self.calls = []
        return delta


def _one_each(deltas: list[CallDelta]) -> list[CallDelta]:
    """Return deltas with one for each call: some clients take two of an index in one chunk for two calls."""
    found: dict[int, CallDelta] = {}
    for delta in deltas:
        known = found.get(delta.index)
        found[delta.index] = delta if known is None else replace(known, arguments=known.arguments + delta.arguments)
    return list(found.values())


def gathered(deltas: Iterable[CallDelta]) -> list[ToolCall]:
    """Return the calls of a message, from its deltas."""
    calls: list[ToolCall] = []
    for delta in deltas:
        if delta.index == len(calls):
            calls.append(ToolCall(delta.id, delta.name))
        calls[delta.index].arguments += delta.arguments
    return calls
