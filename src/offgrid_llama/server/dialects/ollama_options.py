"""Options and conversations of Ollama's requests, as what a worker is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from offgrid_llama.worker.generation import Constraint, Options, Sampling

from .llama_server_options import scales
from .ollama_schemas import ChatBody, GenerateBody, ModelOptions, OllamaMessage, OllamaTool
from .openai_options import N_SEEDS

__all__ = [
    "constraint",
    "message_content",
    "messages_of",
    "names",
    "options_of",
    "response_format",
    "thinking",
    "tools_of",
]

_AS_THEY_ARE = (
    "repeat_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta",
)  # fmt: skip
_SHARES = ("top_p", "min_p", "typical_p")
MIN_TYPICAL_P = 1e-6
"""A typical_p below this keeps the most typical token alone, as this one does."""


def options_of(body: ChatBody | GenerateBody) -> Options:
    """Return what a request says about its answer."""
    said = body.options
    return Options(
        sampling=_sampling(said), max_tokens=said.num_predict if (said.num_predict or 0) > 0 else None,
        stop=said.stop or [], logprobs=body.top_logprobs if body.logprobs else None,
        n_keep=None if said.num_keep is None else max(said.num_keep, -1), loras=scales(said.lora),
    )  # fmt: skip


def _sampling(said: ModelOptions) -> Sampling:
    """Return how tokens are chosen. A value out of range that turns a sampler off in llama.cpp turns it off here, too."""
    found = Sampling(**{name: value for name in _AS_THEY_ARE if (value := getattr(said, name)) is not None})
    for name in _SHARES:
        if (value := getattr(said, name)) is not None:
            setattr(found, name, min(max(value, MIN_TYPICAL_P if name == "typical_p" else 0.0), 1.0))
    if said.temperature is not None:
        found.temperature = max(said.temperature, 0.0)
    if said.top_k is not None:
        found.top_k = min(max(said.top_k, 0), 2**31 - 1)
    if said.seed is not None and said.seed >= 0:  # a negative one is a random one
        found.seed = said.seed % N_SEEDS
    return found


def names(body: ChatBody | GenerateBody) -> dict[str, str]:
    """Return where a request gives each argument of the library, for errors."""
    text = "messages" if isinstance(body, ChatBody) else "prompt"
    return {
        **{name: f"options.{name}" for name in ModelOptions.model_fields}, "messages": text, "prompt": text, "text": text,
        "tools": "tools", "schema": "format", "grammar": "format", "before": "context", "template": "template",
        "logprobs": "top_logprobs",
    }  # fmt: skip


def response_format(body: ChatBody | GenerateBody) -> dict[str, Any] | None:
    """Return the shape of an answer, as OpenAI's dict."""
    if not body.format:
        return None
    if isinstance(body.format, str):
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"schema": body.format}}


def constraint(body: GenerateBody) -> Constraint | None:
    """Return the shape of a text that is no answer of a conversation."""
    if not body.format:
        return None
    return Constraint("json_object", {}) if isinstance(body.format, str) else Constraint("json_schema", body.format)


def thinking(body: ChatBody | GenerateBody) -> tuple[dict[str, Any], int | None]:
    """Return the variables of the template that turn reasoning on or off, and the reasoning budget."""
    if body.think is None:
        return {}, None
    if body.think is False:
        return {"enable_thinking": False, "reasoning_effort": "none"}, 0
    return {"enable_thinking": True, **({} if body.think is True else {"reasoning_effort": body.think})}, None


def tools_of(tools: Sequence[OllamaTool]) -> list[dict[str, Any]]:
    """Return tools in OpenAI's shape."""
    return [{"type": "function", "function": tool.function.model_dump(exclude_none=True)} for tool in tools]


def messages_of(messages: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """Return messages in OpenAI's shape.

    There, calls have ids, by which results name them. A result without an id belongs to the first call of its tool that has
    no result yet.
    """
    made: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []  # id and name of the calls without a result
    n_calls = 0
    for message in messages:
        said: dict[str, Any] = {
            "role": message.role.lower(),
            "content": message_content(message.content, message.images),
        }
        if message.thinking:
            said["reasoning_content"] = message.thinking
        if message.tool_calls:
            said["tool_calls"] = []
            for call in message.tool_calls:
                id_ = call.id or f"{n_calls:09d}"  # nine characters, as some templates want
                n_calls += 1
                waiting.append((id_, call.function.name))
                function = {"name": call.function.name, "arguments": call.function.arguments or {}}
                said["tool_calls"].append({"id": id_, "type": "function", "function": function})
        elif said["role"] == "tool":
            said |= _result(message, waiting)
        made.append(said)
    return made


def message_content(text: str, images: Sequence[str] | None) -> str | list[dict[str, Any]]:
    """Return the content of a message: its text, and its pictures before that, as OpenAI has them."""
    if not images:
        return text
    parts = [{"type": "image_url", "image_url": {"url": f"data:;base64,{image}"}} for image in images]
    return [*parts, {"type": "text", "text": text}]


def _result(message: OllamaMessage, waiting: list[tuple[str, str]]) -> dict[str, str]:
    """Return which call a result is of, and take that off the calls that wait."""
    wanted, name = message.tool_call_id, message.tool_name
    found = next((call for call in waiting if call[0] == wanted), None) or next(
        (call for call in waiting if name in (None, "", call[1])), None
    )
    if found is None:
        return {"name": name} if name else {}
    waiting.remove(found)
    return {"tool_call_id": found[0], "name": found[1]}
