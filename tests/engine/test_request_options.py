"""The options of a request for its end, its cache, its logprobs and its adapters have their effect."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.adapters import write_lora
from helpers.engines import EOS, GREEDY, SURE, driven, make, turns
from helpers.twin import EXACT, tiny_llama
from offgrid_llama.engine import FinishReason

PROMPT = list(range(7, 40))
ENDING = og.SamplingParams(temperature=0, logit_bias={EOS: 1e9})


def test_an_end_that_comes_later(engine: og.Engine) -> None:
    """With min_tokens no token ends the text before; then the first one that may does."""
    for min_tokens in (0, 1, 7):
        said = engine.generate(PROMPT, max_tokens=20, sampling=ENDING, min_tokens=min_tokens)
        assert (len(said.tokens), said.finish_reason) == (min_tokens, FinishReason.STOP)


def test_min_tokens_changes_nothing_else(engine: og.Engine) -> None:
    """The tokens are those of a request without it, also behind the ones that it counts."""
    plain = engine.generate(PROMPT, max_tokens=30, sampling=SURE)
    assert engine.generate(PROMPT, max_tokens=30, sampling=SURE, min_tokens=10).tokens == plain.tokens


def test_no_end(engine: og.Engine) -> None:
    """With ignore_eos a text goes on to max_tokens."""
    said = engine.generate(PROMPT, max_tokens=20, sampling=ENDING, ignore_eos=True)
    assert (len(said.tokens), said.finish_reason) == (20, FinishReason.LENGTH)


def test_a_prompt_that_is_not_cached(engine: og.Engine) -> None:
    """It finds nothing that was computed before, and leaves nothing to later requests."""
    engine.generate(PROMPT, max_tokens=2, **GREEDY)
    assert engine.generate(PROMPT, max_tokens=2, cache_prompt=False, **GREEDY).usage.cached_tokens == 0
    other = [50, *PROMPT]
    engine.generate(other, max_tokens=2, cache_prompt=False, **GREEDY)
    assert engine.generate(other, max_tokens=2, **GREEDY).usage.cached_tokens == 0
    assert engine.generate(PROMPT, max_tokens=2, **GREEDY).usage.cached_tokens == len(PROMPT) - 1


def test_progress_of_a_prompt(letters: og.Model) -> None:
    """A stream tells what is cached when the prompt begins, and each part that is computed, up to the whole prompt."""
    prompt = [7 + i % 50 for i in range(150)]
    with make(letters) as engine:  # 64 tokens a step
        told = [piece.n_computed for piece in engine.stream(prompt, max_tokens=3, progress=True, **GREEDY)]
        numbers = [n for n in told if n is not None]
        assert numbers[0] == 0
        assert numbers[-1] == 150
        assert numbers == sorted(set(numbers))
        assert len(numbers) > 3
        again = [piece.n_computed for piece in engine.stream(prompt, max_tokens=3, progress=True, **GREEDY)]
        assert [n for n in again if n is not None] == [149, 150]
        assert all(piece.n_computed is None for piece in engine.stream(prompt, max_tokens=3, **GREEDY))


@pytest.mark.parametrize("discard", [None, 10])
def test_how_much_a_shift_removes(letters: og.Model, discard: int | None) -> None:
    """A full sequence loses n_discard tokens, or half of what it does not keep."""
    engine = driven(letters, 1, steps_in_a_call=1)
    with engine:
        completion = engine.submit([9] * 250, max_tokens=100, sampling=SURE, n_keep=6, n_discard=discard)
        lengths = []
        while turns(engine, 1):
            lengths.append(engine.sequences.views()[0].n_tokens)
        lost = [before - after for before, after in pairwise(lengths) if after < before]
        assert lost[0] == (discard or 125) - 1  # and a new one has come
        assert len(completion.tokens) == 100


@pytest.mark.parametrize("params", [og.SamplingParams(top_n_sigma=2.0, seed=1), og.SamplingParams(seed=1)])
def test_logprobs_with_every_sampler(engine: og.Engine, params: og.SamplingParams) -> None:
    """Samplers that take a chain report the same logprobs of the model as the others."""
    said = engine.generate(PROMPT, max_tokens=1, sampling=params, logprobs=5)
    usual = engine.generate(PROMPT, max_tokens=1, logprobs=5, **GREEDY)
    assert [token for token, _ in said.logprobs[0][1]] == [token for token, _ in usual.logprobs[0][1]]
    for (_, one), (_, other) in zip(said.logprobs[0][1], usual.logprobs[0][1], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    assert said.logprobs[0][0] <= said.logprobs[0][1][0][1]


def test_logprobs_of_what_was_drawn_from(engine: og.Engine) -> None:
    """With sampled_logprobs they are those that the samplers leave: 0 for a greedy token, and they add up to 1."""
    greedy = engine.generate(PROMPT, max_tokens=3, logprobs=5, sampled_logprobs=True, **GREEDY)
    assert [(own, [each for _, each in top]) for own, top in greedy.logprobs] == [(0.0, [0.0])] * 3
    assert greedy.tokens == engine.generate(PROMPT, max_tokens=3, **GREEDY).tokens
    params = og.SamplingParams(temperature=2, top_k=4, top_p=1, min_p=0, seed=5)
    drawn = engine.generate(PROMPT, max_tokens=3, logprobs=9, sampled_logprobs=True, sampling=params)
    for token, (own, top) in zip(drawn.tokens, drawn.logprobs, strict=True):
        assert len(top) == 4
        assert sum(math.exp(each) for _, each in top) == pytest.approx(1)
        assert dict(top)[token] == own


def test_an_end_by_the_text(engine: og.Engine) -> None:
    """``until`` ends an answer as max_tokens does; what it raises ends the request alone."""
    said = engine.generate(PROMPT, max_tokens=100, sampling=SURE, until=lambda text, _seconds: len(text) >= 9)
    assert said.finish_reason is FinishReason.LENGTH
    assert 9 <= len(said.text) < 100
    assert said.text == engine.generate(PROMPT, max_tokens=100, sampling=SURE).text[: len(said.text)]

    def fail(_text: str, _seconds: float) -> bool:
        raise LookupError("until")

    with pytest.raises(LookupError, match="until"):
        engine.generate(PROMPT, max_tokens=100, sampling=SURE, until=fail)
    assert engine.generate(PROMPT, max_tokens=1, **GREEDY).finish_reason is FinishReason.LENGTH


def test_draws_of_llama_cpp(letters: og.Model, engine: og.Engine) -> None:
    """With chain the same seed draws what a chain of llama.cpp draws; the quicker way draws otherwise."""
    params = og.SamplingParams(temperature=1.5, top_k=0, top_p=1, min_p=0, seed=5, logit_bias={EOS: -math.inf})
    expected: list[int] = []
    with og.Context(letters, n_ctx=256, n_batch=64, **EXACT) as context, params.chain(letters.vocab) as chain:
        batch = og.Batch(64)
        batch.add_sequence(PROMPT)
        for _ in range(20):
            context.decode(batch)
            expected.append(chain.sample(context, -1))
            batch.clear()
            batch.add(expected[-1], len(PROMPT) + len(expected) - 1, [0], logits=True)
    assert engine.generate(PROMPT, max_tokens=20, sampling=params, chain=True).tokens == expected
    assert engine.generate(PROMPT, max_tokens=20, sampling=params).tokens != expected


def test_adapters_of_a_request(letters: og.Model, tmp_path: Path) -> None:
    """Each request is computed with its own adapters alone, and finds only what these have computed."""
    write_lora(tmp_path / "lora.gguf", tiny_llama()[1], seed=3)
    with og.LoRA(letters, tmp_path / "lora.gguf") as lora:
        with make(letters) as engine:
            plain = engine.generate(PROMPT, max_tokens=10, sampling=SURE).tokens
        with make(letters, loras={lora: 1.0}) as engine:
            with_lora = engine.generate(PROMPT, max_tokens=10, sampling=SURE).tokens
        assert plain != with_lora
        with make(letters) as engine:
            some = [
                engine.submit(PROMPT, max_tokens=10, sampling=SURE, loras=loras)
                for loras in ({}, {lora: 1.0}, {}, {lora: 1})
            ]
            assert [each.result().tokens for each in some] == [plain, with_lora, plain, with_lora]
            again = engine.generate(PROMPT, max_tokens=10, sampling=SURE, loras={lora: 1.0})
            assert (again.tokens, again.usage.cached_tokens) == (with_lora, len(PROMPT) - 1)
            engine.set_loras({lora: 1.0})
            assert engine.generate(PROMPT, max_tokens=10, sampling=SURE).tokens == with_lora
            engine.set_loras({})
            assert engine.generate(PROMPT, max_tokens=10, sampling=SURE).tokens == plain
