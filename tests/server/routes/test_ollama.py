"""Ollama's API, as Ollama's own client and plain HTTP get it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from ollama import ChatResponse, GenerateResponse
from pydantic import BaseModel, Field

from helpers.official import check
from helpers.requests import ASKED, post
from helpers.serving import ALIAS, MODEL, Served, serving, wait_until

NAME = "smollm2:135m"
GREEDY: dict[str, Any] = {"temperature": 0, "num_predict": 24}
OWN = ("id", "index", "bytes", "warnings")
LOOK = {
    "type": "function",
    "function": {
        "name": "look", "description": "Look.", "parameters": {
            "type": "object", "properties": {"at": {"enum": ["a", "b"]}}, "required": ["at"],
        },
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def alone_client(alone: Served) -> Iterator[ollama.Client]:
    """Ollama's own client of the server alone."""
    with ollama.Client(host=alone.url) as client:
        yield client


@pytest.fixture(scope="module")
def ollama_client(server: Served) -> Iterator[ollama.Client]:
    """Ollama's own client of the server."""
    with ollama.Client(host=server.url) as client:
        yield client


SETTINGS = """
[[models]]
name = "smollm2-135m-instruct"
n_ctx = 4096
preload = true
engine = { deterministic = true }

[[models]]
name = "caller"
model = "smollm2-135m-instruct"
template = "caller.jinja"

[[models]]
name = "thinker"
model = "smollm2-135m-instruct"
engine = { deterministic = true }
template = '''{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endfor %}<|im_start|>assistant
{% if enable_thinking is not defined or enable_thinking %}<think>
{% else %}<think>

</think>

{% endif %}'''
"""
CALLER = """{% for message in messages %}{% endfor %}look a: {"name": "look", "arguments": {"at": "a"}}
look b: {"name": "look", "arguments": {"at": "b"}}
look a: {"name": "look", "arguments": {"at": "a"}}
look b:"""
"""A template with which the model writes a call."""


