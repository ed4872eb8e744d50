"""Schemas: the bodies of requests, in OpenAI's shape and with this server's limits. The OpenAPI page is made of them.

An unknown parameter is refused, as OpenAI does, unless the context of the validation has ``ignore_unknown``. OpenAI's
parameters that mean nothing here (``IGNORED``) are accepted without effect. Those whose effect a client would miss are
refused, unless they have their default.

No body makes an error for each of its items or names: lists end at the first (``fail_fast``), unions have one member that a
value's shape chooses, and names are checked before values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from offgrid_llama.server.shapes import by_items, by_shape
from offgrid_llama.server.strict import Strict, refused

from .further_schemas import FurtherFields
from .openai_messages import MAX_TOOLS, ChatMessage, ChatTool, ToolChoice
from .structural_tags import TagFields

__all__ = [
    "IGNORED", "ChatRequest", "CompletionRequest", "DetokenizeRequest", "EmbeddingRequest", "Metadata", "MetadataRequest",
    "RerankRequest", "TemplateRequest", "TokenizeInputRequest", "TokenizeRequest",
]  # fmt: skip

MAX_MESSAGES = 1024
MAX_N = 8
MAX_BEST_OF = 20
MAX_STOPS = 16
MAX_LOGPROBS = 20
MAX_GRAMMAR_CHARACTERS = 64 * 1024
MAX_INPUTS = 2048
MAX_TOKENS = 2**20
MAX_BIASES = 1024
MAX_METADATA = 16

IGNORED = (
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "verbosity",
)  # fmt: skip

Finite = Annotated[float, Field(allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=2**31 - 1)]
ModelName = Annotated[str, Field(max_length=256)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Stops: TypeAlias = Annotated[
    Annotated[Stop, Tag("text")] | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True), Tag("list")],
    by_shape("a valid string or a list of strings"),
]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_TOKENS, fail_fast=True)]
Texts: TypeAlias = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("texts")]
    | Annotated[TokenIds, Tag("numbers")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True), Tag("lists")],
    by_items("a valid string, token ids, or a list of either"),
]
"""One text or several, each as a string or as token ids."""


def _few(value: Any) -> Any:
    """Refuse an object with too many names before its values are looked at: objects do not end at their first error."""
    if isinstance(value, dict) and len(value) > MAX_BIASES:
        raise PydanticCustomError("too_long", "Input should have at most {n} items", {"n": MAX_BIASES})
    return value


def _few_notes(value: Any) -> Any:
    """Refuse metadata with too many names before its values are looked at."""
    if isinstance(value, dict) and len(value) > MAX_METADATA:
        raise PydanticCustomError("too_long", "Input should have at most {n} items", {"n": MAX_METADATA})
    return value


class _Body(Strict):
    def said(self) -> dict[str, Any]:
        """Return the parameters that the client has set, without those that are null or ignored."""
        return {
            name: value
            for name, value in self.model_dump(exclude_unset=True, exclude_none=True, by_alias=True).items()
            if name not in IGNORED
        }


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class SamplingFields(_Body):
    """How tokens are chosen."""

    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Stops | None = None
    frequency_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[Finite, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[
            dict[Annotated[str, Field(pattern=r"^[0-9]{1,10}$")], Annotated[Finite, Field(ge=-100, le=100)]],
            Field(max_length=MAX_BIASES),
            BeforeValidator(_few),
        ]
        | None
    ) = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="llama.cpp's; 0 is off.")
    min_p: Annotated[Finite, Field(ge=0, le=1)] | None = Field(None, description="llama.cpp's; 0 is off.")
    typical_p: Annotated[Finite, Field(gt=0, le=1)] | None = Field(None, description="llama.cpp's; 1 is off.")
    repeat_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = Field(None, description="llama.cpp's; 1 is off.")
    repeat_last_n: Annotated[int, Field(ge=0, le=8192)] | None = Field(None, description="llama.cpp's.")
    grammar: Annotated[str, Field(max_length=MAX_GRAMMAR_CHARACTERS)] | None = Field(
        None, description="A grammar in GBNF."
    )


class _Request(SamplingFields, FurtherFields):
    """The parameters of both chat completions and completions."""

    model: ModelName | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> Any:
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "only allowed when stream is true")
        return self


class JsonSchema(Strict):
    """A schema that the answer must match."""

    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], BeforeValidator(_few_notes)
]


class MetadataRequest(Strict):
    """A change of what a client has noted about a chat completion that is kept."""

    metadata: Metadata | None = None


class ResponseFormat(TagFields):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")

    @model_validator(mode="after")
    def _check_schemas(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise refused("json_schema", "required by the type json_schema")
        if self.type != "json_schema" and self.json_schema is not None:
            raise refused("json_schema", "only allowed with the type json_schema")
        if self.type != "json_object" and self.schema_ is not None:
            raise refused("schema", "only allowed with the type json_object")
        if (self.tags() is None) == (self.type == "structural_tag"):
            raise refused("structures", "required by the type structural_tag, with triggers, and by no other one")
        return self


class PredictionPart(Strict):
    """A part of a text that is expected."""

    type: Literal["text"]
    text: str


class Prediction(Strict):
    """The text that is expected as the answer."""

    type: Literal["content"]
    content: Annotated[
        Annotated[str, Tag("text")]
        | Annotated[list[PredictionPart], Field(max_length=MAX_INPUTS, fail_fast=True), Tag("list")],
        by_shape("a valid string or a list of parts"),
    ]


class ChatRequest(_Request):
    """A request of ``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    max_completion_tokens: Tokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    bare_calls: bool | None = Field(
        None,
        description="Read a call that is written without the marks of the model's format, too. The default is true.",
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    reasoning_budget: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="Tokens of reasoning, at most; this server's own."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables of the template; this server's own."
    )
    continue_final_message: bool | None = Field(None, description="Continue the last message; this server's own.")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1, fail_fast=True)] | None = None
    verbosity: str | None = None
    prediction: Prediction | None = None

    @model_validator(mode="after")
    def _check_metadata(self) -> ChatRequest:
        said = self.metadata or {}
        texts_fit = all(len(name) <= 64 and isinstance(text, str) and len(text) <= 512 for name, text in said.items())
        if self.store and not (len(said) <= MAX_METADATA and texts_fit):
            raise refused(
                "metadata", "what is stored has up to 16 names of 64 characters, each with a text of up to 512"
            )
        return self

    @model_validator(mode="after")
    def _check_top_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "only allowed when logprobs is true")
        return self


