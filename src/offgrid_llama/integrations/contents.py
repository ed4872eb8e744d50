"""Contents of messages: the texts, pictures and sounds that a framework has found in one, as an Engine takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

__all__ = ["content_of", "media_part"]


def media_part(kind: Literal["image", "audio"], file: bytes) -> dict[str, Any]:
    """Return the part of a message that is a picture or a sound."""
    return {"type": kind, kind: file}


def content_of(found: Sequence[str | dict[str, Any]], separator: str) -> str | list[dict[str, Any]]:
    """Return the content of a message: one text, or parts if there are pictures or sounds among the texts.

    Texts that follow each other are joined with the separator.
    """
    parts: list[dict[str, Any]] = []
    for each in found:
        if isinstance(each, dict):
            parts.append(each)
        elif parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += separator + each
        else:
            parts.append({"type": "text", "text": each})
    if all(part["type"] == "text" for part in parts):
        return parts[0]["text"] if parts else ""
    return parts
