"""Requests of Anthropic's API as what a worker is asked for."""

from __future__ import annotations

from typing import Any

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.worker.generation import Conversation, Options, Sampling

from .anthropic_blocks import AssistantMessage, ToolResultBlock
from .anthropic_messages import blocks_of, offered_tools, openai_messages
from .anthropic_schemas import CountRequest, MessageRequest
from .anthropic_tools import Tool, ToolChoice
from .llama_server_options import scales

__all__ = ["caches", "conversation"]

_EFFORTS = {"xhigh": "high", "max": "high"}
"""Efforts that templates do not know, as those that they do."""
_NAMES = {
    "messages": "messages", "prompt": "messages", "text": "messages", "tools": "tools", "tool_choice": "tool_choice",
    "schema": "output_config.format", "response_format": "output_config.format", "grammar": "tools",
    "stop": "stop_sequences", "variables": "thinking", "reasoning_budget": "thinking.budget_tokens",
    **{name: name for name in ("max_tokens", "temperature", "top_p", "top_k")},
}  # fmt: skip
"""Where a request gives each argument of the library, for errors."""


def conversation(body: CountRequest) -> Conversation:
    """Return the conversation of a request. Raises ApiError."""
    variables, budget = _thinking(body)
    choice = body.tool_choice or ToolChoice(type="auto")
    tools = [_tool(tool) for tool in offered_tools(body.tools or (), body.messages)]
    if choice.type in ("any", "tool") and not tools:
        message = "tool_choice: a call is required, and all tools are removed"
        raise ApiError(400, message, code="invalid_value", param="tool_choice")
    shape = body.output_format or (body.output_config and body.output_config.format)
    return Conversation(
        options=_options(body) if isinstance(body, MessageRequest) else Options(), names=_NAMES,
        messages=openai_messages(body.system, body.messages),
        tools=tools,
        tool_choice=_choice(choice), parallel_tool_calls=not choice.disable_parallel_tool_use,
        response_format={"type": "json_schema", "json_schema": {"schema": shape.schema_}} if shape else None,
        variables=variables, reasoning_budget=budget,
        continue_final_message=isinstance(body.messages[-1], AssistantMessage),
    )  # fmt: skip


def caches(body: CountRequest) -> bool:
    """Return whether a request has a mark where its prompt may be cached."""
    marked: list[Any] = [body, *(body.tools or ()), *blocks_of(body.system)]
    for message in body.messages:
        for block in blocks_of(message.content):
            marked += [block, *(blocks_of(block.content) if isinstance(block, ToolResultBlock) else ())]
    return any(getattr(each, "cache_control", None) is not None for each in marked)


def _options(body: MessageRequest) -> Options:
    return Options(
        sampling=Sampling(temperature=body.temperature, top_p=body.top_p, top_k=body.top_k), max_tokens=body.max_tokens,
        stop=body.stop_sequences or [], loras=scales(body.lora),
    )  # fmt: skip


def _thinking(body: CountRequest) -> tuple[dict[str, Any], int | None]:
    """Return the variables of the template, and the reasoning budget."""
    variables: dict[str, Any] = {}
    effort = body.output_config and body.output_config.effort
    if effort:
        variables["reasoning_effort"] = _EFFORTS.get(effort, effort)
    if body.thinking is None:
        return variables, None
    variables["enable_thinking"] = body.thinking.type in ("enabled", "adaptive")
    return variables, body.thinking.budget_tokens if variables["enable_thinking"] else 0


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> str | dict[str, Any]:
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type
