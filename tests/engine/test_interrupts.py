"""Waits that Ctrl-C, or the end of a task, interrupts, while the traceback lives on as it does in a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

import offgrid_llama as og
from helpers.engines import ENDLESS, UNENDING, driven, idle, turns

LONG: dict[str, Any] = {"max_tokens": 200, "sampling": ENDLESS}
TEMPLATE = og.ChatTemplate("{% for message in messages %}{{ message.content }}{% endfor %}")
ASKED = [{"role": "user", "content": "abc"}]


def chat_of(engine: og.Engine) -> og.Chat:
    return og.Chat(engine, template=TEMPLATE, **LONG)


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ctrl-C come in each wait of a thread."""

    def wait(_event: threading.Event, _timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Event, "wait", wait)


def interrupted(wait: Callable[[], object]) -> BaseException:
    """Return the KeyboardInterrupt, with the frames of its traceback."""
    with pytest.raises(KeyboardInterrupt) as caught:
        wait()
    return caught.value


WAITS: dict[str, Callable[[og.Engine], object]] = {
    "generate": lambda engine: engine.generate("abc", **LONG),
    "stream": lambda engine: list(engine.stream("abc", **LONG)),
    "chat": lambda engine: engine.chat(ASKED, template=TEMPLATE, **LONG).result(),
    "the deltas of a chat": lambda engine: list(engine.chat(ASKED, template=TEMPLATE, **LONG)),
    "Chat.say": lambda engine: chat_of(engine).say("abc").result(),
    "Chat.run": lambda engine: chat_of(engine).run("abc"),
}


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("name", WAITS)
def test_ctrl_c_cancels(letters: og.Model, name: str) -> None:
    """Ctrl-C in a wait cancels the request, though the traceback keeps a reference to it."""
    engine = driven(letters)
    error = interrupted(lambda: WAITS[name](engine))
    turns(engine, 2)
    assert engine.stats().finished == {"cancelled": 1}
    assert error.__traceback__ is not None
    idle(engine)
    engine.close()


@pytest.mark.usefixtures("ctrl_c")
def test_a_submitted_request_goes_on(letters: og.Model) -> None:
    """Ctrl-C in a wait for what ``submit`` returned leaves it running: its caller has it and can wait again."""
    engine = driven(letters)
    completion = engine.submit("abc", max_tokens=3, sampling=ENDLESS)
    interrupted(completion.result)
    interrupted(lambda: list(completion))
    turns(engine)
    assert completion.result().finish_reason is og.FinishReason.LENGTH
    engine.close()


@pytest.mark.usefixtures("ctrl_c")
def test_a_turn_that_waits_for_the_one_before(letters: og.Model) -> None:
    """Ctrl-C while a turn waits for the answer before it cancels that answer, and asks nothing."""
    engine = driven(letters)
    chat = chat_of(engine)
    first = chat.say("abc")
    interrupted(lambda: chat.say("abd"))
    turns(engine, 2)
    assert first.finish_reason is og.FinishReason.CANCELLED
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    engine.close()


def test_messages_do_not_wait(letters: og.Model) -> None:
    """``Chat.messages`` has an answer when it has ended, and does not wait for one that runs; ``undo`` cancels it."""
    engine = driven(letters)
    chat = chat_of(engine)
    reply = chat.say("abc", max_tokens=3)
    assert [message["role"] for message in chat.messages] == ["user"]
    turns(engine)
    assert chat.messages[1:] == [reply.message()]
    engine.close()
    with og.Engine(letters, n_ctx=1024) as running:
        chat = chat_of(running)
        reply = chat.say("abc", **UNENDING)
        chat.undo()
        assert reply.finish_reason is og.FinishReason.CANCELLED
        assert chat.messages == []


def test_a_failed_answer_fails_once(letters: og.Model) -> None:
    """An answer's error is raised where the answer is waited for, and not again by ``messages`` or the next turn."""

    def fail(*_: object) -> None:
        raise ValueError("no")

    with og.Engine(letters, n_ctx=1024) as engine:
        chat = chat_of(engine)
        with pytest.raises(ValueError, match="no"):
            chat.say("abc", logits_processors=[fail]).result()
        assert [message["role"] for message in chat.messages] == ["user", "assistant"]
        assert chat.say("abc", max_tokens=2).result().done


async def awaited(reply: og.ChatCompletion[Any]) -> og.ChatCompletion[Any]:
    """Wait for an answer in a coroutine."""
    return await reply


ASYNC_WAITS: dict[str, Callable[[og.Engine], Any]] = {
    "generate_async": lambda engine: engine.generate_async("abc", **LONG),
    "stream_async": lambda engine: anext(engine.stream_async("abc", **LONG)),
    "chat": lambda engine: awaited(engine.chat(ASKED, template=TEMPLATE, **LONG)),
    "Chat.run_async": lambda engine: chat_of(engine).run_async("abc"),
}


@pytest.mark.parametrize("name", ASYNC_WAITS)
def test_a_cancelled_task_cancels(letters: og.Model, name: str) -> None:
    """Cancelling a task cancels the request that it waits for, though its exception keeps a reference to it."""
    engine = driven(letters)

    async def main() -> BaseException:
        task = asyncio.ensure_future(ASYNC_WAITS[name](engine))
        while not engine.stats().n_waiting:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        return caught.value

    error = asyncio.run(main())
    turns(engine, 2)
    assert engine.stats().finished == {"cancelled": 1}
    assert error.__traceback__ is not None
    engine.close()
