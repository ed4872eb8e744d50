"""Chat: conversations, as their users see them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest

import offgrid_llama as og
from helpers.chats import ASKED, GREEDY
from offgrid_llama.chat import ChatTemplate
from offgrid_llama.engine import Chat, FinishReason


@pytest.fixture(scope="module")
def engine(smollm2: og.Model) -> Iterator[og.Engine]:
    with og.Engine(smollm2, n_seq_max=4, n_ctx=4096) as engine:
        yield engine


def test_a_conversation(engine: og.Engine) -> None:
    """Each turn has what was said before, and computes only what is new."""
    chat = Chat(engine, "You are terse.", **GREEDY)
    first = chat.say("My name is Ada. What is the capital of France?")
    second = chat.say("And of Italy?").result()
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.messages[2] == first.message()
    assert chat.messages[4] == second.message()
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    again = engine.chat(chat.messages[:-1], **GREEDY).result()
    assert again.content == second.content
    chat.undo()
    assert len(chat.messages) == 3
    chat.undo()
    chat.undo()
    assert chat.messages == [{"role": "system", "content": "You are terse."}]
    with chat.say("Count to a hundred.", max_tokens=10**6, n_keep=0, ignore_eos=True) as cut:  # until it is cancelled
        next(iter(cut))
    assert chat.messages[-1]["content"] == cut.content
    assert cut.finish_reason is FinishReason.CANCELLED


def test_going_on(engine: og.Engine, smollm2: og.Model) -> None:
    """The last message is continued where it ends, spaces and all."""
    begun = [*ASKED, {"role": "assistant", "content": "The capital of France, as everybody knows, is "}]
    parts = ChatTemplate.of(smollm2).parts_to_continue(begun)
    assert "".join(part.text for part in parts).endswith("assistant\nThe capital of France, as everybody knows, is ")
    reply = engine.chat(begun, continue_final_message=True, **GREEDY).result()
    assert reply.content
    with pytest.raises(ValueError, match="the assistant's"):
        engine.chat(ASKED, continue_final_message=True)
    shouting = ChatTemplate("{{ messages[-1].content | upper | replace('\ue0f0', '') }}")
    with pytest.raises(og.ChatTemplateError, match="continued"):
        engine.chat(begun, template=shouting, continue_final_message=True)


def test_the_old_name_of_a_tool_result(engine: og.Engine) -> None:
    """``Chat.result`` still adds the result of a call, with a warning that names ``add_tool_result``."""
    chat = Chat(engine)
    with pytest.warns(DeprecationWarning, match="add_tool_result"):
        chat.result("call", {"answer": 4})
    chat.add_tool_result("other", "four")
    assert [message["content"] for message in chat.messages] == ['{"answer": 4}', "four"]


TYPOS: dict[str, tuple[Callable[[og.Engine, Chat], object], str]] = {
    "Engine": (lambda engine, _: og.Engine(engine.model, n_thread=2), "'n_thread'; did you mean 'n_threads'"),  # type: ignore[call-arg]
    "Engine of its own": (lambda engine, _: og.Engine(engine.model, max_que=2), "'max_que'; did you mean 'max_queue'"),  # type: ignore[call-arg]
    "Engine.chat": (lambda engine, _: engine.chat(ASKED, temprature=0), "'temprature'; did you mean 'temperature'"),  # type: ignore[call-overload]
    "Engine.generate": (lambda engine, _: engine.generate("a", stops="b"), "'stops'; did you mean 'stop'"),  # type: ignore[call-arg]
    "Chat": (lambda engine, _: Chat(engine, sytem="a"), "'sytem'; did you mean 'system'"),  # type: ignore[call-arg]
    "Chat.say": (lambda _, chat: chat.say("a", tool=[]), "'tool'; did you mean 'tools'"),  # type: ignore[call-overload]
    "Chat.reply": (lambda _, chat: chat.reply(respons_format=int), "'respons_format'; did you mean 'response_format'"),  # type: ignore[call-overload]
    "Chat.run": (lambda _, chat: chat.run("a", max_turn=1), "'max_turn'; did you mean 'max_turns'"),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("name", TYPOS)
def test_typos(engine: og.Engine, name: str) -> None:
    """An argument that does not exist is told as that of the function that was called, with the name that may be meant."""
    call, text = TYPOS[name]
    function = name.removesuffix(" of its own")
    chat = Chat(engine)
    with pytest.raises(TypeError, match=rf"^{re.escape(function)}\(\) takes no argument {re.escape(text)}\?$"):
        call(engine, chat)
    assert chat.messages == []


def test_an_engine_is_one() -> None:
    """A Chat of something else is refused when it is made."""
    with pytest.raises(TypeError, match=r"^engine must be an Engine, not str$"):
        Chat("smollm2")  # type: ignore[arg-type]
