"""OpenAI's completions and chat completions as llama-server answers them: with its parameters, timings and events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from typing import Any

import msgspec

import offgrid_llama
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.llama_server import LlamaServer
from offgrid_llama.worker.frames import Answered, Chunk, Details, Message
from offgrid_llama.worker.generation import Conversation, Texts

from .dialect import Asked
from .llama_server import LLAMA_SERVER, probabilities, result
from .llama_server_options import model_of, options, progress, prompts, timings
from .llama_server_schemas import ChatCompletionRequest, CompletionRequest
from .openai import ChatWriter, CompletionWriter, ResponseWriter, usage_of
from .openai_options import conversation

__all__ = ["BUILD_INFO", "LlamaChatWriter", "LlamaCompletionWriter", "conversation_of", "read_chat", "read_text"]

BUILD_INFO = f"b0-offgrid-llama-{offgrid_llama.__version__}"
"""The build, as llama-server tells its own; it begins with the number of a build."""
DEFAULT_TOP_LOGPROBS = 20
_OF_CONVERSATIONS = (
    "messages", "tools", "tool_choice", "parallel_tool_calls", "response_format", "chat_template_kwargs", "reasoning_effort",
    "add_generation_prompt",
)  # fmt: skip


def read_chat(body: ChatCompletionRequest, server: LlamaServer | None) -> Asked:
    """Return what a conversation asks for. Raises ApiError."""
    said = body.said()
    what = conversation_of(said, server)
    logprobs = said.get("top_logprobs", DEFAULT_TOP_LOGPROBS) if said.get("logprobs") else None
    what.options = options(said, server, logprobs)
    what.names = {name: name for name in said}
    writer = partial(LlamaChatWriter, said=said, server=server)
    return Asked(model_of(said, server), what, bool(said.get("stream")), writer)


def conversation_of(said: Mapping[str, Any], server: LlamaServer | None) -> Conversation:
    """Return the conversation of a request, without its options. Raises ApiError."""
    what = conversation({name: said[name] for name in _OF_CONVERSATIONS if name in said})
    what.continue_final_message = _continues(said, server)
    last = what.messages[-1]
    if what.continue_final_message and isinstance(last.get("content"), list):  # as llama-server joins its parts
        what.messages = [
            *what.messages[:-1],
            {**last, "content": "\n\n".join(part["text"] for part in last["content"])},
        ]
    reasoning = "auto" if server is None else server.reasoning
    if server is not None:
        what.variables = {**_told(said, server), **what.variables}
    budget = said.get("reasoning_budget", -1 if server is None else server.reasoning_budget)
    if reasoning == "off" or what.variables.get("enable_thinking") is False:
        budget = 0
    if budget >= 0:
        what.reasoning_budget = budget
    form = said.get("reasoning_format", "auto" if server is None else server.reasoning_format)
    what.split_reasoning = form != "none"
    return what


def _told(said: Mapping[str, Any], server: LlamaServer) -> dict[str, Any]:
    """Return the variables that llama-server tells each template, and that a request can set otherwise."""
    now = datetime.now()
    return {
        "enable_thinking": server.reasoning != "off", "date_string": now.strftime("%d %b %Y"),
        "datetime": now.strftime("%b %d %Y"),
        "functions": json.dumps(said["tools"], indent=2) if said.get("tools") else "",
    }  # fmt: skip


def _continues(said: Mapping[str, Any], server: LlamaServer | None) -> bool:
    """Return whether the answer continues the last message. Raises ApiError."""
    messages, wanted = said["messages"], said.get("continue_final_message")
    if wanted and said.get("add_generation_prompt"):
        message = "add_generation_prompt and continue_final_message cannot both be true"
        raise ApiError(400, message, code="invalid_value", param="continue_final_message")
    is_last = messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls")
    if is_last and len(messages) > 1 and messages[-2]["role"] == "assistant":
        message = "there are two or more assistant messages at the end of the conversation"
        raise ApiError(400, message, code="invalid_value", param="messages")
    return bool(wanted) if wanted is not None else is_last and (server is None or server.prefill_assistant)


def read_text(body: CompletionRequest, server: LlamaServer | None) -> Asked:
    """Return what a request of ``/v1/completions`` asks for."""
    said = body.said()
    found, _ = prompts(body.prompt)
    what = Texts(
        options=options(said, server, said.get("n_probs")), names={name: name for name in said}, prompts=found,
        parse_special=True, suffix=body.suffix or None, echo=bool(body.echo),
    )  # fmt: skip
    writer = partial(LlamaCompletionWriter, said=said, server=server)
    return Asked(model_of(said, server), what, bool(said.get("stream")), writer)


class _LlamaWriter(ResponseWriter):
    """The additions of both writers to OpenAI's responses."""

    def __init__(self, model: str, said: Mapping[str, Any], server: LlamaServer | None) -> None:
        super().__init__(model, bool((said.get("stream_options") or {}).get("include_usage")))
        self.said = said
        self.server = server
        self.extra = {"system_fingerprint": BUILD_INFO}

    def failed(self, error: ApiError) -> bytes:
        """Return the event of an error, which is the last one."""
        return b"data: " + msgspec.json.encode(LLAMA_SERVER.error(error)) + b"\n\n"

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return the body of a response that is not streamed."""
        body = super().whole(answered)
        first = answered.messages[0]
        if first.details is not None:
            body |= {"timings": timings(first.details.measures), **self._verbose(first)}
        return body

    def _verbose(self, message: Message) -> dict[str, Any]:
        wanted = self.said.get("verbose", self.server is not None and self.server.verbose)
        return {"__verbose": result(0, message, self.model, self.said, self.server)} if wanted else {}

    def _told(self, choice: dict[str, Any], chunk: Chunk, more: Mapping[str, Any] | None = None) -> bytes:
        """Return an event with one choice, and its timings if the request asks for those of each token."""
        told: dict[str, Any] = {}
        if self.said.get("timings_per_token") and chunk.measures is not None:
            told["timings"] = timings(chunk.measures)
        return self.written([choice], {**told, **(more or {})})

    def _ended(self, choice: dict[str, Any], chunk: Chunk, details: Details) -> bytes:
        """Return the event that ends a choice."""
        message = Message("", "", [], chunk.finish_reason or "stop", None, chunk.stop, details)
        more = self._verbose(message)
        return self.written([choice], more if self.with_usage else {**more, "timings": timings(details.measures)})

    def end(self, answered: Answered) -> bytes:
        """Return the event with the usage, where it is wanted, and the last one."""
        done = b"data: [DONE]\n\n"
        if not self.with_usage:
            return done
        more: dict[str, Any] = {"usage": usage_of(answered.tokens)}
        if self.last is not None:
            more["timings"] = timings(self.last.measures)
        return self.written([], more) + done

    last: Details | None = None


class LlamaChatWriter(_LlamaWriter, ChatWriter):
    """Writes the response to a conversation.

    Args:
        model: its name.
        said: the parameters of the request.
        server: as ``options`` takes it.
    """

    def __init__(self, model: str, said: Mapping[str, Any], server: LlamaServer | None) -> None:
        super().__init__(model, said, server)
        self._begun: set[int] = set()

    def begin(self) -> bytes:
        """Return nothing: the first event of each choice tells its role."""
        return b""

    def event(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk: the role, what it brings, and the end of its choice."""
        role = _choice(chunk.index, {"role": "assistant", "content": None})
        if chunk.n_computed is not None:
            found = {} if chunk.measures is None else {"prompt_progress": progress(chunk.n_computed, chunk.measures)}
            return self.written([role], found)
        events = b"" if chunk.index in self._begun else self.written([role], {})
        self._begun.add(chunk.index)
        choice = self._choice(chunk)
        if choice["delta"]:
            events += self._told({**choice, "finish_reason": None}, chunk)
        if chunk.details is None:
            return events
        self.last = chunk.details
        return events + self._ended(_choice(chunk.index, {}, chunk.finish_reason), chunk, chunk.details)


