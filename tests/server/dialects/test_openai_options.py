"""Parameters of OpenAI's requests, and what a worker is asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.openai_options import conversation, options
from offgrid_llama.worker.generation import Constraint, Conversation, Options, Sampling

TOOLS: list[Any] = [{"type": "function", "function": {"name": name}} for name in ("a", "b")]


def read(**said: Any) -> Options:
    return options(said, None)


def chat(**said: Any) -> Conversation:
    return conversation({"messages": [], **said})


def test_lengths() -> None:
    """A length has two names."""
    assert [read(**said).max_tokens for said in ({}, {"max_tokens": 7})] == [None, 7]
    assert read(max_tokens=7, max_completion_tokens=8).max_tokens == 8
    assert (read().n, read(n=3).n) == (1, 3)


def test_stops() -> None:
    """One stop string or several."""
    assert [read(stop=stop).stop for stop in (None, "a", ["a", "b"])] == [[], ["a"], ["a", "b"]]


def test_sampling() -> None:
    """Only what the request sets; a bias of -100 forbids."""
    assert read(seed=None, top_k=None).sampling == Sampling()
    assert read(top_k=5, temperature=0).sampling == Sampling(top_k=5, temperature=0)
    biases = read(logit_bias={"1": -100, "2": 3, "3": -99.5}).sampling.logit_bias
    assert biases == {1: -math.inf, 2: 3, 3: -99.5}
    assert read(grammar='root ::= "a"').constraint == Constraint("gbnf", 'root ::= "a"')


@pytest.mark.parametrize("seed", [0, 7, -1, 2**32 - 1, 2**63 - 1, -(2**63)])
def test_seeds(seed: int) -> None:
    """Each of OpenAI's seeds is one of llama.cpp's, and none is its mark for a random one."""
    found = read(seed=seed).sampling.seed
    assert found is not None
    assert 0 <= found < 2**32 - 1
    assert found == read(seed=seed).sampling.seed


def test_logprobs() -> None:
    """Logprobs are told where they are asked for, by default those of the tokens alone."""
    found = [chat(**said).options.logprobs for said in ({}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3})]
    assert found == [None, 0, 3]


def test_reasoning() -> None:
    """An effort goes to the template; "none" forbids reasoning, unless the request says otherwise itself."""
    assert chat().variables == {}
    high = chat(reasoning_effort="high", chat_template_kwargs={"x": 1})
    assert (high.variables, high.reasoning_budget) == ({"x": 1, "reasoning_effort": "high"}, None)
    none = chat(reasoning_effort="none")
    assert none.variables == {"reasoning_effort": "none", "enable_thinking": False}
    assert none.reasoning_budget == 0
    own = chat(reasoning_effort="none", reasoning_budget=5, chat_template_kwargs={"enable_thinking": True})
    assert own.variables["enable_thinking"] is True
    assert own.reasoning_budget == 5


def test_tools() -> None:
    """A choice counts where there are tools; "allowed_tools" leaves some of them out."""
    assert (chat(tool_choice="auto").tools, chat(tool_choice="none").tool_choice) == ([], None)
    assert chat(tools=TOOLS, tool_choice="required").tool_choice == "required"
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": TOOLS[1:]}}
    found = chat(tools=TOOLS, tool_choice=allowed, parallel_tool_calls=False)
    assert (found.tools, found.tool_choice, found.parallel_tool_calls) == (TOOLS[1:], "required", False)
    assert chat(tools=TOOLS).parallel_tool_calls is True
    assert [chat(bare_calls=each).bare_calls for each in (None, True, False)] == [True, True, False]


@pytest.mark.parametrize(
    ("tools", "choice", "told"),
    [
        ([], "required", "a call is required"), ([], TOOLS[0], "a call is required"),
        (TOOLS, {"mode": "auto", "tools": [{"function": {"name": "h"}}]}, "no tool 'h'"),
        (TOOLS, {"mode": "required", "tools": []}, "a call is required"),
        ([], {"mode": "required", "tools": TOOLS[:1]}, "no tool"),
    ],
)  # fmt: skip
def test_a_call_that_cannot_be(tools: list[Any], choice: Any, told: str) -> None:
    """A call that is required, of a tool that is not there, is refused: a free answer would not be what was asked for."""
    if isinstance(choice, dict) and "mode" in choice:
        choice = {"type": "allowed_tools", "allowed_tools": choice}
    with pytest.raises(ApiError, match=f"tool_choice: .*{told}") as refused:
        chat(tools=tools, tool_choice=choice)
    assert refused.value.param == "tool_choice"


@pytest.mark.parametrize("name", ["messages", "add_generation_prompt", "self"])
def test_variables_that_have_a_field_of_their_own(name: str) -> None:
    """They are refused by the name of the client's field, not by an error of Python about arguments."""
    with pytest.raises(ApiError, match=f"chat_template_kwargs: '{name}'") as refused:
        chat(chat_template_kwargs={name: 1})
    assert refused.value.param == "chat_template_kwargs"