@pytest.fixture(scope="module")
def alone(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose model has short sequences and the same answer each time, one that writes calls, and one that thinks."""
    del smollm2_path
    folder = tmp_path_factory.mktemp("alone")
    (folder / "caller.jinja").write_text(CALLER)
    (folder / "settings.toml").write_text(SETTINGS.replace("caller.jinja", str(folder / "caller.jinja")))
    with serving("--config", str(folder / "settings.toml")) as served:
        yield served


def status(served: Served) -> str:
    found: str = served.models()[MODEL]["status"]
    return found


# Conversations ----------------------------------------------------------------------------------------------------------


def test_a_conversation_is_answered(ollama_client: ollama.Client) -> None:
    """A real answer with its times and counts, under whichever of its names the client uses."""
    for name in (NAME, MODEL, f"{MODEL.upper()}:latest", ALIAS):
        reply = ollama_client.chat(name, ASKED, options=GREEDY)
        assert (reply.model, reply.done, reply.done_reason) == (name, True, "stop")
        assert "4" in (reply.message.content or "")
        assert (reply.prompt_eval_count or 0) > 10
        assert 0 < (reply.eval_count or 0) <= 24
        total, parts = reply.total_duration or 0, (reply.load_duration, reply.prompt_eval_duration, reply.eval_duration)
        assert all(part and 0 < part < total for part in parts)


def test_a_stream_is_the_same_answer(alone_client: ollama.Client) -> None:
    """Lines come one after the other; together they are the answer, and the last one says why and how long."""
    whole = alone_client.chat(NAME, ASKED, options=GREEDY)
    *parts, last = alone_client.chat(NAME, ASKED, options=GREEDY, stream=True)
    assert len(parts) > 1
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert not any(part.done for part in parts)
    assert (last.done, last.done_reason, last.eval_count) == (True, whole.done_reason, whole.eval_count)


def test_lines_of_a_stream(server: Served) -> None:
    """A stream is the default, and its media type is that of lines of JSON. Any Content-Type is read, as of curl -d."""
    for path, more in (("/api/chat", {"messages": ASKED}), ("/api/generate", {"prompt": "a"})):
        body = json.dumps({"model": NAME, "options": {"num_predict": 3}, **more})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        with httpx.stream("POST", f"{server.url}{path}", content=body, headers=kind, timeout=60) as response:
            assert response.headers["content-type"].startswith("application/x-ndjson")
            assert response.headers["x-accel-buffering"] == "no"
            found = [json.loads(line) for line in response.iter_lines()]
        assert [line["done"] for line in found] == [False] * (len(found) - 1) + [True]


def test_the_same_tokens_as_through_openais_api(alone: Served, alone_client: ollama.Client) -> None:
    """One conversation through each dialect gives the same tokens, by greed and by a seed, whole and streamed."""
    messages = [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Name three colours."},
    ]  # fmt: skip
    for options in (GREEDY, {"temperature": 1.3, "seed": 7, "top_k": 30, "repeat_penalty": 1.1, "num_predict": 24}):
        theirs = {name: value for name, value in options.items() if name != "num_predict"}
        body = {"model": MODEL, "messages": messages, "max_tokens": 24, "logprobs": True, **theirs}
        reply = post(alone, "/v1/chat/completions", body).json()
        (choice,) = reply["choices"]
        tokens = [each["token"] for each in choice["logprobs"]["content"]]
        told = alone_client.chat(NAME, messages, options=options, logprobs=True)
        assert [each.token for each in told.logprobs or ()] == tokens
        assert (told.message.content, told.done_reason) == (choice["message"]["content"], choice["finish_reason"])
        assert told.prompt_eval_count == reply["usage"]["prompt_tokens"]
        parts = list(alone_client.chat(NAME, messages, options=options, logprobs=True, stream=True))
        assert [each.token for part in parts for each in part.logprobs or ()] == tokens


def test_the_asynchronous_client(server: Served) -> None:
    """Many at once, whole and streamed, each its own answer."""

    async def main() -> list[str]:
        client = ollama.AsyncClient(host=server.url)

        async def ask(word: str, stream: bool) -> str:
            asked = [{"role": "user", "content": f"Say {word}."}]
            if not stream:
                return (await client.chat(NAME, asked, options=GREEDY)).message.content or ""
            parts = await client.chat(NAME, asked, options=GREEDY, stream=True)
            return "".join([part.message.content or "" async for part in parts])

        jobs = [ask(word, stream) for stream in (False, True) for word in ("one", "two", "three", "four")]
        found = await asyncio.gather(*jobs)
        await client.close()  # type: ignore[no-untyped-call]
        return found

    found = asyncio.run(main())
    assert len(set(found)) > 1
    assert found[:4] == found[4:]


def weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: the name of the city
    """
    return f"It is sunny in {city}."


def test_an_answer_that_is_begun(ollama_client: ollama.Client) -> None:
    """The model goes on with a last message of the assistant, and the answer is what it adds."""
    begun = [*ASKED, {"role": "assistant", "content": "The sum of two and two is"}]
    prompt = ollama_client.chat(NAME, ASKED, options=GREEDY).prompt_eval_count or 0
    told = ollama_client.chat(NAME, begun, options=GREEDY)
    assert (told.prompt_eval_count or 0) - prompt == 7
    assert "sum of two" not in (told.message.content or "")


def test_thinking(alone_client: ollama.Client) -> None:
    """A model's thinking comes apart from its answer, whole and streamed; it can be turned off."""
    asked: Any = {"model": "thinker", "options": {"temperature": 0, "num_predict": 12}}
    for think in (None, True, "high"):
        reply = alone_client.chat(messages=ASKED, think=think, **asked)
        assert (bool(reply.message.thinking), reply.message.content) == (True, "")
        parts = list(alone_client.chat(messages=ASKED, think=think, stream=True, **asked))
        assert "".join(part.message.thinking or "" for part in parts) == reply.message.thinking
        assert alone_client.generate(prompt="What is 2+2?", think=think, **asked).thinking == reply.message.thinking
    reply = alone_client.chat(messages=ASKED, think=False, **asked)
    assert (reply.message.thinking, bool(reply.message.content)) == (None, True)
    assert "thinking" in (alone_client.show("thinker").capabilities or ())


def test_tools(server: Served, ollama_client: ollama.Client) -> None:
    """A function of Python's is a tool; a call has its arguments as an object, and a result names its tool."""
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Bern?"}]
    reply = ollama_client.chat(NAME, messages, tools=[weather], options=GREEDY)
    assert reply.done_reason in ("stop", "length")
    call = {"function": {"name": "weather", "arguments": {"city": "Bern"}}}
    messages += [
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_name": "weather", "content": "sunny"},
    ]
    answered = ollama_client.chat(NAME, messages, tools=[weather], options=GREEDY)
    assert answered.message.content
    prompt = ollama_client.chat(NAME, messages[:1], tools=[weather], options=GREEDY).prompt_eval_count or 0
    assert (answered.prompt_eval_count or 0) > prompt + 10
    unknown = [*messages[:2], {"role": "tool", "tool_call_id": "zzz", "content": "sunny"}]
    body = {"model": NAME, "messages": unknown, "tools": [LOOK], "stream": False, "options": GREEDY}
    assert post(server, "/api/chat", body).status_code == 200


def test_calls(alone_client: ollama.Client) -> None:
    """A call that the model writes comes in one line of a stream, as it does in a whole answer."""
    asked: Any = {"model": "caller", "messages": ASKED, "tools": [LOOK], "options": {"temperature": 0, "stop": ["\n"]}}
    whole = alone_client.chat(**asked)
    *parts, last = alone_client.chat(**asked, stream=True)
    for reply in (whole, parts[-1]):
        (call,) = reply.message.tool_calls or ()
        assert (call.function.name, call.function.arguments) == ("look", {"at": "b"})
        assert reply.message.content == ""
    assert sum(len(part.message.tool_calls or ()) for part in parts) == 1
    assert (whole.done_reason, last.done_reason, last.message.tool_calls) == ("stop", "stop", None)


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=10)
    age: int = Field(ge=0, le=120)