class CompletionRequest(_Request):
    """A request of ``/v1/completions``."""

    prompt: Texts
    max_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_BEST_OF)] | None = None

    @model_validator(mode="after")
    def _check_combinations(self) -> CompletionRequest:
        n = self.n or 1
        if self.best_of is not None and self.best_of < n:
            raise refused("best_of", f"must be at least n, which is {n}")
        if self.best_of not in (None, n) and self.stream:
            raise refused(
                "best_of", "more than n is not allowed when stream is true: the answers are compared at their end"
            )
        if self.echo and self.suffix:
            raise refused("echo", "not allowed with suffix")
        return self


class EmbeddingRequest(_Body):
    """A request of ``/v1/embeddings``."""

    model: ModelName | None = None
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class RerankRequest(_Body):
    """A request of ``/v1/rerank``."""

    model: ModelName | None = None
    query: str
    documents: Annotated[list[str], Field(min_length=1, max_length=MAX_INPUTS, fail_fast=True)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None


class TokenizeRequest(_Body):
    """A request of ``/tokenize``: llama-server's, with ``content``, or vLLM's, with ``prompt``.

    vLLM adds special tokens by default, and reads them in the text.
    """

    model: ModelName | None = None
    content: str | None = None
    add_special: bool = False
    parse_special: bool = False
    with_pieces: bool = False
    prompt: str | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _check_text(self) -> Any:
        if (self.content is None) == (self.prompt is None):
            raise refused("content", "the text is content, or else prompt")
        return self


class TokenizeInputRequest(_Body):
    """A request of ``/extras/tokenize`` and ``/extras/tokenize/count``, as llama-cpp-python's server has them."""

    model: ModelName | None = None
    input: str


class DetokenizeRequest(_Body):
    """A request of ``/detokenize``, and of ``/extras/detokenize``."""

    model: ModelName | None = None
    tokens: Annotated[list[TokenId], Field(max_length=MAX_TOKENS, fail_fast=True)]


class TemplateRequest(_Body):
    """A request of ``/apply-template``."""

    model: ModelName | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    tools: Annotated[list[ChatTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
