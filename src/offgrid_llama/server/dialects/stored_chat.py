"""Chat completions that clients want to be kept: gathered while they are streamed, and the messages that they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from offgrid_llama.worker.frames import Answered, CallChunk, Chunk, Message, TokenLogprob

from .openai import ChatWriter

__all__ = ["StoredChatWriter", "stored_messages"]


@dataclass
class _Gathered:
    """A message of a stream, as far as it has come."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[list[CallChunk]] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    reason: str = "stop"

    def add(self, chunk: Chunk) -> None:
        self.content.append(chunk.content)
        self.reasoning.append(chunk.reasoning)
        for call in chunk.calls:
            if call.name:
                self.calls.append([])
            self.calls[-1].append(call)
        if chunk.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += chunk.logprobs
        self.reason = chunk.finish_reason or self.reason

    def message(self) -> Message:
        calls = [
            msgspec.structs.replace(one[0], arguments="".join(part.arguments for part in one)) for one in self.calls
        ]
        return Message("".join(self.content), "".join(self.reasoning), calls, self.reason, self.logprobs)


class StoredChatWriter(ChatWriter):
    """Writes the response to a conversation, and has it as a whole at the end, also where it is streamed.

    Args:
        model: the name that the client used for the model.
        metadata: of the client's.
        more: further arguments of ChatWriter.

    Attributes:
        stored: the chat completion as it is kept, once it is complete.
    """

    def __init__(self, model: str, *, metadata: Mapping[str, str], **more: Any) -> None:
        super().__init__(model, **more)
        self.stored: dict[str, Any] | None = None
        self._metadata = metadata
        self._gathered = [_Gathered() for _ in range(self.n)]

    def event(self, chunk: Chunk) -> bytes:
        """Return the event of a chunk."""
        if chunk.n_computed is None:
            self._gathered[chunk.index].add(chunk)
        return super().event(chunk)

    def end(self, answered: Answered) -> bytes:
        """Return the last events of a stream."""
        self._keep(
            super().whole(msgspec.structs.replace(answered, messages=[each.message() for each in self._gathered]))
        )
        return super().end(answered)

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        body = super().whole(answered)
        self._keep(body)
        return body

    def _keep(self, body: Mapping[str, Any]) -> None:
        self.stored = {**body, "metadata": self._metadata}


def stored_messages(completion_id: str, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages of a request as OpenAI lists them: each with an id, and parts of texts apart."""
    return [
        {"content": None, **message, "id": f"{completion_id}-{at}", **_parts(message.get("content"))}
        for at, message in enumerate(messages)
    ]


def _parts(content: Any) -> dict[str, Any]:
    if not isinstance(content, list):
        return {"content_parts": None}
    return {"content": "".join(part.get("text", "") for part in content), "content_parts": content}
