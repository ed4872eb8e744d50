"""Logprobs of prompts through the worker and OpenAI's dialect: exact, and as harnesses and clients read them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.engines import logprobs_of
from helpers.twin import EXACT, LETTERS, write_tiny_llama
from offgrid_llama.server.dialects.openai import CompletionWriter, read_completion
from offgrid_llama.server.dialects.openai_schemas import CompletionRequest
from offgrid_llama.worker.failures import RequestError
from offgrid_llama.worker.fair_pool import FairPool
from offgrid_llama.worker.frames import Answered, Chunk, Generate
from offgrid_llama.worker.generation import Texts
from offgrid_llama.worker.requests import TextRequests

EOS = 2
CLOSE = 2e-5


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Engine]:
    """Of a tiny llama whose tokens are letters; one of them ends a text."""
    path = tmp_path_factory.mktemp("logprobs") / "letters.gguf"
    write_tiny_llama(path, more={**LETTERS, "tokenizer.ggml.eos_token_id": EOS})
    with og.Model(path) as model, og.Engine(model, n_seq_max=4, n_ctx=1024, **EXACT) as engine:
        yield engine


class Sent:
    """A channel that keeps what is sent."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def send(self, frame: Any) -> None:
        self.frames.append(frame)


def answered(engine: og.Engine, body: dict[str, Any]) -> tuple[list[Any], CompletionWriter]:
    """Return the frames that a request of /v1/completions gives, and the writer of its response."""
    asked = read_completion(CompletionRequest.model_validate({"seed": 1, "temperature": 0, **body}))

    async def main() -> list[Any]:
        threads, sent = FairPool(1, "logprobs"), Sent()
        try:
            assert isinstance(asked.what, Texts)
            await TextRequests(engine, {}, threads).answer(
                Generate(1, asked.what, asked.stream, ""), asked.what, sent  # type: ignore[arg-type]
            )  # fmt: skip
        finally:
            threads.shutdown()
        return sent.frames

    writer = asked.writer("m")
    assert isinstance(writer, CompletionWriter)
    return asyncio.run(main()), writer


def whole(engine: og.Engine, **body: Any) -> dict[str, Any]:
    """Return the body of the response."""
    frames, writer = answered(engine, body)
    assert isinstance(frames[-1], Answered)
    return writer.whole(frames[-1])


PROMPTS = [[7, 8, 9, 12, 12, 40, EOS, 11], [50, 51], [9], list(range(7, 57)) * 3]


