"""LlamaIndex on an engine of its own process: chats, objects, an agent with a tool, and an index of documents.

python docs/integrations/with_llama_index.py
"""

from __future__ import annotations

import asyncio
from typing import Literal

from llama_index.core import Document, PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from offgrid_llama.integrations.engines import shared_engine
from offgrid_llama.integrations.llama_index import OffgridLlamaEmbedding, OffgridLlamaLLM

NAME = "smollm2-135m-instruct"
TEXTS = ("A cat is on the mat.", "Oil is expensive.", "It rains in Oslo.")


class Person(BaseModel):
    """The shape of an answer."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


class Place(BaseModel):
    """The arguments of a tool."""

    city: Literal["Bern", "Oslo"]


def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"It is raining in {city}."


def chats(llm: OffgridLlamaLLM) -> None:
    """Ask, as a whole and as a stream."""
    answer = llm.chat([ChatMessage(role="system", content="You are terse."), ChatMessage(content="What is 2+2?")])
    print(answer.message.content, answer.raw)
    assert answer.raw["usage"]["prompt_tokens"] > 10
    *before, last = llm.stream_complete("What is 2+2?")
    assert before
    assert "".join(each.delta for each in [*before, last]) == last.text


def objects(llm: OffgridLlamaLLM) -> None:
    """Read an object out of a text: a grammar holds the answer to the schema."""
    prompt = PromptTemplate("Describe this person. {text}")
    person = llm.structured_predict(Person, prompt, text="Jason is 25.")
    print(repr(person))
    *_, last = llm.stream_structured_predict(Person, prompt, text="Jason is 25.")
    assert last == person


async def an_agent(llm: OffgridLlamaLLM) -> None:
    """Let an agent call a tool, and then answer; so small a model is told to call it."""
    agent = FunctionAgent(
        tools=[FunctionTool.from_defaults(weather, fn_schema=Place)], llm=llm, initial_tool_choice="weather",
        allow_parallel_tool_calls=False,
    )  # fmt: skip
    told = await agent.run(user_msg="How is the weather in Bern?")
    print([call.tool_kwargs for call in told.tool_calls], told)
    assert told.tool_calls[0].tool_output.content.startswith("It is raining in")


async def at_once(llm: OffgridLlamaLLM) -> None:
    """Ask several times at once, which shares the engine's steps; and leave a stream, which cancels its request."""
    answers = await asyncio.gather(*(llm.acomplete(f"What is {n}+{n}?") for n in range(8)))
    assert all(answer.text for answer in answers)
    stream = await llm.astream_complete("Count.", ignore_eos=True, max_tokens=4000)
    await anext(stream)
    await stream.aclose()
    while shared_engine(NAME).stats().n_running:
        await asyncio.sleep(0.01)


def an_index(llm: OffgridLlamaLLM) -> None:
    """Answer a question with what an index of documents finds."""
    Settings.tokenizer = llm.tokenize  # chunks and prompts are measured with the model's own tokens
    embeddings = OffgridLlamaEmbedding(model=NAME)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=embeddings)
    (found,) = index.as_retriever(similarity_top_k=1).retrieve("Oil is expensive.")
    assert found.text == "Oil is expensive."
    answer = index.as_query_engine(llm=llm, similarity_top_k=2).query("Where does it rain?")
    print(answer)
    assert len(answer.source_nodes) == 2


def main() -> None:
    """Chats, objects, an agent, an index."""
    llm = OffgridLlamaLLM(model=NAME, temperature=0, max_tokens=40)
    chats(llm)
    objects(llm)
    asyncio.run(an_agent(llm))
    asyncio.run(at_once(llm))
    an_index(llm)


if __name__ == "__main__":
    main()
