"""Tools of Anthropic's API, and the choice among them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from offgrid_llama.server.strict import Described, Strict, refused

__all__ = ["MAX_TOOLS", "CacheControl", "Tool", "ToolChoice"]

MAX_TOOLS = 512
"""Tools of a request, and tools that a model has at the end of a conversation, at most."""


class CacheControl(Strict):
    """A mark where a prompt may be cached. Here all of it is, with and without marks."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class Tool(Described):
    """A tool that the client carries out."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]
    description: str | None = None
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    cache_control: CacheControl | None = None
    strict: bool | None = None
    defer_loading: bool | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[Any] | None = None
    allowed_callers: list[Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_kind(cls, given: Any) -> Any:
        kind = given.get("type") if isinstance(given, dict) else None
        if isinstance(kind, str) and kind != "custom":
            raise refused("type", f"{kind[:40]!r} is not supported here, only tools with an input_schema")
        return given

    @model_validator(mode="after")
    def _check_callers(self) -> Tool:
        if self.allowed_callers is not None and "direct" not in self.allowed_callers:
            raise refused("allowed_callers", "only direct calls are supported")
        return self


class ToolChoice(Strict):
    """Whether the model may call tools, must call one, or which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _check_name(self) -> ToolChoice:
        if (self.type == "tool") != (self.name is not None):
            raise refused("name", "required by the type tool, and by no other")
        return self
