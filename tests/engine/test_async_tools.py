"""Engines and conversations on an event loop, and tools that are async."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import offgrid_llama as og
from offgrid_llama.engine.tool_calls import results_async

SHORT: dict[str, Any] = {"max_tokens": 60, "temperature": 0, "tool_choice": "required", "parallel_tool_calls": False}


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_seq_max=2, n_ctx=4096) as engine:
        yield engine


def on_thread(seen: list[str]) -> Callable[..., Any]:
    def clock() -> str:
        """Return the time."""
        seen.append(threading.current_thread().name)
        return "noon"

    return clock


def on_loop(seen: list[str]) -> Callable[..., Any]:
    async def clock() -> str:
        """Return the time."""
        await asyncio.sleep(0)
        seen.append(threading.current_thread().name)
        return "noon"

    return clock


def on_loop_in_disguise(seen: list[str]) -> Callable[..., Any]:
    awaited = on_loop(seen)

    def clock() -> object:
        """Return the time."""
        return awaited()

    return clock


@pytest.mark.parametrize("make", [on_thread, on_loop, on_loop_in_disguise])
def test_tools_on_an_event_loop(engine: og.Engine, make: Callable[[list[str]], Any]) -> None:
    """``Chat.run_async`` awaits async tools on its loop, and calls others in a thread; both results reach the model."""
    seen: list[str] = []
    chat = og.Chat(engine, tools=[make(seen)], **SHORT)
    reply = asyncio.run(chat.run_async("What time is it?", max_turns=2))
    assert reply.done
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["content"] == "noon"
    assert len(seen) == 1
    assert (seen[0] == threading.main_thread().name) == (make is not on_thread)


def test_calls_of_one_answer_run_together() -> None:
    """Async tools that one answer calls run at the same time; the error of one reaches the model, as the others' results."""
    met: list[str] = []

    async def meet(place: str) -> str:
        """Meet the others."""
        met.append(place)
        for _ in range(100):
            await asyncio.sleep(0)
            if len(met) == 2:
                return "met"
        raise TimeoutError("alone")

    tools = [og.Tool.of(meet)]
    calls = [og.ToolCall(str(i), "meet", f'{{"place": "{place}"}}') for i, place in enumerate(["Bern", "Rome"])]
    calls.append(og.ToolCall("2", "meet", '{"where": "Bern"}'))
    found = asyncio.run(results_async(calls, tools))
    assert found == ["met", "met", "ValueError: meet has no parameter where"]


@pytest.mark.parametrize("make", [on_loop, on_loop_in_disguise])
def test_async_tools_need_run_async(engine: og.Engine, make: Callable[[list[str]], Any]) -> None:
    """``Chat.run`` refuses an async tool, by a message that names ``run_async``, and never tells the model of it."""
    chat = og.Chat(engine, tools=[make([])], **SHORT)
    with pytest.raises(TypeError, match=r"clock is async: use Chat\.run_async"):
        chat.run("What time is it?", max_turns=2)
    assert not any("async" in message["content"] for message in chat.messages)


def test_interrupted_calls_are_answered(engine: og.Engine) -> None:
    """Ctrl-C in a tool, and the end of a task, leave a conversation that can go on: each call has a result."""

    def clock() -> str:
        """Return the time."""
        raise KeyboardInterrupt

    async def slow_clock() -> str:
        """Return the time."""
        asked.set()
        await asyncio.Event().wait()
        return "never"

    async def cancelled(chat: og.Chat) -> None:
        task = asyncio.ensure_future(chat.run_async("What time is it?"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    chat = og.Chat(engine, tools=[clock], **SHORT)
    with pytest.raises(KeyboardInterrupt):
        chat.run("What time is it?")
    asked = asyncio.Event()
    other = og.Chat(engine, tools=[slow_clock], **SHORT)
    asyncio.run(cancelled(other))
    for each in (chat, other):
        assert [message["role"] for message in each.messages] == ["user", "assistant", "tool"]
        assert each.messages[-1]["content"] == "The call was interrupted."
        assert each.reply(tool_choice="none", max_tokens=2).result().done


def test_turns_on_an_event_loop(engine: og.Engine) -> None:
    """``say_async`` and ``reply_async`` wait for the answer before without blocking the loop, and return a running one."""

    async def main() -> list[str]:
        chat = og.Chat(engine, temperature=0, max_tokens=6)
        async for delta in await chat.say_async("Hello"):
            assert delta.index == 0
        running = await chat.say_async("And again?")
        await (await chat.reply_async())
        assert running.done
        return [message["role"] for message in chat.messages]

    assert asyncio.run(main()) == ["user", "assistant", "user", "assistant", "assistant"]


def test_an_engine_on_an_event_loop(smollm2: og.Model) -> None:
    """``async with Engine`` closes the engine at its end, without blocking the loop."""

    async def main() -> tuple[str, og.Engine]:
        async with og.Engine(smollm2, n_ctx=512, n_seq_max=1) as engine:
            text = (await engine.generate_async("One, two,", max_tokens=2, temperature=0)).text
        return text, engine

    text, engine = asyncio.run(main())
    assert text
    assert engine.closed


async def asynchronous() -> None:
    """Stand for a function whose call does nothing."""


never: Any = asynchronous


@pytest.mark.parametrize(
    "use",
    [
        lambda model: og.Engine(model, on_step=never),
        lambda model: og.RequestOptions(logits_processors=[never]),
        lambda model: og.Model(model.path, progress=never),
        lambda model: og.samplers.custom(never),
    ],
    ids=["on_step", "logits_processors", "progress", "custom"],
)
def test_callbacks_are_not_async(smollm2: og.Model, use: Callable[[og.Model], object]) -> None:
    """A callback that would have to be awaited is refused."""
    with pytest.raises(TypeError, match="not async: nothing would await it"):
        use(smollm2)