class LlamaCompletionWriter(_LlamaWriter, CompletionWriter):
    """Writes the response to prompts. The arguments are those of LlamaChatWriter."""

    def __init__(self, model: str, said: Mapping[str, Any], server: LlamaServer | None) -> None:
        CompletionWriter.__init__(self, model)
        _LlamaWriter.__init__(self, model, said, server)

    def event(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk: what it brings, and the end of its choice."""
        choice = {**self._choice(chunk), "finish_reason": None}
        events = b""
        if chunk.n_computed is not None and chunk.measures is not None:
            return self.written([choice], {"prompt_progress": progress(chunk.n_computed, chunk.measures)})
        if chunk.content or chunk.logprobs:
            events = self._told(choice, chunk)
        if chunk.details is None:
            return events
        self.last = chunk.details
        last = {"index": chunk.index, "text": "", "logprobs": None, "finish_reason": chunk.finish_reason}
        return events + self._ended(last, chunk, chunk.details)

    def _choice(self, chunk: Chunk) -> dict[str, Any]:
        return {**super()._choice(chunk), "logprobs": self._logprobs(chunk.logprobs)}

    def _whole_choice(self, index: int, message: Message) -> dict[str, Any]:
        return {**super()._whole_choice(index, message), "logprobs": self._logprobs(message.logprobs)}

    def _logprobs(self, logprobs: Any) -> Any:
        sampled = bool(self.said.get("post_sampling_probs"))
        return {"content": probabilities(logprobs, sampled)} if logprobs else None


def _choice(index: int, delta: Mapping[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
