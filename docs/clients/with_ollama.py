"""ollama against a server: answers, streams, a tool, vectors, models, refusals. python docs/clients/with_ollama.py [URL]"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import ollama
from pydantic import BaseModel, Field

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
client = ollama.Client(host=url)  # without a host, that of the variable OLLAMA_HOST
model = "smollm2:135m"
options = {"temperature": 0, "num_predict": 64}
asked = [{"role": "user", "content": "What is 2+2?"}]


class Person(BaseModel):
    """A person in a text."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def weather(city: str) -> str:
    """Return the weather of a city.

    Args:
        city: the name of the city
    """
    return f"It is sunny in {city}."


reply = client.chat(model, asked, options=options)
text = reply.message.content
assert text
print(text)
*parts, last = client.chat(model, asked, options=options, stream=True)
assert "".join(part.message.content or "" for part in parts) == text
assert last.done_reason == "stop"
print(f"{last.eval_count} tokens, {(last.eval_count or 0) / (last.eval_duration or 1) * 1e9:.0f} a second")

messages: list[Any] = [
    {"role": "user", "content": "How is the weather in Bern?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Bern"}}}]},
    {"role": "tool", "tool_name": "weather", "content": weather("Bern")},
]
print(client.chat(model, messages, tools=[weather], options=options).message.content)

*pieces, last_piece = client.generate(model, "What is 2+2?", options=options, stream=True)
assert "".join(piece.response or "" for piece in pieces)
assert last_piece.done
assert last_piece.context
if knows_think := "think" in inspect.signature(client.chat).parameters:  # from 0.5 on
    assert client.chat("thinker", asked, think=True, options=options).message.thinking
    assert not client.chat("thinker", asked, think=False, options=options).message.thinking

told = client.generate(model, "Jason is 25 years old.", format=Person.model_json_schema(), options=options)
person = Person.model_validate_json(told.response or "")
print(repr(person))
first = client.generate(model, "My name is Jason.", options=options)
again = client.generate(model, "What is my name?", context=first.context, options=options)
assert len(again.context or ()) > len(first.context or ())

vectors = client.embed(model, ["a cat", "a dog"]).embeddings
assert len(vectors) == 2
print(len(vectors[0]), "values in a vector")

assert any(each.model == "smollm2-135m-instruct:latest" for each in client.list().models)
shown = client.show(model)
assert "completion" in (shown.capabilities or ())
client.generate(model, keep_alive="10m")
assert [each.model for each in client.ps().models]
assert "thinking" in (client.show("thinker").capabilities or ())
refused: dict[str, int] = {}
requests: dict[str, Callable[[], object]] = {
    "chat": lambda: client.chat("no-such-model", asked),
    "show": lambda: client.show("no-such-model"),
    "pull": lambda: client.pull("smollm2:135m"),
    "pull as a stream": lambda: list(client.pull("smollm2:135m", stream=True)),
    "copy": lambda: client.copy(model, "another"),
    "delete": lambda: client.delete(model),
}
if knows_think:
    requests["think"] = lambda: client.chat(model, asked, think=True)
for name, request in requests.items():
    try:
        request()
    except ollama.ResponseError as error:
        refused[name] = error.status_code
print(refused)
# The setting manage_models lets clients pull, copy and delete.
managing = dict.fromkeys(["pull", "pull as a stream", "copy", "delete"], 403)
assert refused == {"chat": 404, "show": 404, **managing, **({"think": 400} if knows_think else {})}
