"""Calls of several clients: turns, and clients that leave."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.pools import Watched
from helpers.twin import LETTERS, write_tiny_llama
from helpers.vocabularies import vocabulary_file
from offgrid_llama.compat.llama_cpp.llama_tokenizer import LlamaTokenizer
from offgrid_llama.worker.calls import Calls
from offgrid_llama.worker.failures import RequestError
from offgrid_llama.worker.fair_pool import FairPool
from offgrid_llama.worker.thread_shares import ThreadShares

LONG = [[1, *range(7, 31)] * 20] * 60  # one fills a batch
SHORT = [[1, 7, 8]]


def with_calls(model: og.Model, use: Callable[[Calls, Watched], Any], *holds: int, vocab_only: bool = False) -> None:
    async def main() -> None:
        threads, pooled = FairPool(2, "test"), Watched(*holds)
        try:
            with og.Model(model.path, vocab_only=vocab_only) as own:
                await use(Calls(own, None, {}, ThreadShares(None, 1), threads=threads, pooled=pooled), pooled)
        finally:
            threads.shutdown()
            pooled.shutdown()

    asyncio.run(main())


def test_embeddings_of_a_client_that_has_left_are_not_computed(tiny: og.Model) -> None:
    """After the batch that is under way there is no other one; without that, all of them come."""

    async def use(calls: Calls, pooled: Watched) -> None:
        embed = calls.functions["embed"]
        asked = asyncio.ensure_future(embed("a", texts=LONG))
        await pooled.reached(5)
        asked.cancel()
        pooled.go_on()
        with pytest.raises(asyncio.CancelledError):
            await asked
        n = len(pooled.log)
        whole = await embed("b", texts=SHORT)
        assert pooled.log[n:] == ["b"] * 2  # the second one finds no further batch
        assert len(whole["data"]) == 4 * whole["n_embd"]

    with_calls(tiny, use, 5)


def test_embeddings_of_two_clients_have_turns(tiny: og.Model) -> None:
    """A client with one text waits for a few batches of another, not for all; the vectors are those of Embedder."""

    async def use(calls: Calls, pooled: Watched) -> None:
        embed = calls.functions["embed"]
        asked = asyncio.ensure_future(embed("a", texts=LONG))
        await pooled.reached(5)
        answering = asyncio.ensure_future(embed("b", texts=SHORT))
        await pooled.called("b")
        pooled.go_on()
        short, long = await asyncio.gather(answering, asked)
        last = len(pooled.log) - pooled.log[::-1].index("b")
        assert pooled.log[5:last].count("a") <= 3
        with og.Embedder(tiny, pooling_type="mean", n_threads=1) as embedder:
            for found, texts in ((long, LONG), (short, SHORT)):
                vectors = np.frombuffer(found["data"], np.float32).reshape(-1, found["n_embd"])
                np.testing.assert_allclose(vectors, embedder.embed(texts), atol=1e-6)

    with_calls(tiny, use, 5)


def test_pieces_of_tokens(smollm2: og.Model) -> None:
    """Each different token has its piece once, as ``Vocab.piece`` gives it, however many different ones there are."""

    async def use(calls: Calls, pooled: Watched) -> None:
        del pooled
        vocab = smollm2.vocab
        texts = ("<|im_start|>Hello, hello!", "".join(vocab.detokenize([token]) + " " for token in range(300, 9000)))
        for text in texts:
            found = await calls.functions["tokenize"](
                "", text=text, add_special=False, parse_special=True, with_pieces=True
            )
            tokens = np.frombuffer(found["tokens"], np.int32).tolist()
            assert tokens == vocab.tokenize(text, add_special=False, parse_special=True)
            assert found["pieces"] == {token: vocab.piece(token, special=True) for token in set(tokens)}

    with_calls(smollm2, use)


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2", "bert-bge"])
def test_joined_pieces(llama_cpp_dir: Path, name: str) -> None:
    """The text of tokens is that of llama-cpp-python's tokenizer: spaces stay, but for the one behind BOS."""
    path = vocabulary_file(llama_cpp_dir, name)
    tokenizer = LlamaTokenizer.from_ggml_file(str(path))

    async def use(calls: Calls, pooled: Watched) -> None:
        del pooled
        join = calls.functions["join_pieces"]
        tokens = tokenizer.tokenize("Hello , wörld 🦙!".encode())
        for each in (tokens, tokens[1:], tokens[1:2], tokens[:1], []):
            assert await join("", tokens=each) == tokenizer.detokenize(each).decode()
        with pytest.raises(ValueError, match=r"tokens\[1\] must be from 0 to"):
            await join("", tokens=[1, 10**8])

    with og.Model(path, vocab_only=True) as model:
        with_calls(model, use, vocab_only=True)


LOOK = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def test_a_prompt_is_what_the_model_gets(tmp_path: Path) -> None:
    """The prompt of a conversation is rendered as for an answer: with tools by "tool_use", fitted to the template."""
    own = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tools = "{% for tool in tools %}<{{ tool.function.name }}>{% endfor %}"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    keys = {"tokenizer.chat_template": refusing + own, "tokenizer.chat_template.tool_use": tools + own}
    write_tiny_llama(tmp_path / "two.gguf", more={**LETTERS, **keys})
    asked = [{"role": "user", "content": "abc"}]

    async def use(calls: Calls, _pooled: Watched) -> None:
        render = calls.functions["template"]
        assert await render("a", conversation={"messages": asked, "tools": [LOOK]}) == "<look>abc"
        terse = [{"role": "developer", "content": "xyz"}, *asked]
        assert await render("a", conversation={"messages": terse}) == "xyz\n\nabc"

    with og.Model(tmp_path / "two.gguf") as model:
        with_calls(model, use)


def test_the_tokens_of_a_prompt_are_those_that_an_answer_needs(smollm2: og.Model) -> None:
    """The tokens of a conversation are counted as the engine counts them, tools included; errors name its fields."""
    messages = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "Look."}]

    async def use(calls: Calls, _pooled: Watched) -> None:
        for tools in ([], [LOOK]):
            with og.Engine(smollm2, n_seq_max=1, n_ctx=512, n_threads=1) as engine:
                expected = engine.chat(messages, tools=tools or None, max_tokens=1).result().usage.prompt_tokens
            assert await calls.functions["count"]("a", conversation={"messages": messages, "tools": tools}) == expected
        wrong = {"messages": messages, "tools": [LOOK, LOOK], "names": {"tools": "tools.0"}}
        with pytest.raises(RequestError, match=r"tools\.0 has 'look' more than once"):
            await calls.functions["count"]("a", conversation=wrong)

    with_calls(smollm2, use)
