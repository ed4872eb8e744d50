"""Schemas: what clients may send, in OpenAI's shape, with the limits of this server. They make the OpenAPI page, too.

A parameter that nobody knows is refused, as OpenAI does. Those of OpenAI's that mean nothing here (``IGNORED``) are taken
and have no effect; those whose effect would be missed are refused where they are not at their default.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = [
    "IGNORED", "ChatRequest", "CompletionRequest", "DetokenizeRequest", "EmbeddingRequest", "RerankRequest",
    "TemplateRequest", "TokenizeRequest",
]  # fmt: skip

MAX_MESSAGES = 1024
MAX_TOOLS = 128
MAX_N = 8
MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_GRAMMAR = 64 * 1024
MAX_INPUTS = 2048

IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "verbosity",
)  # fmt: skip

Finite = Annotated[float, Field(allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
ModelName = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:/-]+$")]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, protected_namespaces=())

    def said(self) -> dict[str, Any]:
        """Return what was said, without what is None or ignored."""
        return {
            name: value
            for name, value in self.model_dump(exclude_unset=True, exclude_none=True, by_alias=True).items()
            if name not in IGNORED
        }


class StreamOptions(_Body):
    """What a stream has besides the answer."""

    include_usage: bool = False
    include_obfuscation: bool = False


class _Request(_Body):
    """What chat and text completions have in common."""

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)] | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[Finite, Field(ge=-100, le=100)]],
            Field(max_length=1024),
        ]
        | None
    ) = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="Of llama.cpp; 0 is off.")
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = Field(None, description="Of llama.cpp; 0 is off.")
    typical_p: Annotated[Finite, Field(gt=0, le=1)] | None = Field(None, description="Of llama.cpp; 1 is off.")
    repeat_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = Field(None, description="Of llama.cpp; 1 is off.")
    repeat_last_n: Annotated[int, Field(ge=0, le=8192)] | None = Field(None, description="Of llama.cpp.")
    grammar: Annotated[str, Field(max_length=MAX_GRAMMAR)] | None = Field(None, description="A grammar in GBNF.")
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @model_validator(mode="after")
    def _stream_options_want_a_stream(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only where stream is true")
        return self


class ChatMessage(BaseModel):
    """A message; what else it has is for the model's template."""

    model_config = ConfigDict(extra="allow")

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class Function(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(BaseModel):
    """A tool."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["function"]
    function: Function


class JsonSchema(BaseModel):
    """A schema that the answer must fit."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(BaseModel):
    """What the answer must be."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _json_schema_has_one(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("response_format: of type json_schema needs json_schema")
        return self


class ChatRequest(_Request):
    """A request of ``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    reasoning_budget: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="Most tokens to think; of this server."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="Variables of the template; of this server.")
    continue_final_message: bool | None = Field(None, description="Go on with the last message; of this server.")
    modalities: list[Literal["text"]] | None = None
    verbosity: str | None = None

    @model_validator(mode="after")
    def _top_logprobs_want_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: only where logprobs is true")
        return self


class CompletionRequest(_Request):
    """A request of ``/v1/completions``."""

    prompt: (
        str
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_N)] | None = None

    @model_validator(mode="after")
    def _what_is_not_there(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of: only as many as n are supported")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo: not together with logprobs; those of a prompt are not computed")
        if self.echo and self.suffix:
            raise ValueError("echo: not together with suffix")
        return self


class EmbeddingRequest(_Body):
    """A request of ``/v1/embeddings``."""

    model: ModelName | None = None
    input: (
        str
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
        | Annotated[list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class RerankRequest(_Body):
    """A request of ``/v1/rerank``."""

    model: ModelName | None = None
    query: str
    documents: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None


class TokenizeRequest(_Body):
    """A request of ``/tokenize``."""

    model: ModelName | None = None
    content: str
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False


class DetokenizeRequest(_Body):
    """A request of ``/detokenize``."""

    model: ModelName | None = None
    tokens: list[TokenId]


class TemplateRequest(_Body):
    """A request of ``/apply-template``."""

    model: ModelName | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