def test_structured_output(ollama_client: ollama.Client) -> None:
    """A schema, or any JSON object, in conversations, prompts and raw texts."""
    asked = [{"role": "user", "content": "Jason is 25 years old. Answer in JSON."}]
    schema, options = Person.model_json_schema(), {"temperature": 0, "num_predict": 200}
    reply = ollama_client.chat(NAME, asked, format=schema, options=options)
    assert Person.model_validate_json(reply.message.content or "").age == 25
    for raw in (False, True):
        told = ollama_client.generate(NAME, "Jason is 25 years old: ", format=schema, raw=raw, options=options)
        Person.model_validate_json(told.response or "")
    told = ollama_client.generate(NAME, "Write a JSON object with the key a.", format="json", options=options)
    assert told.done_reason == "length" or isinstance(json.loads(told.response or ""), dict)
    assert (told.response or "").startswith("{")


# Prompts ----------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_a_conversation(alone_client: ollama.Client) -> None:
    """The answer is that to a conversation with the system message and the prompt, and streams come in lines."""
    system = "You are a pirate."
    messages = [{"role": "system", "content": system}, *ASKED]
    prompt = ASKED[0]["content"]
    told = alone_client.generate(NAME, prompt, system=system, options=GREEDY)
    chat = alone_client.chat(NAME, messages, options=GREEDY)
    assert (told.response, told.prompt_eval_count) == (chat.message.content, chat.prompt_eval_count)
    *parts, last = alone_client.generate(NAME, prompt, system=system, options=GREEDY, stream=True)
    assert "".join(part.response or "" for part in parts) == told.response
    assert last.context == told.context


def test_context(server: Served, ollama_client: ollama.Client) -> None:
    """The tokens that an answer tells go before the next prompt, which knows what was said."""
    first = ollama_client.generate(NAME, "My name is Tarquin. Say hello.", options=GREEDY)
    context = list(first.context or ())
    text = post(server, "/detokenize", {"model": MODEL, "tokens": context}).json()["content"]
    assert "Tarquin" in text
    assert (first.response or "") in text
    assert len(context) - (first.prompt_eval_count or 0) - (first.eval_count or 0) in (0, 1)
    alone = ollama_client.generate(NAME, "What is my name?", options=GREEDY)
    after = ollama_client.generate(NAME, "What is my name?", context=context, options=GREEDY)
    assert after.prompt_eval_count == len(context) + (alone.prompt_eval_count or 0)
    assert list(after.context or ())[: len(context)] == context
    assert after.response != alone.response
    with pytest.raises(ollama.ResponseError, match=r"context\[1\]"):
        ollama_client.generate(NAME, "a", context=[1, 99999999])


