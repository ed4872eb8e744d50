"""Ollama's API: conversations and texts, and their streams of lines of JSON."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from datetime import datetime, timezone
from time import monotonic
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.worker.frames import Answered, CallChunk, Chunk, Message, Timings, TokenLogprob
from offgrid_llama.worker.generation import Conversation, Texts

from .dialect import Asked, Dialect, Writer, arguments_of_call
from .go_template import as_jinja
from .ollama_options import (
    constraint,
    message_content,
    messages_of,
    names,
    options_of,
    response_format,
    thinking,
    tools_of,
)
from .ollama_schemas import ChatBody, GenerateBody

__all__ = [
    "LINES", "OLLAMA", "OllamaChatWriter", "OllamaTextWriter", "embedded", "loaded", "now", "read_generate",
    "read_ollama_chat", "vectors",
]  # fmt: skip

LINES = "application/x-ndjson"
"""The media type of a stream of lines of JSON."""
_NANOSECONDS = 1_000_000_000


def _error(error: ApiError) -> dict[str, Any]:
    return {"error": error.message}


OLLAMA = Dialect("ollama", _error)


def now() -> str:
    """Return the time, as RFC 3339 writes it."""
    return datetime.now(timezone.utc).isoformat().replace("+00:00", "Z")


# Requests ---------------------------------------------------------------------------------------------------------------


def read_ollama_chat(body: ChatBody) -> Asked:
    """Return what a request of ``/api/chat`` asks for."""
    variables, budget = thinking(body)
    what = Conversation(
        options=options_of(body), names=names(body), messages=messages_of(body.messages), tools=tools_of(body.tools),
        response_format=response_format(body), variables=variables, reasoning_budget=budget, reasons=bool(body.think),
        truncate=body.truncate, continue_final_message=_is_begun(body),
    )  # fmt: skip
    return Asked(body.model, what, body.stream, OllamaChatWriter, keep_alive=body.keep_alive)


def _is_begun(body: ChatBody) -> bool:
    """Return whether the last message is the beginning of the answer, as Ollama takes one of the assistant."""
    last = body.messages[-1] if body.messages else None
    return last is not None and last.role.lower() == "assistant" and bool(last.content) and not last.tool_calls


def read_generate(body: GenerateBody) -> Asked:
    """Return what a request of ``/api/generate`` asks for. Raises ApiError."""
    what = _text(body) if body.raw or body.suffix else _conversation(body)
    return Asked(body.model, what, body.stream, OllamaTextWriter, keep_alive=body.keep_alive)


def _text(body: GenerateBody) -> Texts:
    """Return the text that is completed as it is, or around a gap."""
    if body.images:
        message = "pictures go with a chat template only: not with raw mode, and not with a suffix"
        raise ApiError(400, message, code="invalid_value", param="images")
    if body.raw and (body.template or body.system or body.context):
        message = "raw mode does not support template, system, or context"
        raise ApiError(400, message, code="invalid_value", param="raw")
    options = options_of(body)
    options.constraint = constraint(body)
    suffix = None if body.raw else body.suffix
    return Texts(options=options, names=names(body), prompts=[body.prompt], suffix=suffix, parse_special=body.raw)


def _conversation(body: GenerateBody) -> Conversation:
    """Return the conversation of a system message and a prompt. A model without a template completes the prompt."""
    variables, budget = thinking(body)
    system = [{"role": "system", "content": body.system}] if body.system else []
    template = as_jinja(body.template) if body.template else None
    if template is not None:
        variables |= {"system": body.system, "prompt": body.prompt, "response": ""}
    content = message_content(body.prompt, body.images)
    return Conversation(
        options=options_of(body), names=names(body), messages=[*system, {"role": "user", "content": content}],
        response_format=response_format(body), variables=variables, reasoning_budget=budget, reasons=bool(body.think),
        template=template, before=body.context, tell_tokens=True, or_text=None if body.images else body.prompt,
    )  # fmt: skip


# Responses --------------------------------------------------------------------------------------------------------------


def loaded(model: str, field: str, reason: str) -> dict[str, Any]:
    """Return the body of the response to a request that loads or unloads a model.

    Args:
        model: the name that the client used.
        field: that an answer would be in: "message" or "response".
        reason: "load" or "unload".
    """
    empty = _message("", "", []) if field == "message" else ""
    return {"model": model, "created_at": now(), field: empty, "done": True, "done_reason": reason}


def vectors(data: bytes, n_embd: int) -> list[list[float]]:
    """Return vectors of ``n_embd`` values as numbers, from the bytes of all of them."""
    values = array("f", data).tolist()
    return [values[at : at + n_embd] for at in range(0, len(values), n_embd)]


def embedded(
    model: str, vectors: Sequence[Sequence[float]], n_tokens: int, load_seconds: float, seconds: float
) -> dict[str, Any]:
    """Return the body of the response of ``/api/embed``.

    Args:
        model: the name that the client used.
        vectors: of the texts.
        n_tokens: of all texts.
        load_seconds: how long the request has waited for the model.
        seconds: how long it took.
    """
    return {
        "model": model, "embeddings": vectors, "total_duration": _nanoseconds(seconds),
        "load_duration": _nanoseconds(load_seconds), "prompt_eval_count": n_tokens,
    }  # fmt: skip


class _OllamaWriter(Writer):
    """Writes a response of Ollama's.

    Args:
        model: the name that the client used for the model.
    """

    media_type = LINES

    def __init__(self, model: str) -> None:
        self.model = model
        self.sign_of_life = self._line({**self._empty(), "done": False})
        self._begun_at = monotonic()
        self._reason = "stop"

    def event(self, chunk: Chunk) -> bytes:
        """Return the line of a chunk, if it has anything to tell."""
        self._reason = chunk.finish_reason or self._reason
        found = self._part(chunk)
        if chunk.logprobs:
            found["logprobs"] = _logprobs(chunk.logprobs)
        return self._line({**found, "done": False}) if found else b""

    def end(self, answered: Answered) -> bytes:
        """Return the line that ends the stream, with the reason, the times and the counts."""
        return self._line({**self._empty(), **self._ended(self._reason, answered)})

    def failed(self, error: ApiError) -> bytes:
        """Return the line of an error, which is the last one."""
        return msgspec.json.encode(_error(error)) + b"\n"

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        message = answered.messages[0]
        found = self._of_message(message)
        if message.logprobs:
            found["logprobs"] = _logprobs(message.logprobs)
        return {**self._head(), **found, **self._ended(message.finish_reason, answered)}

    def _part(self, chunk: Chunk) -> dict[str, Any]:
        """Return what a chunk adds; empty for nothing."""
        raise NotImplementedError

    def _of_message(self, message: Message) -> dict[str, Any]:
        raise NotImplementedError

    def _empty(self) -> dict[str, Any]:
        """Return a part that adds nothing."""
        raise NotImplementedError

    def _head(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": now()}

    def _line(self, fields: dict[str, Any]) -> bytes:
        return msgspec.json.encode({**self._head(), **fields}) + b"\n"

    def _ended(self, reason: str, answered: Answered) -> dict[str, Any]:
        """Return the reason why an answer ends, its times and its counts. Waiting in the queue counts as loading."""
        timings = answered.timings or Timings()
        return {
            "done": True, "done_reason": "length" if reason == "length" else "stop",
            "total_duration": _nanoseconds(monotonic() - self._begun_at),
            "load_duration": _nanoseconds(self.load_seconds + timings.waiting),
            "prompt_eval_count": answered.tokens.prompt, "prompt_eval_duration": _nanoseconds(timings.prompt),
            "eval_count": answered.tokens.completion, "eval_duration": _nanoseconds(timings.completion),
            **({"context": answered.told_tokens} if answered.told_tokens else {}),
            **({"warnings": answered.warnings} if answered.warnings else {}),
        }  # fmt: skip


class OllamaChatWriter(_OllamaWriter):
    """Writes the response to a conversation. Its calls come one by one, each when it is complete."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self._calls: dict[int, CallChunk] = {}
        self._n_told = 0

    def _part(self, chunk: Chunk) -> dict[str, Any]:
        for part in chunk.calls:
            if part.name:
                self._calls[part.index] = part
            else:
                self._calls[part.index].arguments += part.arguments
        n_complete = len(self._calls) - (1 if self._calls and chunk.finish_reason is None else 0)
        new = list(self._calls.values())[self._n_told : n_complete]
        complete = [made for call in new if (made := _call(call)) is not None]
        self._n_told = n_complete
        if not (chunk.content or chunk.reasoning or complete or chunk.logprobs):
            return {}
        return {"message": _message(chunk.content, chunk.reasoning, complete)}

    def _of_message(self, message: Message) -> dict[str, Any]:
        calls = [made for call in message.calls if (made := _call(call)) is not None]
        return {"message": _message(message.content, message.reasoning, calls)}

    def _empty(self) -> dict[str, Any]:
        return {"message": _message("", "", [])}


