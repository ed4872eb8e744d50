"""Messages: conversations in the shape that OpenAI's clients send, made into what templates know (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["plain_messages"]


def plain_messages(messages: object) -> list[dict[str, Any]]:
    """Return the messages with a role and a text each; what else they have stays as it is.

    A content of parts, ``[{"type": "text", "text": "..."}]``, becomes their text, with nothing between them.

    Raises TypeError and ValueError that name the place.
    """
    if isinstance(messages, (str, bytes)) or not isinstance(messages, Sequence):
        raise TypeError(f"messages must be a list of dicts, not {type(messages).__name__}")
    if not messages:
        raise ValueError("messages must not be empty")
    plain = []
    for at, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"messages[{at}] must be a dict, not {type(message).__name__}")
        role = message.get("role")
        if not isinstance(role, str) or not role:
            raise ValueError(f"messages[{at}] must have a 'role', such as 'user'")
        content = message.get("content")
        if content is not None and not isinstance(content, str):
            content = _text(content, f"messages[{at}]['content']")
        plain.append({**message, "content": content})
    return plain


def _text(parts: object, where: str) -> str:
    if not isinstance(parts, Sequence) or isinstance(parts, (bytes, bytearray)):
        raise TypeError(f"{where} must be a text or a list of parts, not {type(parts).__name__}")
    texts = []
    for at, part in enumerate(parts):
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{where}[{at}] must be {{'type': 'text', 'text': ...}}, not {kind!r}")
        texts.append(part["text"])
    return "".join(texts)
