"""OpenAI's API: completions, chat completions and their streams."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from time import time
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.worker.frames import Answered, Chunk, Measures, Message, PromptLogprob, TokenCounts
from offgrid_llama.worker.generation import Texts

from .custom_tools import CustomCalls
from .dialect import Asked, Dialect, Writer
from .llama_server_options import progress, timings
from .openai_logprobs import TextLogprobs, chat_logprobs, prompt_logprobs
from .openai_messages import CustomTool
from .openai_options import conversation, names, options
from .openai_schemas import ChatRequest, CompletionRequest, StreamOptions

__all__ = ["OPENAI", "ChatWriter", "CompletionWriter", "ResponseWriter", "read_chat", "read_completion", "usage_of"]

OPENAI = Dialect("openai", ApiError.as_dict)

_DONE = b"data: [DONE]\n\n"


def read_chat(body: ChatRequest, make: Callable[..., ChatWriter] | None = None) -> Asked:
    """Return what a request of ``/v1/chat/completions`` asks for. Raises ApiError.

    Args:
        body: of the request.
        make: makes the writer of the response, with the arguments of ChatWriter; None is ChatWriter.
    """
    custom = frozenset(tool.custom.name for tool in body.tools or () if isinstance(tool, CustomTool))
    writer = partial(make or ChatWriter, with_usage=_with_usage(body.stream_options), n=body.n or 1, custom=custom)
    return Asked(body.model, conversation(body.said()), bool(body.stream), writer)


def read_completion(body: CompletionRequest) -> Asked:
    """Return what a request of ``/v1/completions`` asks for."""
    said = body.said()
    echoes = bool(body.echo) and body.logprobs is not None
    if echoes and body.prompt_logprobs is None:
        said["prompt_logprobs"] = body.logprobs
    single = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
    asked = options(said, said.get("logprobs"))
    asked.best_of = None if body.best_of == asked.n else body.best_of
    what = Texts(
        options=asked,
        names={**names(said, "prompt"), **({} if body.prompt_logprobs is not None else {"prompt_logprobs": "logprobs"})},
        prompts=[said["prompt"]] if single else list(said["prompt"]), suffix=body.suffix or None, echo=bool(body.echo),
    )  # fmt: skip
    writer = partial(
        CompletionWriter, with_usage=_with_usage(body.stream_options), n=body.n or 1, echoes_logprobs=echoes,
        tells_prompts=body.prompt_logprobs is not None,
    )  # fmt: skip
    return Asked(body.model, what, bool(body.stream), writer)


def _with_usage(stream_options: StreamOptions | None) -> bool:
    return stream_options is not None and stream_options.include_usage


class ResponseWriter(Writer):
    """Writes a response of OpenAI's.

    Args:
        model: the name that the client used for the model.
        with_usage: whether an event with the usage comes before the last.

    Attributes:
        kind: OpenAI's name of the whole response.
        chunk_kind: OpenAI's name of an event.
        id_prefix: of the response's id.
        extra: further fields of the response and of each event.
    """

    kind = ""
    chunk_kind = ""
    id_prefix = ""

    def __init__(self, model: str, with_usage: bool = False) -> None:
        self.with_usage = with_usage
        self.id = f"{self.id_prefix}-{secrets.token_hex(12)}"
        self.created = int(time())
        self.model = model
        head = {"id": self.id, "object": self.chunk_kind, "created": self.created, "model": model}
        self._tail = b',"usage":null}\n\n' if with_usage else b"}\n\n"
        self.extra: dict[str, Any] = {}
        self._head = b"data: " + msgspec.json.encode(head)[:-1] + b',"choices":'

    def event(self, chunk: Chunk) -> bytes:
        """Return the event of a chunk, with what could not be held to, if it is the last of an answer."""
        if chunk.n_computed is not None:
            return self.written([], _progress(chunk.n_computed, chunk.measures))
        warnings = b',"warnings":' + msgspec.json.encode(chunk.warnings) if chunk.warnings else b""
        if chunk.measures is not None:
            warnings += b',"timings":' + msgspec.json.encode(timings(chunk.measures))
        return self._head + msgspec.json.encode([self._choice(chunk)]) + warnings + self._tail

    def written(self, choices: Sequence[Any], more: Mapping[str, Any]) -> bytes:
        """Return an event with these choices and further fields."""
        fields = msgspec.json.encode({**self.extra, **more})[1:]
        return self._head + msgspec.json.encode(choices) + (b"," if len(fields) > 1 else b"") + fields + b"\n\n"

    def end(self, answered: Answered) -> bytes:
        """Return the event with the usage, where it is wanted, and the last one."""
        if not self.with_usage:
            return _DONE
        return self._head + b'[],"usage":' + msgspec.json.encode(usage_of(answered.tokens)) + b"}\n\n" + _DONE

    def failed(self, error: ApiError) -> bytes:
        """Return the event of an error, which is the last one."""
        return b"data: " + error.body() + b"\n\n"

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        return {
            "id": self.id, "object": self.kind, "created": self.created, "model": self.model, **self.extra,
            "choices": [self._whole_choice(index, message) for index, message in enumerate(answered.messages)],
            "usage": usage_of(answered.tokens), **({"warnings": answered.warnings} if answered.warnings else {}),
            **_timings(answered),
        }  # fmt: skip

    def _choice(self, chunk: Chunk) -> dict[str, Any]:
        raise NotImplementedError

    def _whole_choice(self, index: int, message: Message) -> dict[str, Any]:
        raise NotImplementedError


class ChatWriter(ResponseWriter):
    """Writes the response to a conversation, of which a stream has ``n`` choices; ``custom`` are names of custom tools."""

    kind, chunk_kind, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, model: str, with_usage: bool = False, n: int = 1, custom: Collection[str] = frozenset()) -> None:
        super().__init__(model, with_usage)
        self.n = n
        self._calls = CustomCalls(custom)

    def begin(self) -> bytes:
        """Return events that tell the role of each choice, as OpenAI's streams begin."""
        delta = {"role": "assistant", "content": ""}
        return b"".join(
            self._head
            + msgspec.json.encode([{"index": i, "delta": delta, "logprobs": None, "finish_reason": None}])
            + self._tail
            for i in range(self.n)
        )

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        body = super().whole(answered)
        return {**body, "prompt_logprobs": prompt_logprobs(answered.prompts[0])} if answered.prompts else body

    def _choice(self, chunk: Chunk) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.content:
            delta["content"] = chunk.content
        if chunk.calls:
            delta["tool_calls"] = self._calls.deltas(chunk.index, chunk.calls)
        logprobs = chat_logprobs(chunk.logprobs)
        return {"index": chunk.index, "delta": delta, "logprobs": logprobs, "finish_reason": chunk.finish_reason}

    def _whole_choice(self, index: int, message: Message) -> dict[str, Any]:
        fields: dict[str, Any] = {"role": "assistant", "content": message.content, "refusal": None}
        if message.reasoning:
            fields["reasoning_content"] = message.reasoning
        if message.calls:
            fields["content"] = message.content or None
            fields["tool_calls"] = self._calls.whole(message.calls)
        logprobs = chat_logprobs(message.logprobs)
        return {"index": index, "message": fields, "logprobs": logprobs, "finish_reason": message.finish_reason}


