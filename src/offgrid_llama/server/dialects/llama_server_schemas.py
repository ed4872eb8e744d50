"""Schemas of llama-server's own API: the bodies of its requests, with its names and this server's limits."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from offgrid_llama.server.shapes import by_shape
from offgrid_llama.server.strict import Strict

from .further_schemas import Adapters
from .openai_messages import MAX_TOOLS, ChatMessage, ToolChoice, ToolDefinition
from .openai_schemas import (
    MAX_BIASES,
    MAX_GRAMMAR_CHARACTERS,
    MAX_INPUTS,
    MAX_MESSAGES,
    MAX_TOKENS,
    Finite,
    ModelName,
    ResponseFormat,
    StreamOptions,
    TokenId,
)

__all__ = [
    "ChatCompletionRequest", "CompletionRequest", "EmbeddingRequest", "InfillRequest", "PredictRequest", "RerankRequest",
    "SlotFile",
]  # fmt: skip

MAX_N = 8
MAX_STOPS = 64
MAX_PROBS = 1000
MAX_BREAKERS = 64
MAX_FIELDS = 64
MAX_FILES = 1024
INT32_MAX = 2**31 - 1
MAX_BIAS = 1e9

Limit = Annotated[int, Field(ge=-1, le=INT32_MAX)]
Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
Word = Annotated[str, Field(max_length=1000)]


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= INT32_MAX


def _check_prompt(value: Any) -> None:
    """Refuse what is no prompt: a text, tokens and texts in turn, or an object with a text."""
    if isinstance(value, dict):
        _check_object(value)
        return
    is_list = isinstance(value, list) and 0 < len(value) <= MAX_TOKENS
    if isinstance(value, str) or (is_list and all(_is_token(each) or isinstance(each, str) for each in value)):
        return
    raise PydanticCustomError("prompt", "must be a string, token ids and strings, or a list of such prompts")


def _check_object(value: dict[str, Any]) -> None:
    """Refuse an object that is no prompt: it has a text as ``prompt_string``, or as parts of its ``content``."""
    if value.get("multimodal_data"):
        raise PydanticCustomError("media", "multimodal_data: this server does not support media")
    parts = value.get("content")
    are_texts = isinstance(parts, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts
    )
    if not are_texts and not isinstance(value.get("prompt_string"), str):
        raise PydanticCustomError("prompt", "must have a prompt_string, or a content with parts of the type text")


def _check_prompts(value: Any) -> Any:
    if isinstance(value, list) and not any(_is_token(each) for each in value):
        if not 1 <= len(value) <= MAX_INPUTS:
            raise PydanticCustomError("prompts", "must have 1 to {n} prompts", {"n": MAX_INPUTS})
        for each in value:
            _check_prompt(each)
    else:
        _check_prompt(value)
    return value


Prompts = Annotated[Any, AfterValidator(_check_prompts)]
"""One prompt or several: texts, lists of token ids and texts, objects with a "prompt_string"."""


def _check_biases(value: Any) -> Any:
    """Refuse what is none of the forms of a logit bias: pairs, objects, or one object; tokens are ids or texts."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list) or len(pairs) > MAX_BIASES:
        raise PydanticCustomError("bias", "must be a list or an object of at most {n} biases", {"n": MAX_BIASES})
    for pair in pairs:
        _check_bias([pair.get("token"), pair.get("bias")] if isinstance(pair, dict) else pair)
    return value


def _check_bias(pair: Any) -> None:
    if isinstance(pair, (list, tuple)) and len(pair) == 2:
        token, bias = pair
        is_number = isinstance(bias, (int, float)) and abs(bias) < MAX_BIAS
        if (_is_token(token) or isinstance(token, str)) and (is_number or bias is None):
            return
    raise PydanticCustomError("bias", "must have pairs of a token, or a text, and a number or false")


Biases = Annotated[Any, AfterValidator(_check_biases)]


Samplers: TypeAlias = Annotated[
    Annotated[Word, Tag("text")] | Annotated[list[Word], Field(max_length=64, fail_fast=True), Tag("list")],
    by_shape("letters, or a list of names"),
]
StopTexts: TypeAlias = Annotated[
    Annotated[Word, Tag("text")] | Annotated[list[Word], Field(max_length=MAX_STOPS, fail_fast=True), Tag("list")],
    by_shape("a valid string or a list of strings"),
]


def _not_empty(value: Any) -> Any:
    if isinstance(value, list) and not value:
        raise PydanticCustomError("breakers", "must not be empty")
    return value