class OllamaTextWriter(_OllamaWriter):
    """Writes the response to a prompt."""

    def _part(self, chunk: Chunk) -> dict[str, Any]:
        if not (chunk.content or chunk.reasoning or chunk.logprobs):
            return {}
        return _response(chunk.content, chunk.reasoning)

    def _of_message(self, message: Message) -> dict[str, Any]:
        return _response(message.content, message.reasoning)

    def _empty(self) -> dict[str, Any]:
        return {"response": ""}


def _response(content: str, reasoning: str) -> dict[str, Any]:
    return {"response": content, **({"thinking": reasoning} if reasoning else {})}


def _message(content: str, reasoning: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "role": "assistant", "content": content, **({"thinking": reasoning} if reasoning else {}),
        **({"tool_calls": calls} if calls else {}),
    }  # fmt: skip


def _call(call: CallChunk) -> dict[str, Any] | None:
    """Return a call with its arguments as an object; None for one that was cut off."""
    arguments = arguments_of_call(call)
    if arguments is None:
        return None
    return {"id": call.id, "function": {"index": call.index, "name": call.name, "arguments": arguments}}


def _logprobs(logprobs: list[TokenLogprob]) -> list[dict[str, Any]]:
    def one(piece: bytes, logprob: float) -> dict[str, Any]:
        return {"token": piece.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(piece)}

    return [
        {
            **one(each.piece, each.logprob),
            **({"top_logprobs": [one(piece, logprob) for piece, logprob in each.top]} if each.top else {}),
        }
        for each in logprobs
    ]


def _nanoseconds(seconds: float) -> int:
    """Return a time in nanoseconds: at least one, as clients divide by it."""
    return max(1, round(seconds * _NANOSECONDS))
