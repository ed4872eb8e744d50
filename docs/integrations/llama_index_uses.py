"""What LlamaIndex makes of a small model: calls of tools, agents, objects, indices, query engines and pipelines.

PYTHONPATH=tests python -m pytest -c /dev/null --rootdir . -o asyncio_mode=auto docs/integrations/llama_index_uses.py
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import Document, PromptTemplate, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field, ValidationError

import offgrid_llama as og
from helpers import minilm, rerankers
from offgrid_llama.integrations.llama_index import OffgridLlamaEmbedding, OffgridLlamaLLM, OffgridLlamaRerank
from offgrid_llama.integrations.llama_index.messages import calls_of

NAME = "smollm2-135m-instruct"
PROMPT = PromptTemplate("Describe this person. {text}")


class Person(BaseModel):
    """A person."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)


class Sequel(BaseModel):
    """A list within an object, and a text that may have a colon in it."""

    people: list[Person] = Field(min_length=2, max_length=2)
    note: str = Field(max_length=20)


class Place(BaseModel):
    """The arguments of a tool."""

    city: Literal["Bern", "Oslo"]


def weather(city: str) -> str:
    """Return the weather in a city."""
    return f"It is raining in {city}."


def now() -> str:
    """Return the time."""
    return "noon"


WEATHER = FunctionTool.from_defaults(weather, fn_schema=Place)
NOW = FunctionTool.from_defaults(now)


@pytest.fixture
def llm() -> OffgridLlamaLLM:
    return OffgridLlamaLLM(model=NAME, temperature=0, max_tokens=60)


# Tools -------------------------------------------------------------------------------------------------------------------


def test_calls(llm: OffgridLlamaLLM) -> None:
    """A call that the model must make has arguments of the tool's schema; its result goes back."""
    history = [ChatMessage(content="You know the weather.", role="system")]
    response = llm.chat_with_tools([WEATHER, NOW], "How is Bern?", history, tool_choice="weather")
    assert len(history) == 1
    (call,) = llm.get_tool_calls_from_response(response)
    assert call.tool_name == "weather"
    assert call.tool_kwargs["city"] in ("Bern", "Oslo")
    assert response.raw["finish_reason"] == "tool_calls"
    result = ChatMessage(
        role="tool", content=weather(**call.tool_kwargs), additional_kwargs={"tool_call_id": call.tool_id}
    )
    asked = [*history, ChatMessage(content="How is Bern?"), response.message, result]
    told = llm.chat_with_tools([WEATHER], chat_history=asked)
    assert told.raw["usage"]["prompt_tokens"] > response.raw["usage"]["prompt_tokens"]
    free = llm.chat_with_tools([WEATHER], "Hello", tool_choice="none")
    assert llm.get_tool_calls_from_response(free, error_on_no_tool_call=False) == []
    with pytest.raises(ValueError, match="no tool calls"):
        llm.get_tool_calls_from_response(free)
    with pytest.raises(ValueError, match="tool_choice"):
        llm.chat_with_tools([WEATHER], "Hello", tool_choice="nothing")


def test_calls_of_streams(llm: OffgridLlamaLLM) -> None:
    """A call grows, with the arguments so far; the last response has it as a whole one has."""
    whole = llm.chat_with_tools([WEATHER], "How is Bern?", tool_required=True)
    streamed = [*llm.stream_chat_with_tools([WEATHER], "How is Bern?", tool_required=True)]
    several = [llm.get_tool_calls_from_response(each, error_on_no_tool_call=False) for each in streamed]
    (last,) = several[-1]
    (call,) = llm.get_tool_calls_from_response(whole)
    assert (last.tool_name, last.tool_kwargs) == (call.tool_name, call.tool_kwargs)
    assert next(each[0].tool_kwargs for each in several if each) in ({}, {"city": ""}, last.tool_kwargs)
    assert streamed[-1].message.additional_kwargs["tool_calls"][0]["function"]["name"] == "weather"


def test_calls_without_arguments_and_several(llm: OffgridLlamaLLM) -> None:
    """A tool may have no parameters; with leave an answer may have several calls."""
    response = llm.chat_with_tools([NOW], "What time is it?", tool_required=True)
    assert [call.tool_kwargs for call in llm.get_tool_calls_from_response(response)] == [{}]
    assert llm.predict_and_call([NOW], "What time is it?", tool_required=True).response == "noon"
    several = llm.chat_with_tools(
        [WEATHER, NOW], "Weather in Bern, weather in Oslo, and the time?", tool_required=True,
        allow_parallel_tool_calls=True, max_tokens=400,
    )  # fmt: skip
    assert llm.get_tool_calls_from_response(several)


