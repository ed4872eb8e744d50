"""Parameters of Anthropic's requests as what a worker is asked for."""

from __future__ import annotations

from typing import Any

import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.anthropic_options import caches, conversation
from offgrid_llama.server.dialects.anthropic_schemas import CountRequest, MessageRequest
from offgrid_llama.worker.generation import Conversation, Sampling

ASKED = [{"role": "user", "content": "Hi."}]
TOOL = {"name": "look", "input_schema": {"type": "object", "properties": {}}}
FUNCTION = {"type": "function", "function": {"name": "look", "description": "", "parameters": TOOL["input_schema"]}}
MARK = {"type": "ephemeral"}


def asked(**said: Any) -> Conversation:
    return conversation(MessageRequest.model_validate({"messages": ASKED, "max_tokens": 5, **said}))


def test_what_each_parameter_says() -> None:
    """Each goes where a worker looks for it; what a request does not set is not set."""
    plain = asked()
    assert (plain.options.sampling, plain.options.stop, plain.options.max_tokens) == (Sampling(), [], 5)
    assert (plain.variables, plain.reasoning_budget, plain.continue_final_message) == ({}, None, False)
    found = asked(
        temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["a", "b"], lora=[{"id": 1, "scale": 0.5}]
    ).options
    assert (found.loras, plain.options.loras, asked(lora=[]).options.loras) == ({1: 0.5}, None, {})
    assert found.sampling == Sampling(temperature=0.5, top_p=0.9, top_k=7)
    assert found.stop == ["a", "b"]
    assert asked(messages=[*ASKED, {"role": "assistant", "content": "The"}]).continue_final_message
    assert conversation(CountRequest.model_validate({"messages": ASKED})).messages == ASKED


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, "auto", True), ({"type": "auto"}, "auto", True), ({"type": "none"}, "none", True),
        ({"type": "any", "disable_parallel_tool_use": True}, "required", False),
        ({"type": "tool", "name": "look"}, {"type": "function", "function": {"name": "look"}}, True),
    ],
)  # fmt: skip
def test_tools(choice: Any, expected: Any, parallel: bool) -> None:
    """Tools become functions, and the choice among them OpenAI's."""
    found = asked(tools=[TOOL], tool_choice=choice)
    assert (found.tools, found.tool_choice, found.parallel_tool_calls) == ([FUNCTION], expected, parallel)


