"""The chat handlers for functionary models against what llama-cpp-python 0.3.36 asked and answered for the same requests."""

from __future__ import annotations

import copy
import json
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from helpers.functionary_facts import CALL, MORE, NEW_CALL, OLD_CALL, RESULT, TOKENIZERS, functionary_facts
from helpers.llama_cpp_facts import ARGUMENTS, ASKED, NAMED, TOOL, FakeLlama
from offgrid_llama.compat.llama_cpp import Llama
from offgrid_llama.compat.llama_cpp import llama_chat_format as ours
from offgrid_llama.compat.llama_cpp.functionary_v2 import MAX_TURNS

DATA = Path(__file__).parents[1] / "data" / "llama_cpp_chat_formats.json"
CORRECTED = {
    "required": "a choice by any other word is the name of a function, a message, or an UnboundLocalError",
    "no such tool": "a function that is none of the request's is called all the same",
    "no parameters": "a function without parameters is a KeyError",
    "types that are lost": "types are left out, or written as Python's lists",
    "a null call": "a function_call that is None is a TypeError",
    "texts in parts": "the parts are written as Python's lists",
    "no role": "it is a KeyError",
    "functionary: no tools, auto": "the text of the answer is the name of a function",
    "functionary: tools, none": "a function with the name none is called, in JSON",
    "functionary: functions, none": "a function with the name none is called, in JSON",
    "functionary: after a call with a text": "the text of a message that calls tools is left out",
    "functionary: a message": "a function without a name is called, in JSON",
    "functionary-v2: a message and a call": "the text comes twice, with the marks of the turn",
    "functionary-v2: a message and a call, spaced": "nothing of the text is left, in the prompt either",
}
"""Requests that llama-cpp-python answers wrongly: how. The other requests have the same answers."""
CORRECTED_STREAMS = {
    "functionary: tool", "functionary: function", "functionary: a call", "functionary: an old call",
    "functionary: an unknown function", "functionary-v1: tool", "functionary-v1: function", "functionary-v1: a call",
    "functionary-v1: an old call", "functionary-v1: an unknown function", "functionary-v1: a message",
    "functionary-v2: a call and a message", "functionary-v2: tool", "functionary-v2: function",
    "functionary-v2: a space in two chunks",
}  # fmt: skip
"""The same of streams: an AssertionError, a last reason that hides the call, and arguments without some of their spaces."""


def llama_of(name: str, *texts: str) -> FakeLlama:
    """Return what completes prompts for a handler, with the given texts."""
    llama = FakeLlama(*texts)
    llama.tokenizer_ = SimpleNamespace(hf_tokenizer=TOKENIZERS[name])
    return llama


def answered(name: str, llama: FakeLlama, **request: Any) -> Any:
    """Return the answer of a handler: a chat completion, or the list of its chunks."""
    answer = ours.get_chat_completion_handler(name)(llama=llama, **{"messages": ASKED, **request})
    return list(answer) if request.get("stream") else answer


def deltas(chunks: Any) -> list[Any]:
    """Return the deltas of a stream."""
    return [chunk["choices"][0]["delta"] for chunk in chunks]


def is_corrected(name: str) -> bool:
    """Say whether llama-cpp-python does something else on purpose of ours."""
    request = name.removesuffix(", streamed")
    is_stream = request != name
    title = request.partition(": ")[2]
    return title in CORRECTED or request in CORRECTED or (is_stream and request in CORRECTED_STREAMS)