async def test_predict_and_call(llm: OffgridLlamaLLM) -> None:
    """The call is carried out, on a loop or not."""
    asked = {"tools": [WEATHER], "user_msg": "How is Bern?", "tool_required": True}
    assert llm.predict_and_call(**asked).response.startswith("It is raining in")
    assert (await llm.apredict_and_call(**asked)).sources[0].tool_name == "weather"


def test_a_call_that_is_cut_off_is_an_error(llm: OffgridLlamaLLM) -> None:
    """No tool is called with half of its arguments: the error says why the answer has ended."""
    cut = llm.chat_with_tools([WEATHER], "How is Bern?", tool_required=True, max_tokens=12)
    assert cut.raw["finish_reason"] == "length"
    assert calls_of(cut.message)
    with pytest.raises(ValueError, match=r"'weather' are cut off.*'length'"):
        llm.get_tool_calls_from_response(cut)
    *_, last = llm.stream_chat_with_tools([WEATHER], "How is Bern?", tool_required=True, max_tokens=12)
    with pytest.raises(ValueError, match="cut off"):
        llm.get_tool_calls_from_response(last, error_on_no_tool_call=False)
    assert llm.chat([ChatMessage(content="How is Bern?"), cut.message, ChatMessage(content="Go on.")]).message.content


@pytest.mark.skipif(
    "initial_tool_choice" not in FunctionAgent.model_fields,
    reason="this version of LlamaIndex tells no agent what to call",
)
@pytest.mark.parametrize("streaming", [True, False])
async def test_a_function_agent(llm: OffgridLlamaLLM, streaming: bool) -> None:
    """An agent calls a tool, gets the result, and answers; its stream tells of calls and texts."""
    agent = FunctionAgent(
        tools=[WEATHER], llm=llm, initial_tool_choice="weather", allow_parallel_tool_calls=False, streaming=streaming,
        system_prompt="You know the weather.",
    )  # fmt: skip
    handler = agent.run(user_msg="How is the weather in Bern?")
    pieces = [event async for event in handler.stream_events() if isinstance(event, AgentStream)]
    told = await handler
    assert bool(pieces) == streaming
    assert told.tool_calls[0].tool_output.content.startswith("It is raining in")
    assert told.response.content


async def test_a_react_agent_runs(llm: OffgridLlamaLLM) -> None:
    """An agent that reads calls out of texts gets texts, whatever so small a model writes."""
    agent = ReActAgent(tools=[WEATHER], llm=llm)
    try:
        told = await agent.run(user_msg="How is the weather in Bern?", max_iterations=3)
    except Exception as error:
        assert "max iterations" in str(error).lower()  # noqa: PT017
    else:
        assert told.response.role == "assistant"


# Objects -----------------------------------------------------------------------------------------------------------------


async def test_objects(llm: OffgridLlamaLLM) -> None:
    """A class gives objects, in all ways that LlamaIndex has; the last of a stream is of the class."""
    person = llm.structured_predict(Person, PROMPT, text="Jason is 25.")
    assert isinstance(person, Person)
    assert await llm.astructured_predict(Person, PROMPT, text="Jason is 25.") == person
    streamed = [*llm.stream_structured_predict(Person, PROMPT, text="Jason is 25.")]
    assert streamed[-1] == person
    assert len(streamed) > 2
    later = [each async for each in await llm.astream_structured_predict(Person, PROMPT, text="Jason is 25.")]
    assert [each.model_dump() for each in later] == [each.model_dump() for each in streamed]
    structured = llm.as_structured_llm(Person)
    asked = [ChatMessage(content="Describe this person. Jason is 25.")]
    assert structured.chat(asked).raw == person
    assert (await structured.achat(asked)).raw == person
    assert structured.complete("Describe this person. Jason is 25.").raw == person
    *_, last = structured.stream_chat(asked)
    assert last.raw == person
    many = await asyncio.gather(*(llm.astructured_predict(Person, PROMPT, text=f"Ann is {n}.") for n in range(6)))
    assert all(isinstance(each, Person) for each in many)


