"""Parameters of OpenAI's requests, and of those that resemble them, as what a worker is asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.worker.generation import Conversation, Options, Sampling

from .custom_tools import as_function, input_schema
from .further_options import set_further
from .structural_tags import TagFields

__all__ = ["conversation", "names", "options"]

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty", "repeat_penalty",
    "repeat_last_n",
)  # fmt: skip
N_SEEDS = 2**32 - 1
"""Seeds of llama.cpp. One more is its mark for a random seed."""
_FIELDS_OF_THEIR_OWN = frozenset(("messages", "add_generation_prompt", "self"))
"""The variables that a template gets in another way than by ``chat_template_kwargs``."""
_FORBIDDING_BIAS = -100
"""A logit bias that forbids its token, in OpenAI's API."""


def options(said: Mapping[str, Any], logprobs: int | None) -> Options:
    """Return what a request says about its answers.

    Args:
        said: the parameters that it sets.
        logprobs: how many most probable tokens are told at each place.
    """
    stop = said.get("stop") or ()
    found = Options(
        sampling=_sampling(said),
        max_tokens=said.get("max_completion_tokens") or said.get("max_tokens"), n=said.get("n") or 1,
        stop=[stop] if isinstance(stop, str) else list(stop), logprobs=logprobs,
    )  # fmt: skip
    if (prediction := said.get("prediction")) is not None:
        content = prediction["content"]
        found.prediction = content if isinstance(content, str) else "".join(part["text"] for part in content)
    set_further(found, said)
    return found


def _sampling(said: Mapping[str, Any]) -> Sampling:
    found = Sampling(**{name: said[name] for name in _SAMPLING if said.get(name) is not None})
    if said.get("logit_bias"):
        found.logit_bias = {int(token): _bias(float(bias)) for token, bias in said["logit_bias"].items()}
    if said.get("seed") is not None:
        found.seed = int(said["seed"]) % N_SEEDS  # OpenAI's may be negative, and have 64 bits
    return found


def _bias(bias: float) -> float:
    return -math.inf if bias <= _FORBIDDING_BIAS else bias


def conversation(said: Mapping[str, Any]) -> Conversation:
    """Return the conversation of a request, by the parameters that it sets. Raises ApiError."""
    variables, budget = _reasoning(said)
    tools, choice = _tools(said)
    must_call = choice == "required" or isinstance(choice, Mapping)
    if must_call and not tools:
        raise ApiError(
            400, "tool_choice: a call is required, and there are no tools", code="invalid_value", param="tool_choice"
        )
    parallel = said.get("parallel_tool_calls")
    return Conversation(
        options=options(said, (said.get("top_logprobs") or 0) if said.get("logprobs") else None),
        names=names(said, "messages"), messages=said["messages"],
        add_generation_prompt=said.get("add_generation_prompt") is not False, tools=list(tools),
        tool_choice=choice if tools else None, parallel_tool_calls=True if parallel is None else parallel,
        bare_calls=said.get("bare_calls") is not False, response_format=_response_format(said), variables=variables,
        reasoning_budget=budget, continue_final_message=bool(said.get("continue_final_message")),
    )  # fmt: skip


def _response_format(said: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the form of the answer; structural tags in the first of their forms."""
    given: dict[str, Any] | None = said.get("response_format")
    if given is None or given.get("type") != "structural_tag":
        return given
    return {
        "type": "structural_tag",
        **(TagFields.model_validate({name: value for name, value in given.items() if name != "type"}).tags() or {}),
    }


def _reasoning(said: Mapping[str, Any]) -> tuple[dict[str, Any], int | None]:
    """Return the variables of the template, and the reasoning budget."""
    variables = dict(said.get("chat_template_kwargs") or {})
    if not _FIELDS_OF_THEIR_OWN.isdisjoint(variables):
        name, param = min(_FIELDS_OF_THEIR_OWN & variables.keys()), "chat_template_kwargs"
        raise ApiError(400, f"{param}: {name!r} cannot be set", code="invalid_value", param=param)
    budget = said.get("reasoning_budget")
    effort = said.get("reasoning_effort")
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
    if effort == "none":
        variables.setdefault("enable_thinking", False)
        budget = 0 if budget is None else budget
    return variables, budget


def _tools(said: Mapping[str, Any]) -> tuple[Sequence[Any], Any]:
    """Return the tools that the model may call, and OpenAI's ``tool_choice`` among them. Raises ApiError."""
    choice, tools = said.get("tool_choice"), [_function(tool) for tool in said.get("tools") or ()]
    if not isinstance(choice, Mapping):
        return tools, choice
    if choice.get("type") != "allowed_tools":
        return tools, {"type": "function", "function": {"name": _name(choice)}}
    allowed = choice["allowed_tools"]
    kept = {_name(tool) for tool in allowed["tools"]}
    if unknown := sorted(kept.difference(map(_name, tools))):
        raise ApiError(400, f"tool_choice: there is no tool {unknown[0]!r}", code="invalid_value", param="tool_choice")
    return [tool for tool in tools if _name(tool) in kept], allowed.get("mode") or "auto"


def _name(tool: Mapping[str, Any]) -> str:
    """Return the name of a tool, or of one that a choice names."""
    return str((tool.get("function") or tool["custom"])["name"])


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a tool as a function, which a custom tool is for the model."""
    if tool.get("type") != "custom":
        return tool
    custom = tool["custom"]
    grammar = (custom.get("format") or {}).get("grammar") or {}
    schema = input_schema(grammar.get("syntax"), grammar.get("definition"))
    return as_function(custom["name"], custom.get("description"), schema)


def names(said: Mapping[str, Any], text: str) -> dict[str, str]:
    """Return where a request gives each argument of the library, for errors.

    Args:
        said: the parameters that it sets.
        text: the place of its text: "messages", "prompt" or "prompt[3]".
    """
    shape = next((name for name in ("response_format", "tools", "grammar") if name in said), "grammar")
    return {
        **{name: name for name in said}, "prompt": text, "text": text, "schema": shape, "grammar": shape,
        "variables": "chat_template_kwargs",
    }  # fmt: skip