def test_they_ask_and_answer_the_same() -> None:
    """What ``create_completion`` is asked for, and what the answers and their chunks are."""
    theirs = json.loads(DATA.read_text("utf-8"))["functionary"]
    for told in theirs.values():
        for each in told["answer"] if isinstance(told["answer"], list) else ():
            each["choices"][0].setdefault("finish_reason", None)  # their chunks of calls lack it
    found = functionary_facts(ours)
    assert found.keys() == theirs.keys()
    assert {name for name in found if found[name] != theirs[name]} == {name for name in found if is_corrected(name)}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_messages_stay_as_they_are(name: str) -> None:
    """A conversation can be sent again: the handlers write the names of functions into copies."""
    messages = [*ASKED, copy.deepcopy(OLD_CALL), copy.deepcopy(RESULT)]
    before = copy.deepcopy(messages)
    llama = llama_of(name, "It rains.", "It rains.")
    for _ in range(2):
        answered(name, llama, messages=messages)
    assert messages == before
    assert llama.calls[0] == llama.calls[1]
    assert llama.calls[0]["prompt"].count("functions.weather") == 2


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"tools": [{"type": "function", "function": {}}]}, r"tools\[0\]\.function must be an object with a name"),
        ({"functions": [TOOL["function"], {"description": "x"}]}, r"functions\[1\] must be an object with a name"),
        ({"functions": [{"name": "x", "parameters": [1]}]}, r"functions\[0\]\.parameters must be a JSON Schema"),
        ({"tools": [TOOL], "tool_choice": "required"}, r"tool_choice must be .*'required'"),
        ({"tools": [TOOL], "tool_choice": {"name": "weather"}}, "tool_choice must be"),
        ({"tools": [TOOL], "function_call": {"name": "time"}}, "function_call: 'time' is not one of the functions"),
        ({"messages": [ASKED[0], {"content": "x"}]}, r"messages\[1\]"),
        ({"messages": [{"role": "assistant", "function_call": {"arguments": ""}}]}, r"messages\[0\].* has no '?name"),
    ],
)  # fmt: skip
def test_errors_name_the_argument(name: str, request_: dict[str, Any], message: str) -> None:
    """What a caller did wrong is a ValueError before anything is computed."""
    llama = llama_of(name)
    with pytest.raises(ValueError, match=message):
        answered(name, llama, **request_)
    assert llama.calls == []


def test_an_unknown_role() -> None:
    """The prompt of the oldest models has a text for each role; an error names those that are known."""
    with pytest.raises(ValueError, match=r"messages\[0\]\.role must be one of system, .*, not 'developer'"):
        answered("functionary", llama_of("functionary"), messages=[{"role": "developer", "content": "x"}])


def test_a_tokenizer_is_needed() -> None:
    """The prompts of later versions come from a tokenizer of transformers; without one the error says so."""
    llama = FakeLlama()
    for tokenizer in (None, SimpleNamespace(), SimpleNamespace(hf_tokenizer=None)):
        llama.tokenizer_ = tokenizer
        with pytest.raises(ValueError, match=r"tokenizer: .*LlamaHFTokenizer"):
            answered("functionary-v2", llama)


@pytest.mark.parametrize("name", ["functionary", "functionary-v1"])
def test_streams_without_calls(name: str) -> None:
    """A text is streamed where no function may be called, and for the oldest models where none is."""
    chunks = answered(name, llama_of(name, "It rains."), tools=[TOOL], tool_choice="none", stream=True)
    assert "".join(delta.get("content", "") for delta in deltas(chunks)) == "It rains."
    with pytest.raises(ValueError, match=r"stream: .* cannot stream"):
        answered(name, llama_of(name), tools=[TOOL], tool_choice=NAMED, stream=True)
    if name == "functionary":
        chunks = answered(name, llama_of(name, ":", "It rains."), tools=[TOOL], stream=True)
        assert "".join(delta.get("content", "") for delta in deltas(chunks)) == "It rains."
        with pytest.raises(ValueError, match=r"stream: .* cannot stream"):
            answered(name, llama_of(name, " to=functions.weather:"), tools=[TOOL], stream=True)


def test_several_calls_in_a_conversation() -> None:
    """Each call of a message is in the prompt, and what is said beside them."""
    call: Any = NEW_CALL["tool_calls"][0]
    twice = {"role": "assistant", "content": "Look.", "tool_calls": [call, {**call, "id": "again"}]}
    llama = llama_of("functionary", "It rains.")
    answered("functionary", llama, messages=[twice])
    said = f"assistant:\nLook.\nassistant to=weather:\n{ARGUMENTS}</s>\nassistant to=again:\n{ARGUMENTS}</s>\n"
    assert said in llama.calls[0]["prompt"]


@pytest.mark.parametrize(
    ("begun", "name"),
    [(" to=functions.a.b:", "a.b"), (" to=functions.weather", "weather"), (" to=weather:", "weather")],
)
def test_names_as_models_write_them(begun: str, name: str) -> None:
    """With dots, cut by the limit of tokens, and without the namespace."""
    answer = answered("functionary", llama_of("functionary", begun, "{}"), tools=[TOOL])
    assert answer["choices"][0]["message"]["tool_calls"][0]["function"] == {"name": name, "arguments": "{}"}