def test_raw(alone: Served, alone_client: ollama.Client) -> None:
    """A raw prompt is the text itself, whose control tokens count, and its answer tells no context."""
    rendered = post(alone, "/apply-template", {"model": MODEL, "messages": ASKED}).json()["prompt"]
    raw = alone_client.generate(NAME, rendered, raw=True, options=GREEDY)
    chat = alone_client.chat(NAME, ASKED, options=GREEDY)
    assert (raw.response, raw.prompt_eval_count) == (chat.message.content, chat.prompt_eval_count)
    assert raw.context is None
    with pytest.raises(ollama.ResponseError, match="raw mode does not support") as caught:
        alone_client.generate(NAME, "a", raw=True, system="b")
    assert caught.value.status_code == 400


def test_a_template_of_the_request(ollama_client: ollama.Client) -> None:
    """It makes the prompt in place of the model's own, in Go's words or Jinja's; what the user writes stays text."""
    own = "{{ .System }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ .Response }}"
    jinja = "{{ system }}<|im_start|>user\n{{ prompt }}<|im_end|>\n<|im_start|>assistant{{ '\n' }}"
    counts = [
        ollama_client.generate(NAME, prompt, template=template, options=GREEDY).prompt_eval_count or 0
        for template in (own, jinja)
        for prompt in ("Hi", "<|im_end|>")
    ]
    assert counts[:2] == counts[2:]
    assert counts[0] < counts[1]
    with pytest.raises(ollama.ResponseError, match=r"template.*slice"):
        ollama_client.generate(NAME, "a", template="{{ slice .Messages 1 }}")


def test_a_model_without_a_template(ollama_client: ollama.Client) -> None:
    """It completes a prompt, and has no conversations."""
    told = ollama_client.generate("gemma-3-270m", "Once upon a time", options=GREEDY)
    raw = ollama_client.generate("gemma-3-270m", "Once upon a time", raw=True, options=GREEDY)
    assert told.response == raw.response
    assert list(told.context or ())[-(told.eval_count or 0) :] != []
    with pytest.raises(ollama.ResponseError, match="no chat template"):
        ollama_client.chat("gemma-3-270m", ASKED)


ASKS: list[tuple[type[BaseModel], str, dict[str, Any]]] = [
    (ChatResponse, "/api/chat", {"messages": ASKED}),
    (ChatResponse, "/api/chat", {"messages": ASKED, "tools": [LOOK]}),
    (ChatResponse, "/api/chat", {}),
    (GenerateResponse, "/api/generate", {"prompt": "Hi"}),
    (GenerateResponse, "/api/generate", {"prompt": "Hi", "raw": True}),
    (GenerateResponse, "/api/generate", {}),
]


def test_every_answer_has_the_clients_types(server: Served) -> None:
    """Whole answers and each line of a stream."""
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    everything = {
        "num_keep": 5, "seed": 42, "num_predict": 6, "top_k": 20, "top_p": 0.9, "min_p": 0.0, "typical_p": 0.7,
        "repeat_last_n": 33, "temperature": 0.8, "repeat_penalty": 1.2, "presence_penalty": 1.5,
        "frequency_penalty": 1.0, "mirostat": 1, "mirostat_tau": 0.8, "mirostat_eta": 0.6, "penalize_newline": True,
        "stop": ["\n", "user:"], "numa": False, "num_ctx": 1024, "num_batch": 2, "num_gpu": 1, "main_gpu": 0,
        "low_vram": False, "vocab_only": False, "use_mmap": True, "use_mlock": False, "num_thread": 8, "tfs_z": 1.0,
    }  # fmt: skip
    few: dict[str, Any] = {"num_predict": 4, "repeat_last_n": -1, "repeat_penalty": 1.1}
    cases: list[dict[str, Any]] = [
        {"options": everything}, {"options": few, "logprobs": True, "top_logprobs": 2}, {"format": schema},
        {"options": few, "think": False, "keep_alive": "5m"}, {"options": {"num_predict": 4, "wibble": [1]}, "hm": 1},
    ]  # fmt: skip
    for more in cases:
        for kind, path, asked in ASKS:
            for stream in (False, True):
                response = post(server, path, {"model": NAME, "stream": stream, **asked, **more})
                assert response.status_code == 200, response.text
                for line in response.text.splitlines():
                    check(kind, json.loads(line), OWN)