class _Named(Strict):
    """A body of which some parameters have further names."""

    _also: ClassVar[dict[str, str]] = {}
    """The parameter that each of them is."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, given: Any) -> Any:
        if not isinstance(given, dict) or cls._also.keys().isdisjoint(given):
            return given
        own = {name: value for name, value in given.items() if name not in cls._also}
        for also, name in cls._also.items():
            if also in given and own.get(name) is None:
                own[name] = given[also]
        return own


class Options(_Named):
    """The fields of each request of llama-server that generates."""

    _also: ClassVar[dict[str, str]] = {"max_completion_tokens": "n_predict", "max_tokens": "n_predict", "n": "n_cmpl"}

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n_predict: Limit | None = None
    n_cmpl: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    min_tokens: Count | None = None
    stop: StopTexts | None = None
    temperature: Annotated[Finite, Field(ge=0, le=1e6)] | None = None
    dynatemp_range: Annotated[Finite, Field(ge=0, le=1e6)] | None = None
    dynatemp_exponent: Annotated[Finite, Field(ge=-1e6, le=1e6)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=INT32_MAX)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_n_sigma: Annotated[Finite, Field(ge=-1, le=1e6)] | None = None
    xtc_probability: Annotated[Finite, Field(ge=0, le=1)] | None = None
    xtc_threshold: Annotated[Finite, Field(ge=0, le=1)] | None = None
    typical_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    repeat_last_n: Annotated[int, Field(ge=-1, le=2**20)] | None = None
    repeat_penalty: Annotated[Finite, Field(gt=0, le=1e6)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-1e6, le=1e6)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-1e6, le=1e6)] | None = None
    dry_multiplier: Annotated[Finite, Field(ge=0, le=1e6)] | None = None
    dry_base: Annotated[Finite, Field(ge=0, le=1e6)] | None = None
    dry_allowed_length: Count | None = None
    dry_penalty_last_n: Annotated[int, Field(ge=-1, le=2**20)] | None = None
    dry_sequence_breakers: (
        Annotated[list[Word], Field(max_length=MAX_BREAKERS, fail_fast=True), BeforeValidator(_not_empty)] | None
    ) = None
    mirostat: Annotated[int, Field(ge=0, le=2)] | None = None
    mirostat_tau: Annotated[Finite, Field(ge=0, le=1e6)] | None = None
    mirostat_eta: Annotated[Finite, Field(ge=0, le=1e6)] | None = None
    adaptive_target: Annotated[Finite, Field(ge=-1e6, le=1)] | None = None
    adaptive_decay: Annotated[Finite, Field(ge=0, le=0.99)] | None = None
    min_keep: Count | None = None
    samplers: Samplers | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    logit_bias: Biases | None = None
    ignore_eos: bool | None = None
    grammar: Annotated[str, Field(max_length=MAX_GRAMMAR_CHARACTERS)] | None = None
    json_schema: dict[str, Any] | None = None
    n_keep: Limit | None = None
    n_discard: Count | None = None
    n_indent: Count | None = None
    t_max_predict_ms: Annotated[int, Field(ge=-1, le=2**53)] | None = None
    cache_prompt: bool | None = None
    id_slot: Annotated[int, Field(ge=-1, le=255)] | None = None
    lora: Adapters | None = None
    post_sampling_probs: bool | None = None
    return_tokens: bool | None = None
    return_progress: bool | None = None
    timings_per_token: bool | None = None
    verbose: bool | None = None
    priority: Annotated[int, Field(ge=-1000, le=1000)] | None = None
    n_cache_reuse: Count | None = None
    backend_sampling: bool | None = None
    sse_ping_interval: Limit | None = None
    user: str | None = None

    def said(self) -> dict[str, Any]:
        """Return the parameters that the client has set, without those that are null."""
        return self.model_dump(exclude_unset=True, exclude_none=True, by_alias=True)


class CompletionRequest(Options):
    """A request of ``/completion``, ``/completions`` or, in llama-server's manner, ``/v1/completions``."""

    _also: ClassVar[dict[str, str]] = {**Options._also, "logprobs": "n_probs"}

    prompt: Prompts
    n_probs: Annotated[int, Field(ge=0, le=MAX_PROBS)] | None = None
    response_fields: Annotated[list[Word], Field(max_length=MAX_FIELDS, fail_fast=True)] | None = None
    echo: bool | None = None
    suffix: str | None = None


class File(Strict):
    """Another text of a project."""

    text: str
    filename: Word | None = None


class InfillRequest(Options):
    """A request of ``/infill``."""

    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Annotated[list[File], Field(max_length=MAX_FILES, fail_fast=True)] | None = None
    prompt: str = ""
    n_probs: Annotated[int, Field(ge=0, le=MAX_PROBS)] | None = None
    response_fields: Annotated[list[Word], Field(max_length=MAX_FIELDS, fail_fast=True)] | None = None


class ChatCompletionRequest(Options):
    """A conversation in llama-server's manner."""

    _also: ClassVar[dict[str, str]] = {
        **Options._also, "reasoning_budget_tokens": "reasoning_budget", "thinking_budget_tokens": "reasoning_budget",
    }  # fmt: skip

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_PROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Word | None = None
    reasoning_format: Word | None = None
    reasoning_budget: Limit | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None


class EmbeddingRequest(_Named):
    """A request of ``/embedding``, ``/embeddings`` or, in llama-server's manner, ``/v1/embeddings``."""

    _also: ClassVar[dict[str, str]] = {"content": "input"}

    model: ModelName | None = None
    input: Prompts
    embd_normalize: Annotated[int, Field(ge=-1, le=100)] | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class RerankRequest(Strict):
    """A request of ``/rerank``: Jina's, with ``documents``, or TEI's, with ``texts``."""

    model: ModelName | None = None
    query: str
    documents: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)] | None = None
    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)] | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None


class SlotFile(Strict):
    """The file of a slot."""

    filename: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$")]


class PredictRequest(BaseModel):
    """A request of Vertex AI's ``/predict``: each instance is a body of another endpoint."""

    instances: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_N, fail_fast=True)]


Tokens = Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]
