"""Schemas of Ollama's requests, with this server's limits.

Ollama is forgiving, and so are these: names that are not known are ignored, numbers with a fraction are cut to integers
where those are meant, a null is as if it were absent. What cannot be done is refused by its name.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, Tag
from pydantic_core import PydanticCustomError

from offgrid_llama.server.forgiving import Forgiving
from offgrid_llama.server.shapes import by_items, by_shape

from .further_schemas import Adapters
from .openai_messages import MAX_TOOLS, CalledFunction, ToolName
from .openai_schemas import MAX_INPUTS, MAX_LOGPROBS, MAX_MESSAGES, MAX_STOPS, MAX_TOKENS, Finite, Stop, TokenId

__all__ = [
    "ChatBody", "CopyBody", "EmbedBody", "EmbeddingsBody", "GenerateBody", "ModelBody", "ModelOptions", "OllamaMessage",
    "OllamaTool", "PullBody",
]  # fmt: skip

THINKING_LEVELS = ("low", "medium", "high", "max")
MAX_TEMPLATE_CHARACTERS = 32 * 1024
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"([+-]?)((?:\d{1,18}(?:\.\d{0,18})?(?:ns|us|µs|μs|ms|s|m|h)){1,8}|\d{1,18}(?:\.\d{0,18})?)")
_PART = re.compile(r"([\d.]+)(\D*)")


def _whole(value: Any) -> Any:
    """Return a number without its fraction, as Ollama takes it."""
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


def _texts(value: Any) -> Any:
    """Return one text as a list of it."""
    return [value] if isinstance(value, str) else value


def _seconds(value: Any) -> Any:
    """Return a duration in seconds: a number of them, or as Go writes it, such as "5m" and "1h30m". Below 0 is for ever."""
    if isinstance(value, str):
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            raise PydanticCustomError("duration", 'Input should be a duration such as "5m", or seconds')
        seconds = sum(float(n) * _UNIT_SECONDS[unit or "s"] for n, unit in _PART.findall(found[2]))
        value = -seconds if found[1] == "-" else seconds
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise PydanticCustomError("duration", 'Input should be a duration such as "5m", or seconds')
    return math.inf if value < 0 else value


def _think(value: Any) -> Any:
    if isinstance(value, bool) or value in THINKING_LEVELS:
        return value
    raise PydanticCustomError("think", 'Input should be true, false, "low", "medium", "high" or "max"')


def _format(value: str) -> str:
    if value not in ("", "json"):
        raise PydanticCustomError("format", "Input should be 'json' or a JSON Schema")
    return value


Whole = Annotated[int, Field(ge=-(2**63), le=2**63 - 1), BeforeValidator(_whole)]
KeepAlive = Annotated[float, BeforeValidator(_seconds)]
Think = Annotated[bool | str, BeforeValidator(_think)]
Format: TypeAlias = Annotated[
    Annotated[str, AfterValidator(_format), Tag("text")] | Annotated[dict[str, Any], Tag("object")],
    by_shape("'json' or a JSON Schema"),
]
Images = Annotated[list[str], Field(fail_fast=True)]
"""Pictures: the files themselves, in base64."""
Name = Annotated[str, Field(max_length=256)]
Inputs: TypeAlias = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[str], Field(max_length=MAX_INPUTS, fail_fast=True), Tag("texts")],
    by_items("a valid string or a list of strings"),
]


class ModelOptions(Forgiving):
    """The options of a request."""

    place = "options"
    num_predict: Whole | None = None
    num_keep: Whole | None = None
    seed: Whole | None = None
    temperature: Finite | None = None
    top_k: Whole | None = None
    top_p: Finite | None = None
    min_p: Finite | None = None
    typical_p: Finite | None = None
    repeat_last_n: Whole | None = None
    repeat_penalty: Annotated[Finite, Field(gt=0, le=100)] | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    mirostat: Annotated[Whole, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[Finite, Field(ge=0)] | None = None
    mirostat_eta: Annotated[Finite, Field(ge=0, le=1)] | None = None
    stop: Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True), BeforeValidator(_texts)] | None = None
    lora: Adapters | None = None  # llama.cpp's: the model's adapters to use, by number; [] is none
    # Accepted without effect: the server's settings decide these when a model is loaded.
    num_ctx: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    main_gpu: Any = None
    num_thread: Any = None
    num_gqa: Any = None
    numa: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    embedding_only: Any = None
    rope_frequency_base: Any = None
    rope_frequency_scale: Any = None
    draft_num_predict: Any = None
    # Samplers that llama.cpp no longer has.
    tfs_z: Any = None
    penalize_newline: Any = None


class _Asking(Forgiving):
    """A request that a model answers."""

    model: Annotated[Name, Field(min_length=1)]
    keep_alive: Annotated[
        KeepAlive | None,
        Field(description="Seconds, or a duration such as 5m, after which the idle model is unloaded. Below 0: never."),
    ] = None
    options: ModelOptions = Field(default_factory=ModelOptions)


class _Generating(_Asking):
    """A request for a text."""

    stream: bool = True
    format: Format | None = None
    think: Think | None = None
    logprobs: bool = False
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] = 0
    truncate: Annotated[
        bool, Field(description="Leave out the oldest messages of a conversation that is too long.")
    ] = True
    shift: bool | None = None


class OllamaCall(Forgiving):
    """A call in the history."""

    place = "messages.tool_calls"
    id: str | None = None
    function: CalledFunction


class OllamaMessage(Forgiving):
    """A message."""

    place = "messages"
    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str = ""
    thinking: str | None = None
    images: Images | None = None
    tool_calls: Annotated[list[OllamaCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaFunction(Forgiving):
    """A function that the model may call."""

    place = "tools.function"
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None


class OllamaTool(Forgiving):
    """A tool that the model may use."""

    place = "tools"
    type: str | None = None
    function: OllamaFunction


class ChatBody(_Generating):
    """A request of ``/api/chat``."""

    messages: Annotated[list[OllamaMessage], Field(max_length=MAX_MESSAGES, fail_fast=True)] = Field(
        default_factory=list
    )
    tools: Annotated[list[OllamaTool], Field(max_length=MAX_TOOLS, fail_fast=True)] = Field(default_factory=list)


class GenerateBody(_Generating):
    """A request of ``/api/generate``."""

    prompt: str = ""
    suffix: str = ""
    system: str = ""
    template: Annotated[str, Field(max_length=MAX_TEMPLATE_CHARACTERS)] = ""
    raw: bool = False
    images: Images | None = None
    context: Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)] = Field(default_factory=list)


class EmbedBody(_Asking):
    """A request of ``/api/embed``."""

    input: Inputs = ""
    truncate: bool = True
    dimensions: Annotated[Whole, Field(ge=0)] = 0


class EmbeddingsBody(_Asking):
    """A request of ``/api/embeddings``."""

    prompt: str = ""


class ModelBody(Forgiving):
    """A request about a model, which is named ``model``, or ``name`` by older clients."""

    model: Name = ""
    name: Name = ""
    verbose: bool = False

    @property
    def named(self) -> str:
        """The name of the model."""
        return self.model or self.name


class PullBody(ModelBody):
    """A request of ``/api/pull``."""

    stream: bool = True
    insecure: bool = False


class CopyBody(Forgiving):
    """A request of ``/api/copy``."""

    source: Annotated[Name, Field(min_length=1)]
    destination: Annotated[Name, Field(min_length=1)]
