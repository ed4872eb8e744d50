"""Chat formatters: functions from a conversation to a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from .llama_callbacks import StoppingCriteriaList

__all__ = ["ChatFormatter", "ChatFormatterResponse", "Messages", "text_of"]

Messages = Sequence[Mapping[str, Any]]


@dataclass
class ChatFormatterResponse:
    """A prompt, and what ends the answer to it.

    Attributes:
        prompt: the text; control tokens in it are read as such, also those in messages.
        stop: the texts before which the answer ends.
        stopping_criteria: functions that end the answer.
        added_special: whether the prompt begins with the text of BOS where the model wants one.
    """

    prompt: str
    stop: str | list[str] | None = None
    stopping_criteria: StoppingCriteriaList | None = None
    added_special: bool = False


class ChatFormatter(Protocol):
    """A function from a conversation to a prompt."""

    def __call__(self, *, messages: Any, **kwargs: Any) -> ChatFormatterResponse:
        """Return the prompt. The keywords are those of the request that the formatter may use, such as ``tools``."""
        ...


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message; that of parts in one piece. Parts that are not text are left out."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return content if isinstance(content, str) else ""