def test_objects_in_objects(llm: OffgridLlamaLLM) -> None:
    """Lists and texts of an object grow."""
    streamed = [*llm.stream_structured_predict(Sequel, PROMPT, {"max_tokens": 200}, text="Ann is 3, and Bob is 4.")]
    assert isinstance(streamed[-1], Sequel)
    known = [len(each.people or ()) for each in streamed]
    assert known == sorted(known)
    assert known[-1] == 2


def test_an_object_that_is_cut_off_is_an_error(llm: OffgridLlamaLLM) -> None:
    """Half of an object is none."""
    with pytest.raises(ValueError, match="no whole Person: it has ended as 'length'"):
        llm.structured_predict(Person, PROMPT, {"max_tokens": 4}, text="Jason is 25.")
    with pytest.raises(ValueError, match="no whole Person"):
        list(llm.stream_structured_predict(Person, PROMPT, {"max_tokens": 4}, text="Jason is 25."))


def test_rules_that_no_schema_tells() -> None:
    """A rule of the class itself is checked, and breaking it is Pydantic's error."""

    class Never(BaseModel):
        size: Literal["small"]

        def model_post_init(self, context: Any) -> None:
            raise ValueError("never")

    with pytest.raises(ValidationError, match="never"):
        OffgridLlamaLLM(model=NAME, max_tokens=40).structured_predict(Never, PROMPT, text="A mouse.")


async def test_objects_as_arguments_of_a_call() -> None:
    """In LlamaIndex's mode of function calling, the object is what a tool is called with."""
    llm = OffgridLlamaLLM(model=NAME, temperature=0, max_tokens=100, pydantic_program_mode=PydanticProgramMode.FUNCTION)
    person = llm.structured_predict(Person, PROMPT, text="Jason is 25.")
    assert isinstance(person, Person)
    assert await llm.astructured_predict(Person, PROMPT, text="Jason is 25.") == person
    *_, last = llm.stream_structured_predict(Person, PROMPT, text="Jason is 25.")
    assert last is not None


# Indices -----------------------------------------------------------------------------------------------------------------


def test_embeddings() -> None:
    """Texts have the prefixes of their kinds, and vectors of length 1; many are embedded in one call."""
    path = str(minilm.path())
    plain = OffgridLlamaEmbedding(model=path)
    marked = OffgridLlamaEmbedding(model=path, query_prefix="query: ", text_prefix="passage: ", embed_batch_size=2)
    assert plain.model_name == path
    assert marked.get_query_embedding("a cat") == pytest.approx(plain.get_query_embedding("query: a cat"), abs=1e-4)
    vectors = marked.get_text_embedding_batch(["a cat", "a dog", "a mouse"])
    assert vectors == [
        pytest.approx(plain.get_text_embedding(f"passage: {text}"), abs=1e-4) for text in ("a cat", "a dog", "a mouse")
    ]
    assert sum(value * value for value in vectors[0]) == pytest.approx(1, abs=1e-3)
    assert plain.similarity(vectors[0], vectors[0]) == pytest.approx(1, abs=1e-3)
    with pytest.raises(og.ContextLengthError):
        plain.get_text_embedding("cat " * 600)
    assert OffgridLlamaEmbedding(model=path, truncate=True).get_text_embedding("cat " * 600)


async def test_embeddings_on_a_loop() -> None:
    """The async methods give the same vectors, of many tasks at once, too."""
    embedding = OffgridLlamaEmbedding(model=str(minilm.path()), embed_batch_size=3)
    texts = [f"text {n}" for n in range(10)]
    wanted = embedding.get_text_embedding_batch(texts)
    found = await embedding.aget_text_embedding_batch(texts)
    assert found == [pytest.approx(vector, abs=1e-4) for vector in wanted]
    alone = await asyncio.gather(*(embedding.aget_text_embedding(text) for text in texts))
    assert alone == [pytest.approx(vector, abs=1e-4) for vector in wanted]
    assert await embedding.aget_query_embedding("a") == pytest.approx(embedding.get_query_embedding("a"), abs=1e-4)


