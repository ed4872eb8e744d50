"""Anthropic's API: messages and their streams, the tokens of a prompt, errors."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.worker.frames import Answered, Chunk, Message, TokenCounts

from .anthropic_options import caches, conversation
from .anthropic_schemas import CountRequest, MessageRequest
from .anthropic_signature import SHOWN, signature
from .anthropic_stream import BlockEvents, event
from .dialect import Asked, Dialect, Writer, arguments_of_call

__all__ = ["ANTHROPIC", "MessageWriter", "Wanted", "count_body", "read_message"]

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 408: "timeout_error",
    429: "rate_limit_error", 503: "overloaded_error",
}  # fmt: skip
_STOP_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


def error_body(error: ApiError) -> dict[str, Any]:
    """Return the body of a response that is an error."""
    kind = _TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    message = error.message
    if (
        error.code == "context_length_exceeded" and error.details
    ):  # words by which clients know that they must shorten it
        limit = error.details["n_ctx"] - 1
        message = f"prompt is too long: {error.details['n_tokens']} tokens > {limit} maximum"
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": error.request_id}


ANTHROPIC = Dialect("anthropic", error_body, request_id_header="request-id")


@dataclass(frozen=True)
class Wanted:
    """The kind of response that a request wants.

    Attributes:
        max_tokens: of the answer.
        caches: whether the usage says what was put into the cache.
        edits: whether the response tells the edits of the context.
        hides_thinking: whether the text of thinking is left out.
        request_id: for an error within a stream.
    """

    max_tokens: int
    caches: bool = False
    edits: bool = False
    hides_thinking: bool = False
    request_id: str | None = None


def read_message(body: MessageRequest, request_id: str | None = None) -> Asked:
    """Return what a request of ``/v1/messages`` asks for. Raises ApiError."""
    wanted = Wanted(
        max_tokens=body.max_tokens, caches=caches(body), edits=body.context_management is not None,
        hides_thinking=body.thinking is not None and body.thinking.display == "omitted", request_id=request_id,
    )  # fmt: skip
    return Asked(body.model, conversation(body), bool(body.stream), partial(MessageWriter, wanted=wanted))


def count_body(body: CountRequest, n_tokens: int) -> dict[str, Any]:
    """Return the body of the response to a request of ``/v1/messages/count_tokens``."""
    if body.context_management is None:
        return {"input_tokens": n_tokens}
    return {"input_tokens": n_tokens, "context_management": {"original_input_tokens": n_tokens}}


class MessageWriter(Writer):
    """Writes the response to a conversation.

    Args:
        model: the name that the client used for the model.
        wanted: what the request says about the response.
    """

    sign_of_life = event("ping")

    def __init__(self, model: str, wanted: Wanted) -> None:
        self._wanted = wanted
        self._head = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant", "model": model}
        self._blocks = BlockEvents(hides_thinking=wanted.hides_thinking)
        self._has_begun = False
        self._last: Chunk | None = None

    def event(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk; before those of the first one that of the message."""
        if chunk.finish_reason is not None:
            self._last = chunk
        return self._begin(chunk.tokens) + b"".join(self._blocks.of(chunk))

    def end(self, answered: Answered) -> bytes:
        """Return the events that end the block, tell why the message ends, and end the message."""
        reason, stop = ("stop", "") if self._last is None else (self._last.finish_reason or "stop", self._last.stop)
        ended = event(
            "message_delta", delta=self._ended(reason, stop, answered.tokens), usage=self._usage(answered.tokens),
            **self._more(answered),
        )  # fmt: skip
        return self._begin(answered.tokens) + b"".join(self._blocks.end()) + ended + event("message_stop")

    def failed(self, error: ApiError) -> bytes:
        """Return the event of an error, which is the last one."""
        error.request_id = self._wanted.request_id
        return b"event: error\ndata: " + msgspec.json.encode(error_body(error)) + b"\n\n"

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        message = answered.messages[0]
        return {
            **self._head, "content": list(self._content(message)),
            **self._ended(message.finish_reason, message.stop, answered.tokens), "usage": self._usage(answered.tokens),
            **self._more(answered),
        }  # fmt: skip

    def _begin(self, tokens: TokenCounts | None) -> bytes:
        if self._has_begun:
            return b""
        self._has_begun = True
        usage = self._usage(tokens or TokenCounts(0, 0, 0))
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage,
        }
        return event("message_start", message=message)

    def _content(self, message: Message) -> Iterator[dict[str, Any]]:
        if message.reasoning and self._wanted.hides_thinking:
            yield {"type": "thinking", "thinking": "", "signature": signature(message.reasoning)}
        elif message.reasoning:
            yield {"type": "thinking", "thinking": message.reasoning, "signature": SHOWN}
        if message.content:
            yield {"type": "text", "text": message.content}
        for call in message.calls:
            arguments = arguments_of_call(call)
            if arguments is not None:
                yield {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments}

    def _ended(self, reason: str, stop: str, tokens: TokenCounts) -> dict[str, Any]:
        """Return why an answer has ended."""
        told = _STOP_REASONS.get(reason, "end_turn")
        if reason == "stop" and stop:
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        if reason == "length" and tokens.completion < self._wanted.max_tokens:
            told = "model_context_window_exceeded"
        return {"stop_reason": told, "stop_sequence": None}

    def _usage(self, tokens: TokenCounts) -> dict[str, Any]:
        """Return counts of tokens. The last one of a prompt is computed each time; the others stay in the prefix cache."""
        computed = tokens.prompt - tokens.cached
        created = max(computed - 1, 0) if self._wanted.caches else 0
        return {
            "input_tokens": computed - created, "cache_creation_input_tokens": created,
            "cache_read_input_tokens": tokens.cached, "output_tokens": tokens.completion,
            **({"output_tokens_details": {"thinking_tokens": tokens.reasoning}} if tokens.reasoning else {}),
        }  # fmt: skip

    def _more(self, answered: Answered) -> dict[str, Any]:
        """Return what only some responses have: that no edit was applied, and what of the tools' schemas is not held."""
        more: dict[str, Any] = {"context_management": {"applied_edits": []}} if self._wanted.edits else {}
        return {**more, "warnings": answered.warnings} if answered.warnings else more