def changing(*blocks: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a conversation in which each of these blocks is in a system message of its own."""
    changes = [{"role": "system", "content": [block]} for block in blocks]
    return [{"role": "user", "content": "a"}, *changes, {"role": "user", "content": "b"}]


def change(kind: str, name: str) -> dict[str, Any]:
    return {"type": f"tool_{kind}", "tool": {"type": "tool_reference", "name": name}}


def brings(**tool: Any) -> dict[str, Any]:
    return {"type": "tool_addition", "tool": {"type": "tool_definition", "definition": {**TOOL, **tool}}}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ([], ["look", "late"]), ([change("addition", "late")], ["look", "late"]), ([change("removal", "look")], ["late"]),
        ([change("removal", "look"), change("addition", "look")], ["late", "look"]),
        ([change("removal", "late"), change("removal", "late")], ["look"]),
        ([brings(name="new")], ["look", "late", "new"]), ([brings(name="new"), change("removal", "new")], ["look", "late"]),
    ],
)  # fmt: skip
def test_tools_that_change(changes: list[dict[str, Any]], names: list[str]) -> None:
    """The model has the tools that it has at the end; messages that do nothing else are not in its conversation."""
    found = asked(tools=[TOOL, {**TOOL, "name": "late", "defer_loading": True}], messages=changing(*changes))
    assert [tool["function"]["name"] for tool in found.tools or ()] == names
    assert [message["role"] for message in found.messages] == ["user", "user"]


def test_tools_of_messages_alone() -> None:
    """A tool that a message brings can be the one to call; the last one of its name counts; text beside it is told."""
    again = {"role": "system", "content": [brings(description="Better."), {"type": "text", "text": "Look again."}]}
    found = asked(messages=[*changing(brings()), again], tool_choice={"type": "tool", "name": "look"})
    assert [tool["function"]["description"] for tool in found.tools or ()] == ["Better."]
    assert [message["content"] for message in found.messages] == ["a", "b", "Look again."]


def test_tools_that_cannot_change() -> None:
    """A name that no tool has is told with its place; there is a limit for tools, and a call needs one."""
    with pytest.raises(ApiError, match="there is no tool 'other'") as error:
        asked(tools=[TOOL], messages=changing(change("removal", "look"), change("removal", "other")))
    assert (error.value.status, error.value.param) == (400, "messages.2.content.0.tool.name")
    with pytest.raises(ApiError, match="all tools are removed") as error:
        asked(tools=[TOOL], messages=changing(change("removal", "look")), tool_choice={"type": "any"})
    assert (error.value.status, error.value.param) == (400, "tool_choice")
    with pytest.raises(ApiError, match="more than 512 tools"):
        asked(tools=[TOOL], messages=changing(*(brings(name=f"tool{i}") for i in range(512))))


def test_a_third_partys_tool() -> None:
    """Fields that do not change the answer are accepted: examples, marks, how a client wants its calls streamed."""
    more = {
        "type": "custom", "strict": True, "defer_loading": True, "eager_input_streaming": None, "input_examples": [{}],
        "cache_control": MARK, "allowed_callers": ["direct", "code_execution_20250825"], "x-vendor": 1,
    }  # fmt: skip
    odd = {"$schema": "https://json-schema.org/draft/2020-12/schema", "anyOf": [{"required": ["a"]}]}
    found = asked(tools=[{**TOOL, **more, "description": "Looks.", "input_schema": odd}]).tools
    assert found == [{"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": odd}}]


@pytest.mark.parametrize(
    ("thinking", "enabled", "budget"),
    [
        ({"type": "enabled", "budget_tokens": 1024}, True, 1024), ({"type": "adaptive"}, True, None),
        ({"type": "adaptive", "display": "omitted"}, True, None), ({"type": "disabled"}, False, 0),
        ({"type": "between_tools"}, False, 0),
    ],
)  # fmt: skip
def test_thinking(thinking: Any, enabled: bool, budget: int | None) -> None:
    """It is a variable of the template, and a budget."""
    found = asked(thinking=thinking)
    assert (found.variables, found.reasoning_budget) == ({"enable_thinking": enabled}, budget)


def test_output() -> None:
    """A schema holds, from either of its places; an effort is one that templates know."""
    schema = {"type": "object", "properties": {}}
    shape = {"type": "json_schema", "schema": schema}
    for said in ({"output_config": {"format": shape}}, {"output_format": shape}):
        expected = {"type": "json_schema", "json_schema": {"schema": schema}}
        assert asked(**said).response_format == expected
    assert asked(output_config={"task_budget": {"type": "tokens", "total": 9}}).response_format is None
    efforts = [
        asked(output_config={"effort": effort}).variables for effort in ("low", "medium", "high", "xhigh", "max")
    ]
    assert efforts == [{"reasoning_effort": each} for each in ("low", "medium", "high", "high", "high")]


@pytest.mark.parametrize(
    "said",
    [
        {"cache_control": MARK}, {"tools": [{**TOOL, "cache_control": MARK}]},
        {"system": [{"type": "text", "text": "a", "cache_control": MARK}]},
        *(
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [use]}, {"role": "user",
              "content": [block]}]}
            for use in ({"type": "tool_use", "id": "a", "name": "look", "input": {}},)
            for block in (
                {"type": "text", "text": "a", "cache_control": MARK},
                {"type": "tool_result", "tool_use_id": "a", "cache_control": {**MARK, "ttl": "5m"}},
                {"type": "tool_result", "tool_use_id": "a", "content": [
                    {"type": "text", "text": "a", "cache_control": MARK}
                ]},
            )
        ),
    ],
)  # fmt: skip
def test_marks_of_a_cache(said: dict[str, Any]) -> None:
    """They are found wherever Anthropic's API takes them, and change nothing of the prompt."""
    body = {"messages": ASKED, "max_tokens": 5, **said}
    assert caches(MessageRequest.model_validate(body))
    without = MessageRequest.model_validate_json(
        MessageRequest.model_validate(body).model_dump_json(exclude_none=True, by_alias=True).replace(
            '"cache_control"', '"other"'
        ),
        context={"ignore_unknown": True},
    )  # fmt: skip
    assert not caches(without)
    assert conversation(without) == conversation(MessageRequest.model_validate(body))