def test_the_reranker(tmp_path: Path) -> None:
    """The best nodes come first, as the Reranker ranks them, with their scores; the given ones stay as they are."""
    path = tmp_path / "reranker.gguf"
    rerankers.write_bert(path)
    nodes = [
        NodeWithScore(node=TextNode(text=text, id_=str(at)), score=0.5) for at, text in enumerate(rerankers.DOCUMENTS)
    ]
    reranker = OffgridLlamaRerank(model=path, top_n=2)
    found = reranker.postprocess_nodes(nodes, query_str=rerankers.QUERY)
    with og.Model(path) as model, og.Reranker(model) as own:
        wanted = own.rank(rerankers.QUERY, rerankers.DOCUMENTS, top_n=2)
        shared = OffgridLlamaRerank(model=own, top_n=None)
        assert len(shared.postprocess_nodes(nodes, query_str=rerankers.QUERY)) == len(nodes)
    assert [node.node.node_id for node in found] == [str(each.document) for each in wanted]
    assert [node.score for node in found] == pytest.approx([each.score for each in wanted])
    assert all(node.score == 0.5 for node in nodes)
    assert asyncio.run(reranker.apostprocess_nodes(nodes, query_str=rerankers.QUERY)) == found
    assert reranker.postprocess_nodes([], query_str="what") == []
    with pytest.raises(ValueError, match="query"):
        reranker.postprocess_nodes(nodes)


async def test_a_query_engine_with_a_reranker(llm: OffgridLlamaLLM, tmp_path: Path) -> None:
    """Documents are found, ranked anew, and put before the model; streams and tasks, too."""
    path = tmp_path / "reranker.gguf"
    rerankers.write_bert(path)
    Settings.tokenizer = llm.tokenize
    documents = [Document(text=text or "nothing") for text in rerankers.DOCUMENTS]
    index = VectorStoreIndex.from_documents(documents, embed_model=OffgridLlamaEmbedding(model=str(minilm.path())))
    given = {"llm": llm, "similarity_top_k": 4, "node_postprocessors": [OffgridLlamaRerank(model=path, top_n=2)]}
    for mode in ("compact", "refine", "tree_summarize"):
        answer = index.as_query_engine(response_mode=mode, **given).query(rerankers.QUERY)
        assert len(answer.source_nodes) == 2
        assert str(answer)
    assert str(await index.as_query_engine(**given).aquery(rerankers.QUERY))
    streamed = index.as_query_engine(streaming=True, **given).query(rerankers.QUERY)
    assert "".join(streamed.response_gen)
    shaped = index.as_query_engine(output_cls=Person, **given).query("Who is it?")
    assert isinstance(shaped.response, Person)
    for mode in ("context", "condense_plus_context"):
        chat = index.as_chat_engine(chat_mode=mode, llm=llm)
        assert str(chat.chat("Where was the cat?"))
        assert "".join(chat.stream_chat("And the dog?").response_gen)


async def test_a_chat_engine_keeps_the_conversation(llm: OffgridLlamaLLM) -> None:
    """A second turn has the first one in its prompt."""
    chat = SimpleChatEngine.from_defaults(llm=llm)
    assert str(chat.chat("My name is Ann."))
    assert str(await chat.achat("What is my name?"))
    assert [message.role.value for message in chat.chat_history] == ["user", "assistant"] * 2


async def test_pipelines() -> None:
    """An ingestion pipeline embeds, in this process, on a loop, and in others."""
    transformations = [
        SentenceSplitter(chunk_size=64, chunk_overlap=0),
        OffgridLlamaEmbedding(model=str(minilm.path())),
    ]
    documents = [Document(text=f"This is text {n}.") for n in range(4)]
    nodes = IngestionPipeline(transformations=transformations).run(documents=documents)
    assert all(node.embedding for node in nodes)
    nodes = await IngestionPipeline(transformations=transformations).arun(documents=documents)
    assert all(node.embedding for node in nodes)
    nodes = IngestionPipeline(transformations=transformations[1:]).run(documents=documents, num_workers=2)
    assert all(node.embedding for node in nodes)


def test_chunks_of_the_default_size_fit() -> None:
    """LlamaIndex's chunks have 1,024 tokens of its own tokenizer, which a model with the positions takes."""
    text = " ".join(f"Sentence {n} is about the weather in Bern." for n in range(110))
    index = VectorStoreIndex.from_documents([Document(text=text)], embed_model=OffgridLlamaEmbedding(model=NAME))
    assert index.as_retriever().retrieve("Bern")


async def test_an_agent_that_answers_with_an_object(llm: OffgridLlamaLLM) -> None:
    """An agent's answer may be of a class."""
    agent = FunctionAgent(tools=[], llm=llm, output_cls=Person)
    told = await agent.run(user_msg="Jason is 25.")
    assert isinstance(told.get_pydantic_model(Person), Person)