class CompletionWriter(ResponseWriter):
    """Writes the response to prompts.

    Args:
        model, with_usage: as ResponseWriter has them.
        n: answers to each prompt.
        echoes_logprobs: whether the logprobs of an answer begin with those of its prompt.
        tells_prompts: whether the logprobs of prompts are told in vLLM's shape.
    """

    kind = chunk_kind = "text_completion"
    id_prefix = "cmpl"

    def __init__(
        self,
        model: str,
        with_usage: bool = False,
        n: int = 1,
        *,
        echoes_logprobs: bool = False,
        tells_prompts: bool = False,
    ) -> None:
        super().__init__(model, with_usage)
        self.n = n
        self._echoes_logprobs = echoes_logprobs
        self._tells_prompts = tells_prompts
        self._texts: dict[int, TextLogprobs] = {}  # of each choice
        self._prompts: list[list[PromptLogprob]] = []

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        self._prompts = answered.prompts
        return super().whole(answered)

    def _choice(self, chunk: Chunk) -> dict[str, Any]:
        told = self._texts.setdefault(chunk.index, TextLogprobs())
        logprobs = told.of(chunk.logprobs, chunk.prompt if self._echoes_logprobs else None)
        return {"index": chunk.index, "text": chunk.content, "logprobs": logprobs, "finish_reason": chunk.finish_reason}

    def _whole_choice(self, index: int, message: Message) -> dict[str, Any]:
        prompt = self._prompts[index // self.n] if self._prompts else None
        logprobs = TextLogprobs().of(message.logprobs, prompt if self._echoes_logprobs else None)
        choice = {
            "index": index, "text": message.content, "logprobs": logprobs, "finish_reason": message.finish_reason,
        }  # fmt: skip
        return {**choice, "prompt_logprobs": prompt_logprobs(prompt or ())} if self._tells_prompts else choice


def usage_of(tokens: TokenCounts) -> dict[str, Any]:
    """Return OpenAI's ``usage``."""
    told: dict[str, int] = {"reasoning_tokens": tokens.reasoning} if tokens.reasoning else {}
    if tokens.accepted or tokens.rejected:
        told |= {"accepted_prediction_tokens": tokens.accepted, "rejected_prediction_tokens": tokens.rejected}
    details = {"completion_tokens_details": told} if told else {}
    return {
        "prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
        "prompt_tokens_details": {"cached_tokens": tokens.cached}, **details,
    }  # fmt: skip


def _progress(n_computed: int, measures: Measures | None) -> dict[str, Any]:
    return {} if measures is None else {"prompt_progress": progress(n_computed, measures)}


def _timings(answered: Answered) -> dict[str, Any]:
    """Return the timings of the first answer, if the request asks for them."""
    details = answered.messages[0].details if answered.messages else None
    return {} if details is None else {"timings": timings(details.measures)}