@pytest.mark.parametrize("max_tokens", [0, 1, 6])
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one", "several"])
def test_echo_with_logprobs(engine: og.Engine, prompts: list[list[int]], max_tokens: int) -> None:
    """The logprobs of an answer begin with its prompt's, of which the first has none; places are those in the text."""
    body = whole(engine, prompt=prompts, echo=True, logprobs=2, max_tokens=max_tokens)
    assert [choice["index"] for choice in body["choices"]] == list(range(len(prompts)))
    n_completion = 0
    for prompt, choice in zip(prompts, body["choices"], strict=True):
        told = choice["logprobs"]
        n = len(told["tokens"])
        assert n == len(told["token_logprobs"]) == len(told["top_logprobs"]) == len(told["text_offset"])
        assert len(prompt) + (max_tokens > 0) <= n <= len(prompt) + max_tokens
        n_completion += n - len(prompt)
        assert (told["token_logprobs"][0], told["top_logprobs"][0]) == (None, None)
        expected = logprobs_of(engine.model, prompt)
        vocab = engine.model.vocab
        for i, token in enumerate(prompt[1:]):
            assert told["token_logprobs"][i + 1] == pytest.approx(expected[i, token], abs=CLOSE)
            best = int(expected[i].argmax())
            top = told["top_logprobs"][i + 1]
            assert max(top.values()) == pytest.approx(expected[i, best], abs=CLOSE)
            assert (told["token_logprobs"][i + 1] == max(top.values())) == (best == token)  # as harnesses find out
            assert told["tokens"][i + 1] in top
            assert told["tokens"][i + 1] == vocab.detokenize([token], unparse_special=True)
        for token, place in zip(told["tokens"], told["text_offset"], strict=True):
            assert choice["text"][place : place + len(token)] == token or place == len(choice["text"])
        if max_tokens == 0:
            assert choice["text"] == vocab.detokenize(prompt, unparse_special=True) == "".join(told["tokens"])
            assert choice["finish_reason"] == "length"
    assert body["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert (body["usage"]["completion_tokens"] == 0) == (max_tokens == 0)
    assert n_completion >= body["usage"]["completion_tokens"]


def test_the_token_that_ends_a_text_is_told(engine: og.Engine) -> None:
    """Harnesses leave out the last token, which they take for the one that was generated."""
    prompt = PROMPTS[0]
    for bias, ends in ((-100, False), (100, True)):
        choice = whole(
            engine, prompt=prompt, echo=True, logprobs=1, max_tokens=1, logit_bias={str(EOS): bias}
        )["choices"][0]  # fmt: skip
        assert choice["finish_reason"] == ("stop" if ends else "length")
        assert len(choice["logprobs"]["tokens"]) == len(prompt) + 1
        assert choice["logprobs"]["token_logprobs"][-1] < 0
        assert (choice["logprobs"]["text_offset"][-1] == len(choice["text"])) == ends


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_streams(engine: og.Engine, max_tokens: int) -> None:
    """The first event of each choice has the prompt and its logprobs; together they are what comes at once."""
    body = {"prompt": PROMPTS, "echo": True, "logprobs": 2, "max_tokens": max_tokens, "n": 2}
    at_once = whole(engine, **body)["choices"]
    frames, writer = answered(engine, {**body, "stream": True})
    *chunks, last = frames
    assert isinstance(last, Answered)
    texts, told = [""] * len(at_once), [dict[str, list[Any]]() for _ in at_once]
    for chunk in chunks:
        assert isinstance(chunk, Chunk)
        choice = writer._choice(chunk)
        texts[chunk.index] += choice["text"]
        for name, values in (choice["logprobs"] or {}).items():
            told[chunk.index].setdefault(name, []).extend(values)
    assert texts == [choice["text"] for choice in at_once]
    for one, other in zip(told, at_once, strict=True):
        for name, values in other["logprobs"].items():
            if name in ("tokens", "text_offset"):
                assert one[name] == values
            elif name == "token_logprobs":
                assert one[name][1:] == pytest.approx(values[1:], abs=CLOSE)
            else:
                assert [each and list(each) for each in one[name]] == [each and list(each) for each in values]


def test_prompt_logprobs(engine: og.Engine) -> None:
    """As vLLM tells them: by token id, for each prompt, beside the logprobs of the answer."""
    body = whole(engine, prompt=PROMPTS[:2], prompt_logprobs=3, max_tokens=2, n=2)
    assert len(body["choices"]) == 4
    for i, choice in enumerate(body["choices"]):
        prompt, told = PROMPTS[i // 2], choice["prompt_logprobs"]
        expected = logprobs_of(engine.model, prompt)
        assert choice["logprobs"] is None
        assert told[0] is None
        for at, token in enumerate(prompt[1:]):
            best = np.argsort(-expected[at], kind="stable")[:3].tolist()
            assert set(told[at + 1]) == {str(token), *map(str, best)}
            assert [told[at + 1][str(each)]["rank"] for each in best] == [1, 2, 3]
            rank = told[at + 1][str(token)]["rank"]
            assert (expected[at] > expected[at, token] + CLOSE).sum() < rank
            assert rank <= (expected[at] >= expected[at, token] - CLOSE).sum()
            assert told[at + 1][str(token)]["logprob"] == pytest.approx(expected[at, token], abs=CLOSE)


def test_a_text_that_the_vocabulary_begins(smollm2: og.Model) -> None:
    """The tokens of a prompt as text join to it, even if the vocabulary adds something; so do those of broken characters."""
    del smollm2
    for prompt in ("The capital", [1, 2, 3]):
        with og.Engine("smollm2-135m-instruct", n_seq_max=1, n_ctx=64, n_threads=1) as engine:
            choice = whole(engine, prompt=prompt, echo=True, logprobs=1, max_tokens=0)["choices"][0]
        assert "".join(choice["logprobs"]["tokens"]) == choice["text"]


def test_the_best_of_several(engine: og.Engine) -> None:
    """They are the ones with the largest mean logprob, the best first; all tokens are counted."""
    hot = {"prompt": PROMPTS[:2], "temperature": 2, "max_tokens": 6, "seed": 5, "logit_bias": {str(EOS): 4}}
    frames, _ = answered(engine, {**hot, "n": 8, "echo": True, "logprobs": 0})
    tokens = frames[-1].tokens
    best = whole(engine, **hot, n=2, best_of=8)
    told = whole(engine, **hot, n=2, best_of=8, logprobs=1)
    assert best["usage"]["completion_tokens"] == tokens.completion
    assert [choice["index"] for choice in best["choices"]] == [0, 1, 2, 3]
    assert all(choice["logprobs"] is None for choice in best["choices"])
    assert [each["text"] for each in told["choices"]] == [each["text"] for each in best["choices"]]
    for at, prompt in enumerate(PROMPTS[:2]):
        some = []
        for message in frames[-1].messages[8 * at : 8 * at + 8]:
            own = [each.logprob for each in message.logprobs]  # with the token that ends it
            echo = engine.model.vocab.detokenize(prompt, unparse_special=True)
            some.append((sum(own) / len(own), message.content.removeprefix(echo)))
        texts = [text for _, text in sorted(some, key=lambda each: -each[0])[:2]]
        assert [choice["text"] for choice in best["choices"][2 * at : 2 * at + 2]] == texts
        assert len({text for _, text in some}) > 4


def test_too_many_at_once(engine: og.Engine) -> None:
    """They are refused, by the field that asks for them, before all prompts are computed."""
    many = {"prompt": [[7] * 200] * 150, "max_tokens": 0}
    for more, name in (({"echo": True, "logprobs": 20}, "logprobs"), ({"prompt_logprobs": 20}, "prompt_logprobs")):
        with pytest.raises(RequestError, match=f"^{name}: ") as refused:
            answered(engine, {**many, **more})
        assert refused.value.param == name
