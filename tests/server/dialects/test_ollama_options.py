"""Options and conversations of Ollama's requests, as what a worker is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from offgrid_llama.server.dialects.ollama_options import (
    constraint,
    messages_of,
    names,
    options_of,
    response_format,
    thinking,
)
from offgrid_llama.server.dialects.ollama_schemas import ChatBody, GenerateBody, OllamaMessage
from offgrid_llama.worker.generation import Constraint, Options, Sampling


def options(**said: Any) -> Options:
    return options_of(ChatBody.model_validate({"model": "m", "options": said}))


def test_every_option() -> None:
    """Each that has an effect is passed on by its name here."""
    said = {
        "num_predict": 7, "num_keep": 5, "seed": 3, "temperature": 0.5, "top_k": 9, "top_p": 0.8, "min_p": 0.1,
        "typical_p": 0.7, "repeat_last_n": 33, "repeat_penalty": 1.2, "presence_penalty": 1.5,
        "frequency_penalty": -1.0, "mirostat": 2, "mirostat_tau": 0.8, "mirostat_eta": 0.6, "stop": ["\n", "user:"],
        "lora": [{"id": 1, "scale": 0.5}],
    }  # fmt: skip
    sampling = Sampling(
        seed=3, temperature=0.5, top_k=9, top_p=0.8, min_p=0.1, typical_p=0.7, repeat_last_n=33, repeat_penalty=1.2,
        presence_penalty=1.5, frequency_penalty=-1.0, mirostat=2, mirostat_tau=0.8, mirostat_eta=0.6,
    )  # fmt: skip
    assert options(**said) == Options(sampling=sampling, max_tokens=7, n_keep=5, stop=["\n", "user:"], loras={1: 0.5})
    assert options() == Options()


@pytest.mark.parametrize(
    ("name", "said", "becomes"),
    [
        ("temperature", -1, 0.0), ("top_k", -1, 0), ("top_p", 1.5, 1.0), ("top_p", -1, 0.0), ("min_p", -1, 0.0),
        ("typical_p", 2, 1.0), ("repeat_last_n", -1, -1), ("repeat_last_n", 0, 0), ("seed", -1, None), ("seed", 0, 0),
        ("seed", 2**40, 2**40 % (2**32 - 1)), ("mirostat", 0, 0),
    ],
)  # fmt: skip
def test_what_is_out_of_range(name: str, said: float, becomes: float | None) -> None:
    """It has the effect that it has in llama.cpp."""
    assert getattr(options(**{name: said}).sampling, name) == becomes
    assert 0 < (options(typical_p=0).sampling.typical_p or 0) < 1e-3


@pytest.mark.parametrize(("said", "becomes"), [(5, 5), (0, None), (-1, None), (-2, None)])
def test_lengths(said: int, becomes: int | None) -> None:
    """Without a limit, and up to the end of the context, are the same."""
    assert options(num_predict=said).max_tokens == becomes
    assert options(num_keep=said).n_keep == max(said, -1)


def test_logprobs() -> None:
    """How many of the most probable tokens are told counts where logprobs are wanted."""
    for logprobs, top, found in ((False, 3, None), (True, 0, 0), (True, 3, 3)):
        assert options_of(ChatBody(model="m", logprobs=logprobs, top_logprobs=top)).logprobs == found


def test_formats() -> None:
    """The word json is any object, and a schema is itself, in a conversation and in a text."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    told: list[Any] = []
    for said in (None, "", "json", schema):
        body = GenerateBody.model_validate({"model": "m", "format": said})
        told.append((response_format(body), constraint(body)))
    assert told[:3] == [(None, None), (None, None), ({"type": "json_object"}, Constraint("json_object", {}))]
    assert told[3] == ({"type": "json_schema", "json_schema": {"schema": schema}}, Constraint("json_schema", schema))


@pytest.mark.parametrize(
    ("think", "variables", "budget"),
    [
        (None, {}, None), (False, {"enable_thinking": False, "reasoning_effort": "none"}, 0),
        (True, {"enable_thinking": True}, None), ("low", {"enable_thinking": True, "reasoning_effort": "low"}, None),
    ],
)  # fmt: skip
def test_thinking(think: Any, variables: dict[str, Any], budget: int | None) -> None:
    """It is turned on and off by the variables that templates know, and off by a budget, too."""
    assert thinking(ChatBody(model="m", think=think)) == (variables, budget)


def test_errors_name_what_the_client_wrote() -> None:
    """An argument of the library is told by the option that it came from."""
    found = names(GenerateBody(model="m"))
    assert (found["top_k"], found["schema"], found["text"], found["before"]) == (
        "options.top_k", "format", "prompt", "context",
    )  # fmt: skip
    assert names(ChatBody(model="m"))["text"] == "messages"


def said(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    return messages_of([OllamaMessage.model_validate(message) for message in messages])


def call(name: str, **more: Any) -> dict[str, Any]:
    return {**more, "function": {"name": name, "arguments": {"a": 1}}}


def test_messages() -> None:
    """Roles are lower case, and what was thought goes to the template."""
    assert said({"role": "User", "content": "a"}, {"role": "assistant", "content": "b", "thinking": "c"}) == [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"},
    ]  # fmt: skip


def test_results_find_their_calls() -> None:
    """Ollama's results name their tool, newer ones the id; each belongs to the first call of that tool without a result."""
    found = said(
        {"role": "assistant", "tool_calls": [call("f"), call("g", id="mine"), call("f")]},
        {"role": "tool", "content": "1", "tool_name": "g"},
        {"role": "tool", "content": "2", "tool_name": "f"},
        {"role": "tool", "content": "3"},
        {"role": "tool", "content": "4", "tool_name": "h"},
        {"role": "assistant", "tool_calls": [call("g"), call("f")]},
        {"role": "tool", "content": "5", "tool_name": "f", "tool_call_id": "of another program"},
    )
    ids = [each["id"] for each in found[0]["tool_calls"]]
    assert ids == ["000000000", "mine", "000000002"]
    assert found[0]["tool_calls"][1] == {
        "id": "mine", "type": "function", "function": {"name": "g", "arguments": {"a": 1}}
    }  # fmt: skip
    results = [(each.get("tool_call_id"), each.get("name")) for each in found if each["role"] == "tool"]
    assert results == [("mine", "g"), (ids[0], "f"), (ids[2], "f"), (None, "h"), ("000000004", "f")]
