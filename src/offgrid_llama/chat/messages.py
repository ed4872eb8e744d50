"""Messages: conversations as OpenAI's clients send them, made into what templates know (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["plain_messages"]

_TEXTS = ("text", "refusal")
"""The parts that are nothing but a text. Another one has it under the name of its type, such as "image_url"."""


def plain_messages(messages: object) -> list[dict[str, Any]]:
    """Return the messages with a role and a text each; other keys stay as they are.

    A content of parts, ``[{"type": "text", "text": "..."}]``, becomes their texts, joined, and a refusal is a content, too.
    The one call of earlier clients' messages, their "function_call", becomes one of "tool_calls", its result that of a tool.

    Raises TypeError and ValueError that name the place.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages must be a list of dicts, not {type(messages).__name__}")
    if not messages:
        raise ValueError("messages must not be empty")
    plain: list[dict[str, Any]] = []
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{at}] must be a dict, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ValueError(f"messages[{at}] must have a 'role', such as 'user'")
        content = _content(message, f"messages[{at}]['content']")
        plain.append(_with_tool_calls({**message, "content": content}, plain))
    return plain


def _content(message: Mapping[str, Any], where: str) -> str | None:
    """Return the text of a message; None where it has none."""
    content, refusal = message.get("content"), message.get("refusal")
    if content is None:
        return refusal if isinstance(refusal, str) else None
    return content if isinstance(content, str) else _text(content, where)


def _with_tool_calls(message: dict[str, Any], before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a message whose call, or result of the call just before, is written as OpenAI's clients do today."""
    called = message.get("function_call")
    if called is not None and not message.get("tool_calls"):
        rest = {key: value for key, value in message.items() if key != "function_call"}
        return {**rest, "tool_calls": [{"id": f"{len(before):09}", "type": "function", "function": called}]}
    if message["role"] != "function":
        return message
    calls = before[-1].get("tool_calls") if before else None
    return {**({"tool_call_id": calls[-1].get("id")} if calls else {}), **message, "role": "tool"}


def _text(parts: object, where: str) -> str:
    """Return the joined texts of a content of parts."""
    if not isinstance(parts, Sequence) or isinstance(parts, (bytes, bytearray)):
        raise TypeError(f"{where} must be a text or a list of parts, not {type(parts).__name__}")
    texts = []
    for at, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or (kind not in _TEXTS and kind in part):
            raise ValueError(f"{where}[{at}] must be {{'type': 'text', 'text': ...}}, not {kind!r}")
        texts.append(text)
    return "".join(texts)
