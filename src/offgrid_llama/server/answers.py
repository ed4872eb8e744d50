"""Answers: what workers say, in the shape of OpenAI's API."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from time import time
from typing import Any

import msgspec

from ..worker.frames import Answered, CallPart, Message, Part, TokenLogprob, Usage

__all__ = ["Answer", "ChatAnswer", "TextAnswer"]


class Answer:
    """What is the same in all that one request is answered with.

    Args:
        kind: "chat.completion" or "text_completion".
        model: the name of the model, as it was asked for.
        prefix: of the id.
    """

    kind = ""
    chunk_kind = ""
    prefix = ""

    def __init__(self, model: str) -> None:
        self.id = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time())
        self.model = model
        head = {"id": self.id, "object": self.chunk_kind, "created": self.created, "model": model}
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":'

    def begin(self, n: int) -> bytes:
        """Return the first events of a stream of ``n`` answers."""
        del n
        return b""

    def events(self, parts: Iterable[Part]) -> bytes:
        """Return the events that tell of some parts."""
        return b"".join(self._head + msgspec.json.encode([self._choice(part)]) + b"}\n\n" for part in parts)

    def usage_event(self, answered: Answered) -> bytes:
        """Return the event with the usage, which comes last."""
        return self._head + b'[],"usage":' + msgspec.json.encode(usage(answered.usage)) + b"}\n\n"

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return all at once."""
        return {
            "id": self.id, "object": self.kind, "created": self.created, "model": self.model,
            "choices": [self._whole_choice(index, message) for index, message in enumerate(answered.messages)],
            "usage": usage(answered.usage),
        }  # fmt: skip

    def _choice(self, part: Part) -> dict[str, Any]:
        raise NotImplementedError

    def _whole_choice(self, index: int, message: Message) -> dict[str, Any]:
        raise NotImplementedError


class ChatAnswer(Answer):
    """The answer to a conversation."""

    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def begin(self, n: int) -> bytes:
        """Return events that tell the role, as OpenAI's streams begin."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(
            self._head
            + msgspec.json.encode([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}])
            + b"}\n\n"
            for i in range(n)
        )

    def _choice(self, part: Part) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if part.reasoning:
            delta["reasoning_content"] = part.reasoning
        if part.content:
            delta["content"] = part.content
        if part.calls:
            delta["tool_calls"] = [_call_delta(call) for call in part.calls]
        logprobs = None if part.logprobs is None else {"content": _chat_logprobs(part.logprobs), "refusal": None}
        return {"index": part.index, "delta": delta, "logprobs": logprobs, "finish_reason": part.finish_reason}

    def _whole_choice(self, index: int, message: Message) -> dict[str, Any]:
        told: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
        if message.reasoning:
            told["reasoning_content"] = message.reasoning
        if message.calls:
            told["content"] = message.content or None
            told["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in message.calls
            ]
        logprobs = None if message.logprobs is None else {"content": _chat_logprobs(message.logprobs), "refusal": None}
        return {"index": index, "message": told, "logprobs": logprobs, "finish_reason": message.finish_reason}


class TextAnswer(Answer):
    """The answer to a prompt."""

    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._offsets: dict[int, int] = {}

    def _choice(self, part: Part) -> dict[str, Any]:
        offset = self._offsets.get(part.index, 0)
        self._offsets[part.index] = offset + len(part.content)
        logprobs = None if part.logprobs is None else _text_logprobs(part.logprobs, offset)
        return {"index": part.index, "text": part.content, "logprobs": logprobs, "finish_reason": part.finish_reason}

    def _whole_choice(self, index: int, message: Message) -> dict[str, Any]:
        logprobs = None if message.logprobs is None else _text_logprobs(message.logprobs, 0)
        return {"index": index, "text": message.content, "logprobs": logprobs, "finish_reason": message.finish_reason}


def usage(found: Usage) -> dict[str, Any]:
    """Return OpenAI's ``usage``."""
    return {
        "prompt_tokens": found.prompt, "completion_tokens": found.completion,
        "total_tokens": found.prompt + found.completion,
        "prompt_tokens_details": {"cached_tokens": found.cached},
    }  # fmt: skip


def _call_delta(call: CallPart) -> dict[str, Any]:
    function: dict[str, Any] = {"arguments": call.arguments}
    if not call.name:
        return {"index": call.index, "function": function}
    return {"index": call.index, "id": call.id, "type": "function", "function": {"name": call.name, **function}}


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    def one(piece: bytes, logprob: float) -> dict[str, Any]:
        return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}

    return [
        {**one(each.piece, each.logprob), "top_logprobs": [one(piece, logprob) for piece, logprob in each.top]}
        for each in logprobs
    ]


def _text_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    tokens = [each.piece.decode("utf-8", "replace") for each in logprobs]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens, "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [
            {piece.decode("utf-8", "replace"): logprob for piece, logprob in each.top} for each in logprobs
        ],
        "text_offset": offsets,
    }  # fmt: skip
