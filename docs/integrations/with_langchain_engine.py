"""LangChain on an engine of its own process: a chat model, tools, schemas, and embeddings.

python docs/integrations/with_langchain_engine.py
"""

from __future__ import annotations

import asyncio
from typing import Literal

from langchain_core.documents import Document
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel, Field

from offgrid_llama.integrations.langchain import ChatOffgridLlama, OffgridLlamaEmbeddings

NAME = "smollm2-135m-instruct"


class Person(BaseModel):
    """The shape of an answer."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


@tool  # type: ignore[untyped-decorator]
def weather(city: Literal["Bern", "Oslo"]) -> str:
    """Return the weather in a city."""
    return f"It is raining in {city}."


async def asynchronously(model: ChatOffgridLlama) -> None:
    """Stream an answer, and ask several times at once."""
    pieces = [piece.content async for piece in model.astream("What is 2+2?")]
    assert len(pieces) > 1
    answers = await model.abatch([f"What is {n}+{n}?" for n in range(8)])  # they share the engine's steps
    assert all(answer.content for answer in answers)


def main() -> None:
    """Ask, stream, call, read, search."""
    model = ChatOffgridLlama(model=NAME, temperature=0, max_tokens=40)
    answer = model.invoke([("system", "You are terse."), ("human", "What is 2+2?")])
    print(answer.content, answer.usage_metadata)
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["input_tokens"] > 10
    assert answer.response_metadata["model_name"] == NAME
    assert len(list(model.stream("What is 2+2?"))) > 1
    told = model.invoke("What is 2+2?", logprobs=True, top_logprobs=2).response_metadata["logprobs"]["content"]
    assert all(each["logprob"] <= 0 and len(each["top_logprobs"]) == 2 for each in told)
    assert len(model.batch(["What is 2+2?", "Name a color."])) == 2
    asyncio.run(asynchronously(model))

    messages = [HumanMessage("How is the weather in Bern?")]
    must_call = model.bind_tools([weather], tool_choice="weather", parallel_tool_calls=False, max_tokens=200)
    called = must_call.invoke(messages)
    print(called.tool_calls)
    messages += [called, *(weather.invoke(call) for call in called.tool_calls)]
    assert "It is raining in" in messages[-1].content
    reply = model.bind_tools([weather]).invoke(messages)
    print(reply.content)
    assert reply.usage_metadata["input_tokens"] > called.usage_metadata["input_tokens"]

    for method in ("json_schema", "function_calling"):
        person = model.with_structured_output(Person, method=method, max_tokens=200).invoke("Jason is 25.")
        assert isinstance(person, Person)
        print(repr(person))

    store = InMemoryVectorStore(OffgridLlamaEmbeddings(model=NAME))
    store.add_documents([Document(text) for text in ("A cat is on the mat.", "Oil is expensive.", "It rains in Oslo.")])
    (found,) = store.similarity_search("Oil is expensive.", k=1)
    assert found.page_content == "Oil is expensive."


if __name__ == "__main__":
    main()
