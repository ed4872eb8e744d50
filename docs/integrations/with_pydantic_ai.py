"""Pydantic AI on an engine of its own process: agents with tools, outputs of a type in each mode, streams, and embeddings.

python docs/integrations/with_pydantic_ai.py
"""

from __future__ import annotations

import asyncio
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent, Embedder, ModelRetry, NativeOutput, PromptedOutput, RunContext, ToolOutput
from pydantic_ai.models.fallback import FallbackModel

from offgrid_llama.integrations.pydantic_ai import (
    OffgridLlamaEmbeddingModel,
    OffgridLlamaModel,
    OffgridLlamaModelSettings,
)

NAME = "smollm2-135m-instruct"
MODEL = OffgridLlamaModel(NAME, settings=OffgridLlamaModelSettings(temperature=0, max_tokens=200))


class Person(BaseModel):
    """The shape of an answer."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def weather(context: RunContext[None], city: Literal["Bern", "Oslo"]) -> str:
    """Return the weather in a city."""
    if context.retry == 0:
        raise ModelRetry("The station does not answer. Try again.")
    return f"It is raining in {city}."


def call_twice(context: RunContext[None]) -> dict[str, object]:
    """Have the tool called in the first two requests of a run: so small a model does not decide to by itself."""
    return {"tool_choice": ["weather"] if context.run_step <= 2 else "none", "parallel_tool_calls": False}


async def asynchronously() -> None:
    """Ask several times at once, and stream a text and an object."""
    agent = Agent(MODEL, instructions="You are terse.", model_settings={"max_tokens": 30})
    answers = await asyncio.gather(*(agent.run(f"What is {n}+{n}?") for n in range(8)))  # they share the engine's steps
    assert all(answer.output for answer in answers)

    async with agent.run_stream("What is 2+2?") as stream:
        deltas = [delta async for delta in stream.stream_text(delta=True, debounce_by=None)]
    assert len(deltas) > 1
    print("".join(deltas))

    reader = Agent(MODEL, output_type=NativeOutput(Person))
    async with reader.run_stream("Jason is 25.") as stream:
        people = [person async for person in stream.stream_output(debounce_by=None)]
    print(repr(people[-1]), "after", len(people))
    assert isinstance(people[-1], Person)


def tools() -> None:
    """Have a tool called, which asks for another call, and answer with its result."""
    agent = Agent(MODEL, tools=[weather], deps_type=type(None), model_settings=call_twice)
    messages = agent.run_sync("How is the weather in Bern?").all_messages()
    told = [
        part.content
        for message in messages
        for part in message.parts
        if part.part_kind in ("tool-return", "retry-prompt")
    ]
    print(told)
    assert [str(each).startswith("It is raining in") for each in told] == [False, True]
    assert messages[-1].parts


def main() -> None:
    """Ask, read, call, stream, search."""
    agent = Agent(MODEL, instructions="You are terse.", model_settings={"max_tokens": 40})
    first = agent.run_sync("What is 2+2?")
    print(first.output, first.response.usage)
    second = agent.run_sync("And 3+3?", message_history=first.all_messages())
    assert second.response.usage.input_tokens > first.response.usage.input_tokens

    for output in (NativeOutput(Person), ToolOutput(Person), PromptedOutput(Person)):
        person = Agent(MODEL, output_type=output).run_sync("Jason is 25.").output
        print(type(output).__name__, repr(person))
        assert isinstance(person, Person)

    tools()
    asyncio.run(asynchronously())

    two = FallbackModel(OffgridLlamaModel("a-model-that-is-not-there"), MODEL)
    assert Agent(two, model_settings={"max_tokens": 10}).run_sync("What is 2+2?").output

    embedder = Embedder(OffgridLlamaEmbeddingModel(NAME))
    found = embedder.embed_documents_sync(["A cat is on the mat.", "Oil is expensive."])
    assert [len(vector) for vector in found.embeddings] == [576, 576]


if __name__ == "__main__":
    main()
