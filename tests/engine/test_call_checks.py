"""Calls that break a rule which no grammar holds: they are given and warned of; functions are not called for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import offgrid_llama as og
from helpers.golden_chats import TEMPLATES
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.chat.tools.tool import Tool, ToolCall
from offgrid_llama.engine.tool_calls import results_async
from offgrid_llama.sampling.grammar.schema_check import CheckTime

ASKED = [{"role": "user", "content": "Count."}]
PARAMETERS = {"type": "object", "properties": {"n": {"enum": [3], "not": {"const": 3}}}, "required": ["n"]}
"""The grammar allows the one value that the rule which it cannot hold forbids."""
COUNT = Tool("count", "Count.", PARAMETERS)
FORCED: dict[str, Any] = {"tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 60, "temperature": 0}
NOT_HELD = "tool count: not held: /properties/n/not: 'not' is not supported"
BROKEN = "/n: not: 3 should not be valid under {'const': 3}"


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_seq_max=4, n_ctx=8192) as engine:
        yield engine


@pytest.fixture(params=["", "Qwen-Qwen2.5-7B-Instruct.jinja", "Qwen3-Coder.jinja", "GLM-4.6.jinja"])
def template(request: pytest.FixtureRequest) -> ChatTemplate | None:
    """Return no template, which is the model's own, and ones that write calls as JSON, and between tags."""
    if not request.param:
        return None
    return ChatTemplate((TEMPLATES / request.param).read_text(encoding="utf-8"), name=request.param)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the threads in which calls are checked."""
    found: list[str] = []
    check = Tool.broken_rule

    def noted(tool: Tool, arguments: Mapping[str, Any], *allowed: Any) -> str:
        found.append(threading.current_thread().name)
        return check(tool, arguments, *allowed)

    monkeypatch.setattr(Tool, "broken_rule", noted)
    return found


def test_a_call_is_given_and_warned_of(engine: og.Engine, template: ChatTemplate | None) -> None:
    """Whole and streamed, the call is there, and the warnings tell its tool, its id, the place and the rule."""
    reply = engine.chat(ASKED, tools=[COUNT], template=template, **FORCED)
    assert reply.warnings == [NOT_HELD]
    (call,) = reply.result().tool_calls
    assert call.parsed == {"n": 3}
    told = [NOT_HELD, f"tool count: call {call.id} is not valid: {BROKEN}"]
    assert reply.warnings == told
    *others, last = reply
    assert last.warnings == told
    assert not any(delta.warnings for delta in others)


def test_calls_that_keep_the_rules(engine: og.Engine) -> None:
    """Nothing but the rules that are not held is told of them, and nothing at all of tools whose rules are held."""
    kept = Tool(
        "count", "", {"type": "object", "properties": {"n": {"enum": [4], "not": {"const": 3}}}, "required": ["n"]}
    )
    reply = engine.chat(ASKED, tools=[kept], **FORCED).result()
    assert reply.tool_calls[0].parsed == {"n": 4}
    assert reply.warnings == [NOT_HELD]
    held = Tool("count", "", {"type": "object", "properties": {"n": {"enum": [4]}}, "required": ["n"]})
    assert engine.chat(ASKED, tools=[held], **FORCED).result().warnings == []


def test_a_call_that_is_cut_off(engine: og.Engine) -> None:
    """It is not checked: what it would have become is not known."""
    reply = engine.chat(ASKED, tools=[COUNT], **{**FORCED, "max_tokens": 14}).result()
    assert reply.finish_reason is og.FinishReason.LENGTH
    assert reply.tool_calls
    assert reply.warnings == [NOT_HELD]


def test_several_messages(engine: og.Engine) -> None:
    """Each message's last delta has the warnings of its own calls; the whole has all."""
    reply = engine.chat(ASKED, tools=[COUNT], n=3, **{**FORCED, "temperature": 1.0})
    told = {delta.index: list(delta.warnings) for delta in reply if delta.finish_reason}
    ids = [reply.message(index)["tool_calls"][0]["id"] for index in range(3)]
    lines = [f"tool count: call {id_} is not valid: {BROKEN}" for id_ in ids]
    assert told == {index: [NOT_HELD, lines[index]] for index in range(3)}
    assert reply.warnings == [NOT_HELD, *lines]


def test_functions_are_not_called(engine: og.Engine, template: ChatTemplate | None) -> None:
    """``Chat.run`` tells the model which rule the arguments break, at which place, and goes on."""
    seen: list[int] = []

    def count(n: int) -> int:
        seen.append(n)
        return n

    chat = og.Chat(engine, tools=[Tool("count", "Count.", PARAMETERS, count)], template=template, **FORCED)
    reply = chat.run("Count.", max_turns=2)
    assert reply.done
    assert seen == []
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["content"] == f"ValueError: the arguments of count break a rule of its schema, at {BROKEN}"


def counting(seen: list[int]) -> list[Callable[[int], Any]]:
    """Return two functions, one of which is async."""

    def count(n: int) -> str:
        seen.append(n)
        return "counted"

    async def count_later(n: int) -> str:
        seen.append(n)
        return "counted"

    return [count, count_later]


@pytest.mark.parametrize("which", [0, 1])
def test_functions_are_not_called_on_an_event_loop(engine: og.Engine, threads: list[str], which: int) -> None:
    """``Chat.run_async`` does the same for async functions and others, and no check is made on the loop's thread."""
    seen: list[int] = []
    chat = og.Chat(engine, tools=[Tool("count", "Count.", PARAMETERS, counting(seen)[which])], **FORCED)
    asyncio.run(chat.run_async("Count.", max_turns=2))
    assert seen == []
    assert chat.messages[2]["content"] == f"ValueError: the arguments of count break a rule of its schema, at {BROKEN}"
    assert len(threads) == 2
    assert threading.current_thread().name not in threads


def test_async_functions_whose_calls_are_valid() -> None:
    """An async function whose calls are checked is called on the loop."""
    seen: list[int] = []
    tool = Tool("count", "", {"type": "object", "properties": {"n": {"not": {"const": 3}}}}, counting(seen)[1])
    calls = [ToolCall(str(n), "count", f'{{"n": {n}}}') for n in (3, 4, 5)]
    found = asyncio.run(results_async(calls, [tool]))
    assert found[0].startswith("ValueError: the arguments of count break a rule")
    assert found[1:] == ["counted", "counted"]
    assert sorted(seen) == [4, 5]


def test_checks_leave_the_event_loop_free(engine: og.Engine, threads: list[str]) -> None:
    """An answer that is awaited, or streamed, is checked once, in a thread; then its warnings are there."""

    async def main() -> list[list[str]]:
        reply = await engine.chat(ASKED, tools=[COUNT], **FORCED)
        streamed = engine.chat(ASKED, tools=[COUNT], **FORCED)
        last = [delta async for delta in streamed][-1]
        return [reply.warnings, reply.warnings, list(last.warnings), streamed.warnings]

    for told in asyncio.run(main()):
        assert len(told) == 2
        assert told[1].endswith(BROKEN)
    assert len(threads) == 2
    assert threading.current_thread().name not in threads
    assert not any("Engine" in name for name in threads)


def test_calls_of_one_answer_share_their_time(engine: og.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All checks of one answer together take a second of computing at most."""
    found: list[CheckTime] = []

    def noted(_: Tool, __: object, allowed: CheckTime) -> str:
        found.append(allowed)
        return ""

    monkeypatch.setattr(Tool, "broken_rule", noted)
    reply = engine.chat(ASKED, tools=[COUNT], n=3, **FORCED).result()
    assert reply.warnings == [NOT_HELD]
    assert found == [found[0]] * 3