# Errors -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status_code", "says"),
    [
        ("chat", {"model": "nope", "messages": ASKED}, 404, 'model "nope" not found, try pulling it first'),
        ("generate", {"model": f"{MODEL}:7b"}, 404, f'model "{MODEL}:7b" not found, try pulling it first'),
        ("chat", {"messages": ASKED}, 400, "model"), ("chat", {"model": NAME, "messages": [{}]}, 400, "messages.0.role"),
        ("chat", {"model": NAME, "messages": ASKED, "think": True}, 400, "does not support thinking"),
        ("generate", {"model": NAME, "prompt": "a", "images": ["aGk="]}, 400, "this model takes no pictures"),
        ("generate", {"model": NAME, "prompt": "a", "suffix": "b"}, 400, "cannot fill in the middle"),
        ("generate", {"model": NAME, "prompt": "a", "format": {"type": "wibble"}}, 400, "format"),
        ("chat", {"model": NAME, "messages": ASKED, "options": {"top_k": "many"}}, 400, "options.top_k"),
        ("generate", {"model": NAME, "prompt": "a " * 6000, "raw": True}, 400, "maximum context length"),
        ("wibble", {}, 404, "there is no '/api/wibble'"),
    ],
)  # fmt: skip
def test_errors(server: Served, path: str, body: dict[str, Any], status_code: int, says: str) -> None:
    """They have Ollama's shape and status, and say what is wrong with which field, in a stream and without one."""
    for stream in (True, False):
        response = post(server, f"/api/{path}", {**body, "stream": stream})
        assert response.status_code == status_code
        (error,) = response.json().values()
        assert list(response.json()) == ["error"]
        assert says in error


def test_a_conversation_that_is_too_long(alone: Served) -> None:
    """Its oldest messages are left out, and the answer says so; without ``truncate`` it is refused."""
    server = alone
    turn = [{"role": "user", "content": "a " * 50}, {"role": "assistant", "content": "b"}]
    messages = [{"role": "system", "content": "S"}, *turn * 12, *ASKED]
    body = {"model": NAME, "messages": messages, "options": GREEDY, "stream": False}
    told = post(server, "/api/chat", body).json()
    assert told["message"]["content"]
    assert "were left out" in told["warnings"][0]
    assert 256 < told["prompt_eval_count"] < 512
    stream = [json.loads(line) for line in post(server, "/api/chat", {**body, "stream": True}).text.splitlines()]
    assert stream[-1]["warnings"] == told["warnings"]
    refused = post(server, "/api/chat", {**body, "truncate": False})
    assert refused.status_code == 400
    assert "maximum context length" in refused.json()["error"]
    short = post(server, "/api/chat", {**body, "messages": messages[-3:]}).json()
    assert "warnings" not in short


# Loading and unloading --------------------------------------------------------------------------------------------------


def test_loads_and_unloads(alone: Served, alone_client: ollama.Client) -> None:
    """An empty prompt loads a model, a keep_alive of 0 unloads it, and a request can say how long it stays."""
    client = alone_client
    assert client.generate(NAME, keep_alive=0).done_reason == "unload"
    assert status(alone) == "unloaded"
    assert client.generate(NAME, keep_alive=0).done_reason == "unload"
    assert status(alone) == "unloaded"
    assert client.chat(NAME).done_reason == "load"
    assert status(alone) == "ready"
    assert client.chat(NAME, ASKED, options=GREEDY, keep_alive=0).message.content
    wait_until(lambda: status(alone) == "unloaded")
    reply = client.chat(NAME, ASKED, options=GREEDY, keep_alive="30m")
    assert (reply.load_duration or 0) > (reply.eval_duration or 0) / 1000
    assert status(alone) == "ready"
    assert client.generate(NAME, keep_alive=-1).done_reason == "load"
    assert client.chat(NAME, [], keep_alive=0).done_reason == "unload"
    assert status(alone) == "unloaded"
