"""Haystack on an engine of its own process: a pipeline, tools, schemas, streams, embedders, and a ranker.

python docs/integrations/with_haystack.py
"""

import asyncio
from typing import Annotated, Literal

from haystack import Document, Pipeline
from haystack.components.builders import ChatPromptBuilder
from haystack.components.retrievers.in_memory import InMemoryEmbeddingRetriever
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack.document_stores.in_memory import InMemoryDocumentStore
from haystack.tools import create_tool_from_function
from pydantic import BaseModel, Field

from offgrid_llama.integrations.haystack import (
    OffgridLlamaChatGenerator,
    OffgridLlamaDocumentEmbedder,
    OffgridLlamaTextEmbedder,
)

NAME = "smollm2-135m-instruct"
TEXTS = ("A cat is on the mat.", "Oil is expensive.", "It rains in Oslo.")


class Person(BaseModel):
    """The shape of an answer."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


def weather(city: Annotated[Literal["Bern", "Oslo"], "the city"]) -> str:
    """Return the weather in a city."""
    return f"It is raining in {city}."


def searching() -> None:
    """Answer from documents, by a pipeline that is written down and read again."""
    store = InMemoryDocumentStore()
    store.write_documents(
        OffgridLlamaDocumentEmbedder(NAME).run([Document(content=text) for text in TEXTS])["documents"]
    )
    pipeline = Pipeline()
    pipeline.add_component("query", OffgridLlamaTextEmbedder(NAME))
    pipeline.add_component("found", InMemoryEmbeddingRetriever(store, top_k=1))
    asked = [ChatMessage.from_user("{% for each in documents %}{{ each.content }} {% endfor %}What is expensive?")]
    pipeline.add_component("prompt", ChatPromptBuilder(asked, required_variables=["documents"]))
    kwargs = {"temperature": 0, "max_tokens": 20}
    pipeline.add_component("answer", OffgridLlamaChatGenerator(NAME, generation_kwargs=kwargs))
    pipeline.connect("query.embedding", "found.query_embedding")
    pipeline.connect("found.documents", "prompt.documents")
    pipeline.connect("prompt.prompt", "answer.messages")
    found = pipeline.run({"query": {"text": "Oil is expensive."}}, include_outputs_from={"found"})
    assert found["found"]["documents"][0].content == "Oil is expensive."
    print(found["answer"]["replies"][0].text)
    assert "OffgridLlamaChatGenerator" in pipeline.dumps()


async def asynchronously(generator: OffgridLlamaChatGenerator) -> None:
    """Stream an answer, and ask several times at once: they share the engine's steps."""
    pieces: list[StreamingChunk] = []

    async def show(piece: StreamingChunk) -> None:
        pieces.append(piece)

    answer = (await generator.run_async([ChatMessage.from_user("What is 2+2?")], streaming_callback=show))["replies"][0]
    assert "".join(piece.content for piece in pieces) == answer.text
    asked = ([ChatMessage.from_user(f"What is {n}+{n}?")] for n in range(8))
    answers = await asyncio.gather(*(generator.run_async(messages) for messages in asked))
    assert all(each["replies"][0].text for each in answers)


def main() -> None:
    """Ask, call, read, stream, search."""
    generator = OffgridLlamaChatGenerator(NAME, generation_kwargs={"temperature": 0, "max_tokens": 40})
    answer = generator.run([ChatMessage.from_system("You are terse."), ChatMessage.from_user("What is 2+2?")])[
        "replies"
    ][0]
    print(answer.text, answer.meta["usage"])
    assert answer.meta["usage"]["prompt_tokens"] > 10
    asyncio.run(asynchronously(generator))

    messages = [ChatMessage.from_user("How is the weather in Bern?")]
    tool = create_tool_from_function(weather)
    must_call = {"tool_choice": "weather", "parallel_tool_calls": False, "max_tokens": 200}
    called = generator.run(messages, tools=[tool], generation_kwargs=must_call)["replies"][0]
    print(called.tool_call)
    result = tool.invoke(**called.tool_call.arguments)
    assert "It is raining in" in result
    messages += [called, ChatMessage.from_tool(result, origin=called.tool_call)]
    print(generator.run(messages, tools=[tool])["replies"][0].text)

    schema = {"response_format": Person, "max_tokens": 200}
    read = generator.run([ChatMessage.from_user("Jason is 25.")], generation_kwargs=schema)["replies"][0]
    print(repr(Person.model_validate_json(read.text)))
    searching()


if __name__ == "__main__":
    main()