def test_a_message_that_names_a_function() -> None:
    """The name of a function is at the beginning of an answer; anywhere else it is a text."""
    answer = answered("functionary", llama_of("functionary", ": See to=functions.weather:", "It rains."), tools=[TOOL])
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "It rains."}


def test_a_conversation_with_calls_before() -> None:
    """Version 1 answers with a text, also where the conversation has the marks of calls."""
    messages = [*ASKED, {"role": "assistant", "content": f"{CALL}weather:\n{{}}"}, {"role": "user", "content": "And?"}]
    answer = answered("functionary-v1", llama_of("functionary-v1", "It rains."), messages=messages, tools=[TOOL])
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "It rains."}


@pytest.mark.parametrize("stream", [False, True])
def test_turns_end(stream: bool) -> None:
    """A model that always begins another turn is stopped; one that names no recipient has ended its answer."""
    llama = llama_of("functionary-v2", *["all", f"So.{MORE}"] * (MAX_TURNS + 5))
    answered("functionary-v2", llama, tools=[TOOL], stream=stream)
    assert len(llama.calls) == 2 * MAX_TURNS
    answer = answered("functionary-v2", llama_of("functionary-v2", " "), tools=[TOOL], stream=stream)
    choice = (answer[-1] if stream else answer)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice.get("message", {"content": None})["content"] is None


class TokenLlama(FakeLlama):
    """Streams its texts character by character; an empty text has no chunk."""

    def create_completion(self, prompt: Any, **keywords: Any) -> Any:
        made = super().create_completion(prompt, **{**keywords, "stream": False})
        choice = made["choices"][0]
        return ({**made, "usage": {}, "choices": [{**choice, "text": each}]} for each in choice["text"])


def test_streams_of_single_characters() -> None:
    """Nothing of a text or of arguments is lost but space at their ends, and nothing of a turn's mark is shown."""
    text, arguments = "\n A\n<|from|>b \n<|from|>assistant's", '{"city": "New  York\\n"}'
    llama = TokenLlama("all", text + MORE, "weather", f" {arguments}\n", "")
    llama.tokenizer_ = SimpleNamespace(hf_tokenizer=TOKENIZERS["functionary-v2"])
    found = deltas(answered("functionary-v2", llama, tools=[TOOL], stream=True))
    assert "".join(delta.get("content") or "" for delta in found) == text.lstrip()
    calls = [call["function"] for delta in found for call in delta.get("tool_calls") or ()]
    assert [call["name"] for call in calls[:2]] == ["weather", None]
    assert "".join(call["arguments"] for call in calls) == arguments


def test_streams_of_nothing() -> None:
    """A completion without any chunk gives a stream without any."""
    for request in ({}, {"tool_choice": NAMED}):
        llama = TokenLlama("")
        llama.tokenizer_ = SimpleNamespace(hf_tokenizer=TOKENIZERS["functionary-v2"])
        assert answered("functionary-v2", llama, tools=[TOOL], stream=True, **request) == []


def test_a_real_model(smollm2_path: Path) -> None:
    """Through a Llama: the arguments of a call are valid under the function's schema, whole and streamed."""
    asked: Any = {"messages": ASKED, "tools": [TOOL], "tool_choice": NAMED, "temperature": 0.0, "max_tokens": 64}
    with closing(Llama(str(smollm2_path), n_ctx=1024, verbose=False, chat_format="functionary")) as llama:
        whole: Any = llama.create_chat_completion(**asked)
        llama.chat_format = "functionary-v2"
        tokenizer: Any = llama.tokenizer_
        tokenizer.hf_tokenizer = TOKENIZERS["functionary-v2"]
        chunks: Any = llama.create_chat_completion(**asked, stream=True)
        found = [call["function"] for delta in deltas(chunks) for call in delta["tool_calls"] or ()]
    streamed = "".join(function["arguments"] for function in found)
    assert found[0]["name"] == "weather"
    for arguments in (whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], streamed):
        assert isinstance(json.loads(arguments)["city"], str)
