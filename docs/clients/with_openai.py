"""openai against a server: chats, tools, vectors, models, errors. python docs/clients/with_openai.py [URL]"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai
from pydantic import BaseModel, Field

url = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:11611"
weather: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
        },
    },
}


class Person(BaseModel):
    """A person in a text."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
chat: Any = client.chat.completions if hasattr(client.chat.completions, "stream") else client.beta.chat.completions
options: Any = {"model": "tinyllama-1.1b-chat.Q4_K_M", "max_tokens": 64, "temperature": 0}
question: Any = {**options, "messages": [{"role": "user", "content": "What is 2+2?"}]}
answer = client.chat.completions.create(**question)
text = answer.choices[0].message.content
assert text
assert answer.choices[0].finish_reason == "stop"
chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **question))
assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
assert answer.usage
assert chunks[-1].usage
assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens

asked: Any = {**options, "messages": [{"role": "user", "content": "How is the weather in Bern?"}], "tools": [weather]}
with chat.stream(tool_choice="required", parallel_tool_calls=False, **asked) as stream:
    kinds = {event.type for event in stream}
    choice = stream.get_final_completion().choices[0]
[call] = choice.message.tool_calls or []
assert choice.finish_reason == "tool_calls"
assert call.function.name == "weather"
assert list(json.loads(call.function.arguments)) == ["city"]
assert "tool_calls.function.arguments.done" in kinds
named: Any = {"type": "function", "function": {"name": "weather"}}
reply = client.chat.completions.create(tool_choice=named, parallel_tool_calls=False, **asked)
[whole] = reply.choices[0].message.tool_calls or []
assert whole.type == "function"
assert json.loads(whole.function.arguments) == json.loads(call.function.arguments)
result: Any = {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 25 degrees."}
said: Any = {"role": "assistant", "tool_calls": [whole.model_dump() | {"id": call.id}]}
asked["messages"] += [said, result]
assert client.chat.completions.create(**asked).choices[0].message.content

parsed = chat.parse(response_format=Person, **{**options, "messages": [{"role": "user", "content": "Jason is 25."}]})
person = parsed.choices[0].message.parsed
assert isinstance(person, Person)

thought = client.chat.completions.create(**{**question, "model": "thinker"}, extra_body={"reasoning_budget": 4})
reasoning: Any = thought.choices[0].message
assert reasoning.reasoning_content
assert reasoning.content

assert client.completions.create(prompt="2+2=", **{**options, "max_tokens": 4}).choices[0].text
texts = ["a cat", "a dog"]
# The client asks for base64 where nothing else is said, and makes numbers of it.
vectors = [each.embedding for each in client.embeddings.create(model=options["model"], input=texts).data]
numbers = [
    each.embedding
    for each in client.embeddings.create(model=options["model"], input=texts, encoding_format="float").data
]
assert [len(vector) for vector in vectors] == [len(vector) for vector in numbers]
assert max(abs(a - b) for a, b in zip(vectors[1], numbers[1], strict=True)) < 1e-3

assert options["model"] in [model.id for model in client.models.list()]
assert client.models.retrieve("thinker").id == "thinker"
refused: list[tuple[str | None, str | None]] = []
for change in {"model": "none"}, {"temperature": 9}:
    try:
        client.chat.completions.create(**{**question, **change})
    except (openai.NotFoundError, openai.BadRequestError) as error:
        refused.append((error.code, error.param))
assert refused == [("model_not_found", "model"), ("invalid_value", "temperature")]
print(openai.__version__, text, call.function.name, call.function.arguments, repr(person))
