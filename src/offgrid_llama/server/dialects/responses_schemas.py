"""Schemas: the bodies of requests of the Responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from offgrid_llama.server.strict import Strict, refused

from .further_schemas import FurtherFields
from .openai_schemas import MAX_LOGPROBS, Metadata, ModelName, SamplingFields, Tokens
from .responses_items import Id, Input
from .responses_tools import ToolChoice, Tools

__all__ = ["InputTokensRequest", "ResponseRequest"]


def _refuse(value: Any) -> Any:
    if value is not None:
        raise PydanticCustomError("not_supported", "this server does not support it")
    return value


NotSupported: TypeAlias = Annotated[Any, AfterValidator(_refuse)]
"""A parameter of OpenAI's whose effect a client would miss."""
Ignored: TypeAlias = Any
"""A parameter of OpenAI's that means nothing here."""


class TextFormat(Strict):
    """The form of the answer."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, Field(max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _check_schema(self) -> TextFormat:
        for name, value in (("name", self.name), ("schema", self.schema_)):
            if self.type == "json_schema" and value is None:
                raise refused(name, "required by the type json_schema")
        return self


class TextConfig(Strict):
    """The form of the answer's text. The verbosity has no effect."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(Strict):
    """How the model reasons. Its effort goes to the model's template. There are no summaries: reasoning is told whole."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: str | None = None


class StreamOptions(Strict):
    """Options of a stream."""

    include_obfuscation: bool | None = None


class ConversationFields(Strict):
    """The fields that requests for a response and for the number of its input tokens share."""

    model: ModelName | None = None
    input: Input
    instructions: str | None = None
    previous_response_id: Id | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: NotSupported = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables of the template; this server's own."
    )


class InputTokensRequest(ConversationFields):
    """A request of ``/v1/responses/input_tokens``."""

    personality: Ignored = None


Include = Literal[
    "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
    "message.input_image.image_url", "computer_call_output.output.image_url", "code_interpreter_call.outputs",
    "reasoning.encrypted_content", "message.output_text.logprobs",
]  # fmt: skip


class ResponseRequest(ConversationFields, SamplingFields, FurtherFields):
    """A request of ``/v1/responses``."""

    max_output_tokens: Tokens | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    include: Annotated[list[Include], Field(max_length=16, fail_fast=True)] | None = None
    store: bool | None = Field(None, description="Keep the response, to go on from it; the default is true.")
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    metadata: Metadata | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    prompt: NotSupported = None
    prompt_logprobs: NotSupported = None
    context_management: NotSupported = None
    moderation: NotSupported = None
    access_programs: Ignored = None
    background_options: Ignored = None
    image: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
    client_metadata: Ignored = None
    bare_calls: bool | None = Field(
        None,
        description="Read a call that is written without the marks of the model's format, too. The default is true.",
    )
    reasoning_budget: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(
        None, description="Tokens of reasoning, at most; this server's own."
    )

    @property
    def stored(self) -> bool:
        """Whether the response is kept."""
        return self.store is not False

    @model_validator(mode="after")
    def _check_combinations(self) -> ResponseRequest:
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "only allowed when stream is true")
        if self.background and not self.stored:
            raise refused("background", "only allowed when store is true: it is how the client gets the response")
        return self
