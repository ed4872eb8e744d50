"""What LlamaIndex's classes ask of a model, embeddings and a reranker, with small models; and messages that users send.

LlamaIndex has no standard tests for such classes, so all of these are ours. llama_index_uses.py has the others.

PYTHONPATH=tests python -m pytest -c /dev/null --rootdir . -o asyncio_mode=auto docs/integrations/llama_index_standard.py
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms import types
from llama_index.core.base.llms.base import BaseLLM
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, DocumentBlock, ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor

import offgrid_llama as og
from helpers import minilm
from offgrid_llama.integrations.engines import shared_engine
from offgrid_llama.integrations.llama_index import OffgridLlamaEmbedding, OffgridLlamaLLM, OffgridLlamaRerank
from offgrid_llama.integrations.llama_index.messages import messages_of

NAME = "smollm2-135m-instruct"
HAS_BLOCKS = hasattr(types, "ToolCallBlock")
THINKING = """{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.reasoning_content %}<think>
{{ message.reasoning_content }}
</think>

{% endif %}{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
<think>
{% endif %}"""
"""A template that begins each answer with reasoning."""


@pytest.fixture
def llm() -> OffgridLlamaLLM:
    return OffgridLlamaLLM(model=NAME, temperature=0, max_tokens=60)


async def nothing_runs() -> None:
    """Wait until the engine is idle, to the time limit of the test run if it never is."""
    while shared_engine(NAME).stats().n_running:
        await asyncio.sleep(0.01)


# What the classes ask ----------------------------------------------------------------------------------------------------


def test_classes_and_names() -> None:
    """They are of the classes that LlamaIndex looks for, and have names of their own."""
    assert issubclass(OffgridLlamaLLM, FunctionCallingLLM)
    assert issubclass(OffgridLlamaLLM, BaseLLM)
    assert issubclass(OffgridLlamaEmbedding, BaseEmbedding)
    assert issubclass(OffgridLlamaRerank, BaseNodePostprocessor)
    for kind in (OffgridLlamaLLM, OffgridLlamaEmbedding, OffgridLlamaRerank):
        assert kind.class_name() == kind.__name__
        assert not kind.__abstractmethods__


def test_metadata(llm: OffgridLlamaLLM) -> None:
    """The window is that of one request, and the room for answers ``max_tokens`` or LlamaIndex's default."""
    found = llm.metadata
    assert found.context_window == shared_engine(NAME).n_ctx_seq
    assert (found.num_output, found.model_name) == (60, NAME)
    assert found.is_chat_model
    assert found.is_function_calling_model
    assert OffgridLlamaLLM(model=NAME).metadata.num_output == 256
    assert not OffgridLlamaLLM(model=NAME, is_function_calling_model=False).metadata.is_function_calling_model


@pytest.mark.parametrize(
    "made",
    [
        OffgridLlamaLLM(
            model=NAME, temperature=0, stop=["."], engine_options={"n_ctx": 1024}, system_prompt="Be brief."
        ),
        OffgridLlamaEmbedding(model=NAME, query_prefix="query: "),
        OffgridLlamaRerank(model="reranker.gguf", top_n=2),
    ],
)
def test_it_is_written_down(made: Any) -> None:
    """A component is the same when it is made again of what LlamaIndex or pickle writes."""
    fields = made.to_dict()
    for again in (
        type(made).from_dict(fields), type(made).from_json(made.to_json()), pickle.loads(pickle.dumps(made)),
        copy.deepcopy(made), copy.copy(made), type(made).model_validate(json.loads(made.to_json())),
    ):  # fmt: skip
        assert again.to_dict() == fields
    assert fields["class_name"] == type(made).__name__


def test_with_an_object_it_is_written_down_by_the_path() -> None:
    """An Engine cannot leave its process, but its model's path can; copies share the Engine."""
    engine = shared_engine(NAME)
    made = OffgridLlamaLLM(model=engine, temperature=0, max_tokens=4)
    assert made.to_dict()["model"] == str(engine.model.path)
    assert pickle.loads(pickle.dumps(made)).model == str(engine.model.path)
    assert made.model is engine
    assert copy.deepcopy(made).model is engine
    assert made.complete("Hello").text
    with og.Model(minilm.path()) as model, og.Embedder(model) as embedder:
        embedding = OffgridLlamaEmbedding(model=embedder)
        assert json.loads(embedding.to_json())["model"] == str(minilm.path())
        assert len(embedding.get_text_embedding("a cat")) == embedder.n_embd


def test_unknown_arguments_are_refused(llm: OffgridLlamaLLM) -> None:
    """A misspelt argument is an error that names it; those that all services have are not."""
    assert OffgridLlamaLLM(model=NAME, api_key="none", timeout=1).model == NAME
    with pytest.raises(ValueError, match="temprature"):
        OffgridLlamaLLM(model=NAME, temprature=0)
    with pytest.raises(ValueError, match="model"):
        OffgridLlamaLLM(model=3)
    with pytest.raises(TypeError, match="temprature"):
        llm.complete("Hello", temprature=0)
    with pytest.raises(ValueError, match="n: "):
        llm.complete("Hello", n=2)
    with pytest.raises(TypeError, match="prompt must be a text, not int"):
        llm.complete(3)
    with pytest.raises(ValueError, match="messages must not be empty"):
        llm.chat([])


# Chats -------------------------------------------------------------------------------------------------------------------


def test_the_four_ways_are_the_same(llm: OffgridLlamaLLM) -> None:
    """Whole or streamed, on a loop or not, an answer is the same, and so are its numbers."""

    async def on_a_loop() -> list[ChatResponse]:
        streamed = [each async for each in await llm.astream_chat(asked)]
        return [await llm.achat(asked), streamed[-1]]

    asked = [ChatMessage(role="system", content="You are terse."), ChatMessage(role="user", content="What is 2+2?")]
    whole = llm.chat(asked)
    streamed = [*llm.stream_chat(asked)]
    assert "".join(each.delta for each in streamed) == whole.message.content
    assert all(each.raw is None for each in streamed[:-1])
    for other in (streamed[-1], *asyncio.run(on_a_loop())):
        assert other.message == whole.message
        for name in ("model", "finish_reason"):
            assert other.raw[name] == whole.raw[name]
        assert other.additional_kwargs["total_tokens"] == whole.additional_kwargs["total_tokens"]
    assert whole.raw["finish_reason"] in ("stop", "length")
    assert llm.chat(asked).raw["usage"]["prompt_tokens_details"]["cached_tokens"] > 10


def test_completions(llm: OffgridLlamaLLM) -> None:
    """A prompt is a message of the user, or, if it is formatted, what the model sees."""

    async def on_a_loop(formatted: bool) -> list[str]:
        streamed = [each async for each in await llm.astream_complete(prompt, formatted=formatted)]
        return [(await llm.acomplete(prompt, formatted=formatted)).text, streamed[-1].text]

    prompt = "What is 2+2?"
    assert llm.complete(prompt).text == llm.chat([ChatMessage(content=prompt)]).message.content
    plain = shared_engine(NAME).generate(prompt, max_tokens=60, temperature=0)
    raw = llm.complete(prompt, formatted=True)
    assert raw.text == plain.text
    assert raw.raw["usage"]["prompt_tokens"] == plain.usage.prompt_tokens
    for formatted in (False, True):
        whole = llm.complete(prompt, formatted=formatted)
        *_, last = llm.stream_complete(prompt, formatted=formatted)
        assert [whole.text] * 3 == [last.text, *asyncio.run(on_a_loop(formatted))]
    chat_only = OffgridLlamaLLM(model=NAME, max_tokens=4, reasoning_budget=5, additional_kwargs={"variables": {}})
    assert chat_only.complete(prompt, formatted=True, ignore_eos=True).text
    with pytest.raises(TypeError, match="tools"):
        llm.complete(prompt, formatted=True, tools=[])


def test_stop_and_limits(llm: OffgridLlamaLLM) -> None:
    """Stop strings end an answer; so does a limit, and ``raw`` says which."""
    assert llm.complete("Count to five.", max_tokens=3).raw["finish_reason"] == "length"
    stopping = OffgridLlamaLLM(model=NAME, temperature=0, stop=["e"])
    answer = stopping.complete("Name three animals.")
    assert "e" not in answer.text
    assert answer.raw["finish_reason"] == "stop"
    assert llm.complete("Hello", max_completion_tokens=2, max_tokens=None).raw["usage"]["completion_tokens"] == 2


@pytest.mark.skipif(not hasattr(types, "ThinkingBlock"), reason="this version of LlamaIndex has no such blocks")
def test_reasoning() -> None:
    """Reasoning is a block before the text, tells its tokens, grows in streams, and goes back."""
    given = {"max_tokens": 40, "reasoning_budget": 8, "additional_kwargs": {"template": THINKING}}
    llm = OffgridLlamaLLM(model=NAME, temperature=0, **given)
    asked = [ChatMessage(content="What is 2+2?")]
    whole = llm.chat(asked)
    thought, text = whole.message.blocks
    assert (thought.block_type, text.block_type) == ("thinking", "text")
    assert thought.num_tokens == whole.raw["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    streamed = [*llm.stream_chat(asked)]
    assert streamed[-1].message == whole.message
    assert "".join(each.additional_kwargs.get("thinking_delta", "") for each in streamed) == thought.content
    told = {"role": "assistant", "content": text.text, "reasoning_content": thought.content}
    assert messages_of([whole.message]) == [told]
    assert llm.complete("What is 2+2?").text == text.text


def test_logprobs(llm: OffgridLlamaLLM) -> None:
    """Each token has its own logprob first, then those of the most probable others."""
    whole = llm.complete("What is 2+2?", logprobs=2)
    assert len(whole.logprobs) == whole.raw["usage"]["completion_tokens"]
    assert all(2 <= len(each) <= 3 for each in whole.logprobs)
    assert "".join(each[0].token for each in whole.logprobs) == whole.text
    streamed = [*llm.stream_complete("What is 2+2?", logprobs=2)]
    assert sum(len(each.logprobs or ()) for each in streamed) == len(whole.logprobs)
    assert llm.complete("What is 2+2?").logprobs is None


def test_counted_tokens(llm: OffgridLlamaLLM) -> None:
    """LlamaIndex's counter has the engine's numbers, and its tokenizer may be the model's."""
    counter = TokenCountingHandler(tokenizer=llm.tokenize)
    told = OffgridLlamaLLM(model=NAME, max_tokens=8, callback_manager=CallbackManager([counter]))
    usage = told.complete("What is 2+2?").raw["usage"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"]
    assert counter.completion_llm_token_count == usage["completion_tokens"]
    *_, last = told.stream_chat([ChatMessage(content="What is 2+2?")])
    assert counter.prompt_llm_token_count == usage["prompt_tokens"] + last.raw["usage"]["prompt_tokens"]


async def test_many_at_once(llm: OffgridLlamaLLM) -> None:
    """Tasks and threads share one engine."""
    alone = [llm.complete(f"What is {n}+{n}?", max_tokens=8).text for n in range(6)]
    assert all(alone)
    together = await asyncio.gather(*(llm.acomplete(f"What is {n}+{n}?", max_tokens=8) for n in range(6)))
    assert all(each.text for each in together)
    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(lambda n: llm.complete(f"What is {n}+{n}?", max_tokens=8).text, range(6)))


async def test_what_is_given_up_is_cancelled(llm: OffgridLlamaLLM) -> None:
    """A task that is cancelled, and a stream that is closed or dropped, leave nothing running."""
    endless = {"ignore_eos": True, "max_tokens": 100_000}
    for asked in (llm.acomplete("Count.", **endless), llm.achat([ChatMessage(content="Count.")], **endless)):
        task = asyncio.ensure_future(asked)
        while not shared_engine(NAME).stats().n_running:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_runs()
    for formatted in (False, True):
        stream = await llm.astream_complete("Count.", formatted=formatted, **endless)
        await anext(stream)
        await stream.aclose()
        await nothing_runs()
        pieces = llm.stream_complete("Count.", formatted=formatted, **endless)
        next(pieces)
        pieces.close()
        await nothing_runs()
    llm.stream_chat([ChatMessage(content="Count.")], **endless)  # never begun, and dropped
    await nothing_runs()
    reading = asyncio.ensure_future(_read_all(await llm.astream_chat([ChatMessage(content="Count.")], **endless)))
    await asyncio.sleep(0.2)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await nothing_runs()


async def _read_all(stream: Any) -> None:
    async for _ in stream:
        pass


# Messages ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [ImageBlock(url="http://localhost/a.png"), DocumentBlock(data=b"%PDF")])
def test_files_are_refused(llm: OffgridLlamaLLM, block: Any) -> None:
    """The error names the block: the model fetches nothing, and reads no documents."""
    blocks = [TextBlock(text="What is this?"), block]
    with pytest.raises(ValueError, match=r"messages\[1\]\.blocks\[1\].*(image|document)"):
        llm.chat([ChatMessage(role="system", content="See."), ChatMessage(role="user", blocks=blocks)])
    with pytest.raises(TypeError, match=r"messages\[0\] must be a ChatMessage, not dict"):
        llm.chat([{"role": "user", "content": "Hello"}])


def test_messages_are_told() -> None:
    """Texts are joined as LlamaIndex joins them; a role of another service is the assistant's; empty ones stay."""
    messages = [
        ChatMessage(role="developer", content="Be brief."), ChatMessage(role="user", blocks=[]),
        ChatMessage(role="user", blocks=[TextBlock(text="a"), TextBlock(text="b")]),
        ChatMessage(role="chatbot", content="c"),
    ]  # fmt: skip
    assert messages_of(messages) == [
        {"role": "developer", "content": "Be brief."}, {"role": "user", "content": ""},
        {"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"},
    ]  # fmt: skip


def test_calls_are_told() -> None:
    """Calls are read from where this and other models' classes have them, and results have the call's id."""
    shape = {"id": "a1", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}

    class Like:
        id = "a1"

        class function:  # noqa: N801  # as OpenAI's objects have it
            name = "weather"
            arguments = '{"city": "Bern"}'

    told = [{**shape, "type": "function"}]
    for calls in ([shape], [Like()]):
        message = ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": calls})
        assert messages_of([message]) == [{"role": "assistant", "content": "", "tool_calls": told}]
    direct = ChatMessage(role="assistant", content="rain", additional_kwargs={"tool_call_id": "a1"})
    assert messages_of([direct]) == [{"role": "assistant", "content": "rain"}]
    result = ChatMessage(role="tool", content="rain", additional_kwargs={"tool_call_id": "a1", "name": "weather"})
    assert messages_of([result]) == [{"role": "tool", "content": "rain", "name": "weather", "tool_call_id": "a1"}]


@pytest.mark.skipif(not HAS_BLOCKS, reason="this version of LlamaIndex has no such blocks")
def test_blocks_are_told() -> None:
    """Reasoning and calls are blocks; a mark for a cache says nothing; cited texts are texts."""
    blocks = [
        types.ThinkingBlock(content="hm"), types.TextBlock(text="a"),
        types.CitableBlock(title="t", source="s", content="cited"),
        types.CachePoint(cache_control=types.CacheControl(type="ephemeral")),
        types.ToolCallBlock(tool_call_id="a1", tool_name="now", tool_kwargs={}),
    ]  # fmt: skip
    call = {"id": "a1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    assert messages_of([ChatMessage(role="assistant", blocks=blocks)]) == [
        {"role": "assistant", "content": "a\ncited", "reasoning_content": "hm", "tool_calls": [call]}
    ]
