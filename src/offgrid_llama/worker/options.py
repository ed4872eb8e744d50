"""What OpenAI's clients say of a request, as the engine takes it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..grammar import Grammar
from ..sampling_params import SamplingParams

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["chat_options", "request_options"]

_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "frequency_penalty", "presence_penalty", "repeat_penalty",
    "repeat_last_n",
)  # fmt: skip
_SEEDS = 2**32 - 1


def request_options(request: Mapping[str, Any], engine: Engine, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``Engine.submit`` that a request asks for.

    Args:
        request: the parameters of OpenAI's completions, without what was not said; and ``top_k``, ``min_p``, ``typical_p``,
            ``repeat_penalty``, ``repeat_last_n`` and ``grammar`` (GBNF).
        engine: who answers. Where the request does not say how long, the answer may be as long as its sequence.
        defaults: SamplingParams of this model, where the request says nothing.
    """
    said = {**defaults, **{name: request[name] for name in _SAMPLING if request.get(name) is not None}}
    if request.get("logit_bias"):
        bias = {int(token): float(value) for token, value in request["logit_bias"].items()}
        said["logit_bias"] = {token: -math.inf if value <= -100 else value for token, value in bias.items()}
    if request.get("seed") is not None:
        said["seed"] = int(request["seed"]) % _SEEDS  # OpenAI's may be negative, and have 64 bits
    if request.get("grammar"):
        said["grammar"] = Grammar.gbnf(request["grammar"])
    most = request.get("max_completion_tokens") or request.get("max_tokens") or engine.n_ctx_seq
    stop = request.get("stop") or ()
    return {
        "sampling": SamplingParams(**said), "max_tokens": min(most, engine.n_ctx_seq), "n": request.get("n") or 1,
        "stop": (stop,) if isinstance(stop, str) else tuple(stop),
    }  # fmt: skip


def chat_options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of ``Engine.chat`` that a request asks for, besides those of ``Engine.submit``."""
    variables = dict(request.get("chat_template_kwargs") or {})
    budget = request.get("reasoning_budget")
    effort = request.get("reasoning_effort")
    if effort is not None:
        variables.setdefault("reasoning_effort", effort)
        if effort == "none":
            variables.setdefault("enable_thinking", False)
            budget = 0 if budget is None else budget
    choice = request.get("tool_choice")
    tools = request.get("tools")
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice["allowed_tools"]
        names = {each["function"]["name"] for each in allowed["tools"]}
        tools = [tool for tool in tools or () if tool["function"]["name"] in names]
        choice = allowed.get("mode", "auto")
    parallel = request.get("parallel_tool_calls")
    return {
        "tools": tools or None, "tool_choice": choice if tools else None,
        "parallel_tool_calls": True if parallel is None else parallel, "response_format": request.get("response_format"),
        "variables": variables, "reasoning_budget": budget,
        "continue_final_message": bool(request.get("continue_final_message")),
    }  # fmt: skip
