"""CallFitting: calls in a conversation as its template takes them. Rendering short ones shows what it takes.

Some templates refuse several calls in one message or write the first only, and some refuse ids that are not nine letters and
digits. Histories of other models have both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from offgrid_llama.chat.template.template import ChatTemplate
from offgrid_llama.errors import ChatTemplateError

from .call_format import ToolFormat
from .call_messages import tool_messages

__all__ = ["CallFitting"]

_SHORT = re.compile(r"[A-Za-z0-9]{9}")
_TOOL = {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}}


class CallFitting:
    """Fits calls to a template that writes calls.

    Args:
        template: the ChatTemplate.
        form: how it writes them.
    """

    def __init__(self, template: ChatTemplate, form: ToolFormat) -> None:
        self._template = template
        self._form = form

    def fit(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages that ``read_calls`` gave as ``tool_messages`` takes them.

        Where the template takes one call in a message, each of several gets a message of its own, before its result. Where
        it takes short ids only, the calls are numbered.
        """
        fitted = [dict(message) for message in messages]
        called = [message["tool_calls"] for message in fitted if message.get("tool_calls")]
        if not called or not self._form.writes_calls:
            return fitted
        if max(map(len, called)) > 1 and not self._takes_several:
            fitted = list(_one_by_one(fitted))
        ids = dict.fromkeys(call["id"] for calls in called for call in calls)
        if all(map(_SHORT.fullmatch, ids)) or self._takes_any_id:
            return fitted
        return _renamed(fitted, {id_: f"{at:09}" for at, id_ in enumerate(ids)})

    @cached_property
    def _takes_several(self) -> bool:
        return self._renders("abcdefghi", "jklmnopqr") or not self._renders("abcdefghi")

    @cached_property
    def _takes_any_id(self) -> bool:
        return self._renders("call_0123456789") or not self._renders("abcdefghi")

    def _renders(self, *ids: str) -> bool:
        """Whether the template takes calls of these ids in one message, and writes all of them."""
        texts = [f"Zorblax{n}" for n in range(len(ids))]
        calls = [
            {"type": "function", "id": id_, "function": {"name": "look", "arguments": {"at": text}}}
            for id_, text in zip(ids, texts, strict=True)
        ]
        asked: dict[str, Any] = {"role": "user", "content": "Hello."}
        results = [{"role": "tool", "name": "look", "tool_call_id": id_, "content": "Hi."} for id_ in ids]
        messages = [asked, {"role": "assistant", "content": None, "tool_calls": calls}, *results]
        variables: dict[str, Any] = (
            {"tools": [{"type": "function", "function": _TOOL}]} if self._form.lists_tools else {}
        )
        try:
            written = self._template.render(tool_messages(messages, self._form), **variables)
        except ChatTemplateError:
            return False
        return all(text in written for text in texts)


def _one_by_one(messages: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield messages of one call each; the results that follow several calls stand behind their own."""
    at = 0
    while at < len(messages):
        message, calls = messages[at], messages[at].get("tool_calls") or []
        at += 1
        if len(calls) < 2:
            yield message
            continue
        end = next((i for i in range(at, len(messages)) if messages[i].get("role") != "tool"), len(messages))
        results, at = messages[at:end], end
        for n, call in enumerate(calls):
            yield {**(message if n == 0 else {"role": message["role"], "content": None}), "tool_calls": [call]}
            yield from (each for each in results if each.get("tool_call_id") == call["id"])


def _renamed(messages: Sequence[dict[str, Any]], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return messages with other ids of calls."""
    found = []
    for message in messages:
        changed = dict(message)
        if message.get("tool_calls"):
            changed["tool_calls"] = [{**call, "id": names[call["id"]]} for call in message["tool_calls"]]
        if message.get("tool_call_id") in names:
            changed["tool_call_id"] = names[message["tool_call_id"]]
        found.append(changed)
    return found
