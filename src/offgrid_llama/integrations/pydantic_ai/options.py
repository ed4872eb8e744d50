"""Pydantic AI's settings and request parameters as the options of ``Engine.chat``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic_ai.exceptions import UserError
from pydantic_ai.settings import ModelSettings

from offgrid_llama.errors import GrammarError
from offgrid_llama.sampling.grammar.json_schema import read_loosely, read_schema

__all__ = ["PREFIX", "OffgridLlamaModelSettings", "options_of"]

_LOG = logging.getLogger("offgrid_llama.chat")

PREFIX = "offgrid_llama_"
"""What the names of settings begin with that only these models have."""

_SAME = (
    "max_tokens", "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "logit_bias",
    "parallel_tool_calls",
)  # fmt: skip
"""Settings of all models that an engine knows by the same names."""

_EFFORTS = {"minimal": "low", "xhigh": "high", "max": "high"}
"""Efforts that templates do not know, as those that they do."""


class OffgridLlamaModelSettings(ModelSettings, total=False):  # type: ignore[misc, call-arg]  # untyped for mypy
    """The settings of a request. Besides Pydantic AI's own, each ``offgrid_llama_NAME`` is an option NAME.

    NAME is any option of ``Engine.chat`` or field of SamplingParams; the usual ones are here.
    """

    offgrid_llama_min_p: float
    """Leave out tokens that are less probable than this share of the most probable one."""
    offgrid_llama_repeat_penalty: float
    """Divide the logits of tokens that were there before by this; 1 is none."""
    offgrid_llama_reasoning_budget: int
    """The most tokens of reasoning, after which the model must answer; 0 is none."""
    offgrid_llama_variables: Mapping[str, Any]
    """Further variables of the chat template, such as ``{"enable_thinking": False}``."""


def options_of(settings: Mapping[str, Any], params: Any) -> dict[str, Any]:
    """Return the options of a request, as ``asking.submitted`` takes them.

    Args:
        settings: ModelSettings. Those of other providers, by the prefixes of their names, are left out.
        params: the ModelRequestParameters, as ``Model.prepare_request`` returns them.

    Raises UserError for a ``tool_choice`` that no tool of the request fits, and for several answers to one request.
    """
    own = {name[len(PREFIX) :]: value for name, value in settings.items() if name.startswith(PREFIX)}
    if own.get("n", 1) != 1:
        raise UserError(f"{PREFIX}n: a request has one answer; ask several times at once for more")
    options = {name: settings[name] for name in _SAME if name in settings}
    if settings.get("stop_sequences"):
        options["stop"] = settings["stop_sequences"]
    options |= _reasoning(getattr(params, "thinking", None), own.pop("variables", None) or {})
    return {**_tools(settings, params), **_response_format(params), **options, **own}


def _reasoning(thinking: bool | str | None, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for a ``thinking`` setting; the user's own variables of the template go before."""
    if thinking is None:
        return {"variables": variables} if variables else {}
    if thinking is False:
        off = {"enable_thinking": False, "reasoning_effort": "none"}
        return {"reasoning_budget": 0, "variables": {**off, **variables}}
    effort = {} if thinking is True else {"reasoning_effort": _EFFORTS.get(thinking, thinking)}
    return {"variables": {"enable_thinking": True, **effort, **variables}}


def _response_format(params: Any) -> dict[str, Any]:
    """Return the format of an answer that is JSON, held to its schema; models may indent what only the prompt asks for."""
    answer = params.output_object
    if answer is None or params.output_mode not in ("native", "prompted"):
        return {}
    schema = json.loads(_held(json.dumps(answer.json_schema)))
    if params.output_mode == "prompted":
        return {"response_format": {"type": "json_object", "schema": schema}}
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": answer.name or "answer", "schema": schema}}
    }


@lru_cache(maxsize=256)
def _held(schema: str) -> str:
    """Return the rules of an output's schema that a grammar can hold, both as JSON. Pydantic checks the others."""
    try:
        read_schema(schema)
    except GrammarError:
        found = read_loosely(schema, kind="object")
        _LOG.warning("an output is not held to all of its schema: %s", "; ".join(found.left_out))
        return json.dumps(found.document)
    return schema


def _tools(settings: Mapping[str, Any], params: Any) -> dict[str, Any]:
    """Return the tools of a request, and which of them may or must be called."""
    declared = getattr(params, "declared_tool_defs", None)
    tools: Mapping[str, Any] = params.tool_defs if declared is None else declared
    asked, names = _choice(settings.get("tool_choice"), params, tools)
    allowed = [name for name in tools if name in names]
    if not allowed:
        return {}
    outputs = {tool.name for tool in params.output_tools}
    found: dict[str, Any] = {"tool_choice": asked}
    if asked == "required" and len(allowed) == 1:  # so the prompt, with all tools, begins as those of other requests
        allowed, found["tool_choice"] = [*tools], allowed[0]
    if outputs.issuperset(names):  # one output ends the run
        found["parallel_tool_calls"] = False
    found["tools"] = [_described(tools[name]) for name in allowed]
    return found


def _choice(chosen: Any, params: Any, tools: Mapping[str, Any]) -> tuple[str, set[str]]:
    """Return "auto" or "required", and the names of the tools that may be called."""
    outputs = {tool.name for tool in params.output_tools}
    free = "auto" if params.allow_text_output else "required"
    if chosen is None or chosen == "auto":
        return free, {*tools}
    if chosen in ("none", []):
        return free, outputs
    if chosen == "required":
        return "required", _known("tool_choice is 'required', but", tools.keys() - outputs, tools)
    if isinstance(chosen, list):
        return "required", _known(f"tool_choice: none of {chosen} can be called:", {*chosen}, tools)
    listed = {*chosen.function_tools} | outputs
    if not listed:
        return free, set()
    return free, _known(f"tool_choice: none of {chosen.function_tools} can be called:", listed, tools)


def _known(problem: str, names: set[str], tools: Mapping[str, Any]) -> set[str]:
    """Return those of some names that are of tools; raise UserError where none is."""
    found = names & tools.keys()
    if not found:
        raise UserError(f"{problem} the functions and outputs of this request are: {', '.join(tools) or 'none'}")
    return found


def _described(tool: Any) -> dict[str, Any]:
    described = {
        "name": tool.name, "description": tool.description or "", "parameters": tool.parameters_json_schema,
    }  # fmt: skip
    return {"type": "function", "function": described}
