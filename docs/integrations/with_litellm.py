"""LiteLLM on engines of its own process: answers, streams, tools, schemas, vectors, and a router.

python docs/integrations/with_litellm.py
"""

from __future__ import annotations

import asyncio
import json

import litellm
from pydantic import BaseModel, Field

from offgrid_llama.integrations.litellm import register

MODEL = "offgrid/smollm2-135m-instruct"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather", "description": "Return the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Bern", "Oslo"]}}, "required": ["city"]},
    },
}  # fmt: skip


class Person(BaseModel):
    """The shape of an answer."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def asked(text: str) -> list[dict[str, str]]:
    """Return a conversation of one message."""
    return [{"role": "user", "content": text}]


async def asynchronously() -> None:
    """Stream an answer, and ask several times at once: they share the engine's steps."""
    stream = await litellm.acompletion(MODEL, asked("What is 2+2?"), stream=True, max_tokens=20)
    pieces = [piece.choices[0].delta.content or "" async for piece in stream]
    assert "".join(pieces)
    many = (litellm.acompletion(MODEL, asked(f"What is {n}+{n}?"), max_tokens=20) for n in range(8))
    assert all(each.choices[0].message.content for each in await asyncio.gather(*many))


def main() -> None:
    """Ask, stream, call, read, embed, route."""
    register()
    answer = litellm.completion(MODEL, asked("What is 2+2?"), temperature=0, max_tokens=30)
    print(answer.choices[0].message.content, answer.usage)
    assert answer.usage.prompt_tokens > 10
    assert answer.usage.completion_tokens <= 30
    asyncio.run(asynchronously())

    call = {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    called = litellm.completion(MODEL, asked("How is the weather in Bern?"), max_tokens=200, **call)
    message = called.choices[0].message
    print(message.tool_calls[0].function)
    assert json.loads(message.tool_calls[0].function.arguments)["city"] in ("Bern", "Oslo")
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It is raining."}
    messages = [*asked("How is the weather in Bern?"), message, result]
    print(litellm.completion(MODEL, messages, tools=[WEATHER], max_tokens=30).choices[0].message.content)

    read = litellm.completion(MODEL, asked("Jason is 25."), response_format=Person, max_tokens=200)
    print(repr(Person.model_validate_json(read.choices[0].message.content)))

    vectors = litellm.embedding(MODEL, ["A cat is on the mat.", "It rains in Oslo."])
    assert len(vectors.data) == 2
    assert vectors.usage.prompt_tokens > 8

    router = litellm.Router([{"model_name": "small", "litellm_params": {"model": MODEL, "max_tokens": 20}}])
    print(router.completion("small", asked("Name a color.")).choices[0].message.content)


if __name__ == "__main__":
    main()
