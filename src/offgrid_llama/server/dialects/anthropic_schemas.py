"""Schemas: the bodies of requests of Anthropic's API, with this server's limits.

An unknown parameter is refused, unless the context of the validation has ``ignore_unknown``. Parameters that mean nothing
here (``IGNORED``) are accepted without effect. Those whose effect a client would miss (``UNSUPPORTED``) are refused by name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from offgrid_llama.server.strict import Strict, refused

from .anthropic_blocks import Message, SystemPrompt, changes_of_tools
from .anthropic_tools import MAX_TOOLS, CacheControl, Tool, ToolChoice
from .further_schemas import Adapters

__all__ = ["IGNORED", "UNSUPPORTED", "CountRequest", "MessageRequest", "Thinking"]

MAX_MESSAGES = 4096
MAX_STOPS = 16

IGNORED = (
    "metadata", "service_tier", "speed", "inference_geo", "betas", "diagnostics", "fallbacks", "fallback_credit_token",
    "billing_policy", "user_profile_id",
)  # fmt: skip
UNSUPPORTED = ("container", "mcp_servers", "thread", "compaction")

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Thinking(Strict):
    """Whether the model thinks before it answers, and how much."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    budget_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    display: Literal["summarized", "omitted", "updates"] | None = Field(
        None, description='"omitted" leaves the text out. The signature has it then, for the next request.'
    )
    block_binding: Any = None

    @model_validator(mode="after")
    def _check_budget(self) -> Thinking:
        if (self.type == "enabled") != (self.budget_tokens is not None):
            raise refused("budget_tokens", "required by the type enabled, and by no other")
        return self


class OutputFormat(Strict):
    """A schema that the answer must match."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    """How much effort the model makes, and the form of the answer."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None
    task_budget: Any = None


class CountRequest(Strict):
    """A request of ``/v1/messages/count_tokens``: what a prompt is made of."""

    model: Annotated[str, Field(max_length=256)] | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    system: SystemPrompt | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    cache_control: CacheControl | None = None
    context_management: dict[str, Any] | None = Field(None, description="No edit is ever applied.")
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    speed: str | None = None
    inference_geo: str | None = None
    betas: Any = None
    diagnostics: Any = None
    fallbacks: Any = None
    fallback_credit_token: Any = None
    billing_policy: Any = None
    user_profile_id: Any = None
    container: Any = None
    mcp_servers: Any = None
    thread: Any = None
    compaction: Any = None

    @model_validator(mode="after")
    def _check_combinations(self) -> CountRequest:
        for name in UNSUPPORTED:
            if getattr(self, name):
                raise refused(name, "not supported here")
        must_call = self.tool_choice is not None and self.tool_choice.type in ("any", "tool")
        if must_call and not self.tools and not any(map(changes_of_tools, self.messages)):
            raise refused("tool_choice", "a call is required, and there are no tools")
        if self.output_format is not None and self.output_config is not None and self.output_config.format is not None:
            raise refused("output_format", "not allowed with output_config.format")
        return self


class MessageRequest(CountRequest):
    """A request of ``/v1/messages``."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)]
    stream: bool | None = None
    stop_sequences: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=MAX_STOPS, fail_fast=True)
        ]
        | None
    ) = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    lora: Adapters | None = Field(None, description="llama.cpp's: the model's adapters to use, by number; [] is none.")
