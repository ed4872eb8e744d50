"""Fitting: conversations as a template takes them. Rendering short ones with it shows what it takes.

Templates differ in what they refuse, and in what they leave out without a word: a system message, two messages of one role
in a row, a content that is a text or a list of parts, an empty content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from offgrid_llama.errors import ChatTemplateError

from .template.template import ChatTemplate

__all__ = ["Fitting"]

_TEXT, _OTHER = "Zorblax.", "Quimby."
_HELLO = {"role": "user", "content": "Hello."}
_ANSWER = {"role": "assistant", "content": "Hi."}
_TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Look.", "parameters": {"type": "object", "properties": {}}},
}
_CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": {}}}
_RESULT = {"role": "tool", "tool_call_id": "abcdefghi", "name": "look", "content": "seen"}
_JOINT = "\n\n"
"""Stands between two contents that become one."""


class Fitting:
    """Fits conversations to a template.

    Args:
        template: the ChatTemplate.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.renders_without_content = cache(self._renders_without_content)

    def fit(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages without calls as the template takes them; raises as ``fit_roles`` does."""
        return self.fit_rows(self.fit_roles(messages))

    def fit_roles(self, messages: Sequence[Mapping[str, Any]], first: int = 0) -> list[dict[str, Any]]:
        """Return messages whose roles the template knows, with a text each.

        A developer's message becomes a system message where the template has no developers, and a system message part of
        the user's message after it where the template has none, or has none there. Keys whose value is None, and an empty
        "tool_calls", are left out: clients send them for what is not there.

        Raises ValueError, with the place, for a message without content where the template would write "None" or fails. The
        place of the first one is ``first``: it is -1 where a message was put before those of the caller.
        """
        fitted: list[dict[str, Any]] = []
        for at, message in enumerate(messages, first):
            kept = {key: value for key, value in message.items() if value is not None and (key, value) != _NO_CALLS}
            kept.setdefault("content", None)
            role = kept["role"]
            if role == "developer" and not self._knows_developers:
                role = kept["role"] = "system"
            if kept["content"] is None and "tool_calls" not in kept:
                if role in ("assistant", "tool"):
                    kept["content"] = ""
                elif self._can_be_probed and not self.renders_without_content(role):
                    raise ValueError(f"messages[{at}] has no content, and this template needs one")
            fitted.append(kept)
        return self._with_system_messages_folded(fitted) if self._can_be_probed else fitted

    def fit_rows(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Return messages of roles that take turns, if the template wants that, with contents of its kind.

        Two messages in a row of the user, or of the assistant without calls, become one. Where the template takes no empty
        message of the assistant, such as an answer that was cut within a call, it is left out. Where it takes no message of
        the user behind the result of a call that has no answer yet, an empty answer comes between.
        """
        if not self._can_be_probed:
            return [dict(message) for message in messages]
        rows: list[dict[str, Any]] = []
        for message in self._without_empty_answers(messages):
            before = rows[-1] if rows else {}
            if _can_join(before, message) and not self._takes_rows(message["role"]):
                rows[-1] = {**before, **message, "content": _joined(before["content"], message["content"])}
            else:
                rows += self._missing_answer if (before.get("role"), message["role"]) == ("tool", "user") else []
                rows.append(dict(message))
        if self._takes_text or not self._takes_parts:
            return rows
        return [{**row, "content": _parts(row["content"])} for row in rows]

    def _without_empty_answers(self, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Return messages without empty ones of the assistant, but for the last one, where the template takes none."""
        if not any(map(_says_nothing, messages[:-1])) or self._takes_empty_answers:
            return messages
        return [*(message for message in messages[:-1] if not _says_nothing(message)), messages[-1]]

    def _with_system_messages_folded(self, messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        folded: list[dict[str, Any]] = []
        held: list[str] = []  # for the next user message
        for message in messages:
            content = message["content"] or ""
            if message["role"] == "user" and held:
                folded.append({**message, "content": _joined(*held, content)})
                held = []
            elif message["role"] != "system" or self._takes_system_after(len(folded) + len(held)):
                folded.append(message)
            elif len(folded) == 1 and folded[0]["role"] == "system":
                folded[0] = {**folded[0], "content": _joined(folded[0]["content"], content)}
            else:
                held.append(content)
        return [*folded, {"role": "user", "content": _joined(*held)}] if held else folded

    def _takes_system_after(self, n_messages: int) -> bool:
        return self._takes_late_system if n_messages else self._takes_system

    # Probes of the template -------------------------------------------------------------------------------------------

    def _writes(self, messages: Sequence[Mapping[str, Any]], *texts: str) -> bool:
        """Whether the template takes these messages, and writes these texts."""
        rendered = self._rendered(messages, self._variables)
        return rendered is not None and all(text in rendered for text in texts)

    def _rendered(self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str | None:
        try:
            return self._template.render(messages, **variables)
        except ChatTemplateError:
            return None

    @cached_property
    def _variables(self) -> dict[str, Any]:
        """The variables that the template needs besides messages: templates for tools may fail without any."""
        return {"tools": [_TOOL]} if self.needs_tools else {}

    @cached_property
    def needs_tools(self) -> bool:
        """Whether it fails without a list of tools."""
        return self._rendered([_HELLO], {}) is None

    @cached_property
    def _can_be_probed(self) -> bool:
        """Whether it renders a message with what is known here; some need variables of their own."""
        return self._rendered([_HELLO], self._variables) is not None

    @cached_property
    def _knows_developers(self) -> bool:
        asked = [{"role": "developer", "content": _TEXT}, _HELLO]
        return "developer" in self._template.source and self._writes(asked, _TEXT)

    @cached_property
    def _takes_system(self) -> bool:
        return self._writes([{"role": "system", "content": _TEXT}, _HELLO], _TEXT)

    @cached_property
    def _takes_late_system(self) -> bool:
        first, late = {"role": "system", "content": _OTHER}, {"role": "system", "content": _TEXT}
        return self._writes([first, _HELLO, _ANSWER, late, _HELLO], _TEXT, _OTHER)

    @cached_property
    def _takes_user_rows(self) -> bool:
        return self._writes([{"role": "user", "content": _TEXT}, {"role": "user", "content": _OTHER}], _TEXT, _OTHER)

    @cached_property
    def _takes_assistant_rows(self) -> bool:
        row = [{"role": "assistant", "content": _TEXT}, {"role": "assistant", "content": _OTHER}]
        return self._writes([_HELLO, *row, _HELLO], _TEXT, _OTHER)

    def _takes_rows(self, role: str) -> bool:
        return self._takes_user_rows if role == "user" else self._takes_assistant_rows

    @cached_property
    def _takes_empty_answers(self) -> bool:
        return self._writes([_HELLO, {"role": "assistant", "content": ""}, {"role": "user", "content": _TEXT}], _TEXT)

    @cached_property
    def _missing_answer(self) -> list[dict[str, Any]]:
        """The answer that must stand between the result of a call and a message of the user; none where none must."""
        called: list[dict[str, Any]] = [_HELLO, {"role": "assistant", "content": "", "tool_calls": [_CALL]}, _RESULT]
        asked = {"role": "user", "content": _TEXT}
        answers: list[list[dict[str, Any]]] = [[], *([{"role": "assistant", "content": each}] for each in ("", " "))]
        takes = (
            answer for answer in answers if self._rendered([*called, *answer, asked], {"tools": [_TOOL]}) is not None
        )
        return next(takes, [])

    @cached_property
    def _takes_text(self) -> bool:
        return self._writes([{"role": "user", "content": _TEXT}], _TEXT)

    @cached_property
    def _takes_parts(self) -> bool:
        return self._writes([{"role": "user", "content": _parts(_TEXT)}], _TEXT)

    def _renders_without_content(self, role: str) -> bool:
        """Whether the template renders a message of this role that has no content, and does not write "None"."""
        messages: list[dict[str, Any]] = [{"role": role, "content": None}]
        messages += [] if role == "user" else [_HELLO]
        return self._writes(messages) and not self._writes(messages, "None")


_NO_CALLS: tuple[str, list[object]] = ("tool_calls", [])


def _says_nothing(message: Mapping[str, Any]) -> bool:
    """Whether a message is the assistant's, and empty."""
    said = ("content", "tool_calls", "reasoning_content")
    return message["role"] == "assistant" and not any(message.get(name) for name in said)


def _can_join(before: Mapping[str, Any], message: Mapping[str, Any]) -> bool:
    """Whether two messages are of one role, the user's or the assistant's, and nothing but texts."""
    return (
        before.get("role") == message["role"] in ("user", "assistant")
        and "tool_calls" not in before
        and "tool_calls" not in message
    )


def _joined(*contents: str | None) -> str:
    return _JOINT.join(content for content in contents if content)


def _parts(content: str | None) -> list[dict[str, str]]:
    return [{"type": "text", "text": content}] if content else []
