"""The generation tasks of a worker, and the arguments that the engine gets for them."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import msgspec
import pytest

from offgrid_llama.sampling.grammar.grammar import Grammar
from offgrid_llama.sampling.sampling_params import SamplingParams
from offgrid_llama.tasks.request_options import RequestOptions
from offgrid_llama.worker.arguments import chat_arguments, request_arguments
from offgrid_llama.worker.generation import Constraint, Conversation, Options, Sampling

TOOLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "a"}}]


def read(options: Options, defaults: dict[str, Any] | None = None) -> RequestOptions:
    """Return what the engine makes of options, whose sequence has 100 positions, after their way through a frame."""
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(options), type=Options)
    return RequestOptions.read("submit", request_arguments(sent, 100, defaults or {}))


def test_every_parameter_can_be_sent() -> None:
    """Sampling has the fields of SamplingParams, by the same names; the grammar is a constraint."""
    assert {each.name for each in dataclasses.fields(SamplingParams)} - {"grammar"} == set(Sampling.__struct_fields__)


def test_lengths() -> None:
    """An answer is as long as was asked for, and never longer than its sequence."""
    assert [read(Options(max_tokens=n)).max_tokens for n in (None, 7, 101)] == [100, 7, 100]


def test_sampling() -> None:
    """The request's word counts before the model's settings, and those before the defaults."""
    assert read(Options()).params == SamplingParams()
    found = read(Options(sampling=Sampling(top_k=5, samplers=["top_k"])), {"temperature": 0.5, "top_k": 3}).params
    assert (found.temperature, found.top_k, found.samplers) == (0.5, 5, ("top_k",))
    options = read(Options(n=3, stop=["a"], logprobs=0, n_keep=4, priority=-1))
    assert (options.n, options.stop, options.logprobs, options.n_keep, options.priority) == (3, ("a",), 0, 4, -1)


def test_what_depends_on_the_sequence() -> None:
    """A shift leaves room, and is left out where there is none; penalties can be for the whole sequence."""
    assert [read(Options(n_keep=n)).n_keep for n in (None, -1, 4, 98, 99)] == [None, -1, 4, 98, 98]
    assert request_arguments(Options(n_keep=4), 100, {}, can_shift=False)["n_keep"] is None
    assert [read(Options(sampling=Sampling(repeat_last_n=n))).params.repeat_last_n for n in (-1, 0, 9)] == [100, 0, 9]


def test_any_object() -> None:
    """It may have white space, which models are used to."""
    grammar = read(Options(constraint=Constraint("json_object", {}))).params.grammar
    compact, free = (Grammar.json_schema({"type": "object"}, whitespace=whitespace) for whitespace in (False, True))
    assert pickle.dumps(grammar) == pickle.dumps(free) != pickle.dumps(compact)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("gbnf", 'root ::= "a"'), ("regex", "a+"), ("lark", 'start: "a"'), ("choices", ["a", "b"]),
        ("json_schema", {"type": "integer"}),
    ],
)  # fmt: skip
def test_constraints(kind: Any, value: Any) -> None:
    """Each kind of constraint becomes a grammar."""
    assert read(Options(constraint=Constraint(kind, value))).params.grammar is not None


def test_tools() -> None:
    """A choice counts where there are tools."""
    without = chat_arguments(Conversation(messages=[], tool_choice="required"))
    assert (without["tools"], without["tool_choice"]) == (None, None)
    found = chat_arguments(Conversation(messages=[], tools=TOOLS, tool_choice="required", parallel_tool_calls=False))
    assert (found["tools"], found["tool_choice"], found["parallel_tool_calls"]) == (TOOLS, "required", False)
