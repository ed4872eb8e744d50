"""The proxy of litellm between clients and a server. python docs/clients/with_litellm_proxy.py [URL]

It starts the proxy, which takes 10 to 20 seconds, and asks it as openai and anthropic do. The proxy reaches the
server by two APIs, OpenAI's and Anthropic's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
model = "tinyllama-1.1b-chat.Q4_K_M"
key = "sk-a-key-of-the-tests-of-the-proxy"
config = {
    "model_list": [
        {
            "model_name": "chat",
            "litellm_params": {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": "none"},
        },
        {"model_name": "claude", "litellm_params": {"model": f"anthropic/{model}", "api_base": url, "api_key": "none"}},
    ]
}
schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}


@contextlib.contextmanager
def proxy() -> Iterator[str]:
    """Start the proxy; yield its URL."""
    with socket.socket() as held, tempfile.TemporaryDirectory() as folder:
        # While it is held, without listening, the system gives the port to no other program.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        settings, log = Path(folder, "config.yaml"), Path(folder, "log")
        settings.write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML, too
        command: list[str | Path] = [
            Path(sys.executable).with_name("litellm"),
            "--config",
            settings,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        variables = {**os.environ, "LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        with (
            log.open("w", encoding="utf-8") as output,
            subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output) as process,
        ):
            try:
                wait(f"http://127.0.0.1:{port}/health/liveliness", process)
                yield f"http://127.0.0.1:{port}"
            except BaseException:
                print(log.read_text(encoding="utf-8")[-5000:])
                raise
            finally:
                process.terminate()


def wait(ready: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the proxy answers; RuntimeError if it has ended, or takes longer than 5 minutes."""
    until = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(urllib.error.URLError, ConnectionError), urllib.request.urlopen(ready, timeout=60):
            return
        time.sleep(0.2)
    raise RuntimeError("the proxy has not started")


def ask_as_openai(client: openai.OpenAI, name: str) -> str:
    """An answer, a stream, a call of a tool, whole and streamed, an error."""
    options: Any = {"model": name, "temperature": 0, "max_tokens": 48}
    question: Any = {**options, "messages": [{"role": "user", "content": "What is 2+2?"}]}
    answer = client.chat.completions.create(**question)
    text = answer.choices[0].message.content
    assert text
    assert answer.choices[0].finish_reason == "stop"
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **question))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert answer.usage
    assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == [answer.usage.completion_tokens]

    asked: Any = {
        **options,
        "messages": [{"role": "user", "content": "How is the weather in Bern?"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": schema}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
    }
    [call] = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    assert call.type == "function"
    assert list(json.loads(call.function.arguments)) == ["city"]
    with client.chat.completions.stream(**asked) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert json.loads(streamed.function.arguments) == json.loads(call.function.arguments)
    said: Any = {"role": "assistant", "tool_calls": [call.model_dump()]}
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 25 degrees."}
    assert client.chat.completions.create(**{**question, "messages": [*asked["messages"], said, result]}).choices

    error = ""
    try:
        client.chat.completions.create(**{**question, "temperature": 9})
    except openai.BadRequestError as refused:
        error = str(refused)
    assert "temperature" in error
    return str(text)


def ask_as_anthropic(client: anthropic.Anthropic, name: str) -> str:
    """An answer, a stream, a streamed call of a tool, a count of tokens."""
    options: Any = {"model": name, "max_tokens": 48, "extra_body": {"temperature": 0}}
    question: Any = {**options, "messages": [{"role": "user", "content": "What is 2+2?"}]}
    [said] = client.messages.create(**question).content
    assert said.type == "text"
    with client.messages.stream(**question) as stream:
        assert "".join(stream.text_stream) == said.text
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    tools: Any = [{"name": "weather", "input_schema": schema}]
    with client.messages.stream(tools=tools, tool_choice=choice, **question) as stream:
        use = stream.get_final_message().content[0]
    assert use.type == "tool_use"
    assert list(use.input) == ["city"]
    assert client.messages.count_tokens(model=name, messages=question["messages"]).input_tokens > 10
    return str(said.text)


with proxy() as base:
    client = openai.OpenAI(base_url=f"{base}/v1", api_key=key, max_retries=0)
    claude = anthropic.Anthropic(base_url=base, api_key=key, max_retries=0)
    texts = {ask_as_openai(client, "chat"), ask_as_openai(client, "claude")}
    texts |= {ask_as_anthropic(claude, "chat"), ask_as_anthropic(claude, "claude")}
    assert len(texts) == 1  # the same model, in all four ways
    vectors = client.embeddings.create(model="chat", input=["a cat", "a dog"]).data
    assert len(vectors) == 2
    print(texts, len(vectors[0].embedding), "values in a vector")
