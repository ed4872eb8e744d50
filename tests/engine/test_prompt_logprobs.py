"""Logprobs of prompts: those of a plain log_softmax, also beside other requests, with a cache, and after failures."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.engines import (
    ENDLESS,
    EOS,
    GREEDY,
    N_CTX_SEQ,
    SURE,
    Faulty,
    driven,
    idle,
    logprobs_of,
    make,
    runner_of,
    settle,
    turns,
)
from helpers.twin import LETTERS, tiny_llama, write_gguf
from offgrid_llama.engine.completion import TokenLogprobs

CLOSE = 2e-5


def check(model: og.Model, prompt: list[int], found: list[TokenLogprobs | None], n_top: int) -> None:
    """Compare what was found of a prompt with what is expected."""
    logprobs = logprobs_of(model, prompt)
    assert len(found) == len(prompt)
    assert found[0] is None
    for i, each in enumerate(found[1:]):
        assert each is not None
        own, top = each
        assert own == pytest.approx(logprobs[i, prompt[i + 1]], abs=CLOSE)
        assert [token for token, _ in top] == list(np.argsort(-logprobs[i], kind="stable")[:n_top])
        assert [logprob for _, logprob in top] == pytest.approx(np.sort(logprobs[i])[::-1][:n_top], abs=CLOSE)


def check_ranks(model: og.Model, prompt: list[int], found: list[int | None]) -> None:
    """Compare the ranks of a prompt's tokens with how many tokens are at least as probable."""
    logprobs = logprobs_of(model, prompt)
    assert found[0] is None
    for i, (token, rank) in enumerate(zip(prompt[1:], found[1:], strict=True)):
        own = logprobs[i, token]
        assert rank is not None
        assert (logprobs[i] > own + CLOSE).sum() < rank <= (logprobs[i] >= own - CLOSE).sum()


def prompt_of(n: int, seed: int = 1) -> list[int]:
    """Return a prompt in which tokens end texts, too."""
    rng = random.Random(seed)
    return [rng.choice([EOS, *range(7, 61)]) for _ in range(n)]


@pytest.mark.parametrize("n_outputs_max", [4, 7, 64])
@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 200, N_CTX_SEQ - 1])
def test_they_are_those_of_a_log_softmax(letters: og.Model, n: int, n_outputs_max: int) -> None:
    """For prompts of each length, and however few rows with logits a step has."""
    with make(letters, n_outputs_max=n_outputs_max) as engine:
        prompt = prompt_of(n)
        found = engine.generate(prompt, max_tokens=1, prompt_logprobs=3, **GREEDY)
        check(letters, prompt, found.prompt_logprobs, 3)
        check_ranks(letters, prompt, found.prompt_ranks)
        plain = engine.generate(prompt, max_tokens=1, **GREEDY)
        assert (plain.prompt_logprobs, plain.prompt_ranks) == ([], [])
        own = engine.generate(prompt, max_tokens=1, prompt_logprobs=0, **GREEDY).prompt_logprobs
        assert [each and each[0] for each in own] == pytest.approx([each and each[0] for each in found.prompt_logprobs])
        assert all(each[1] == [] for each in own if each)


def test_a_step_of_many(letters: og.Model) -> None:
    """A group of rows has a limited width; a step has several then, also of texts that nothing ends."""
    with make(letters, 1, n_batch=200, n_outputs_max=200) as engine:
        for prompt in ([9, *[EOS] * 180], [*range(7, 57)] * 4):
            found = engine.generate(prompt, max_tokens=1, prompt_logprobs=2)
            check(letters, prompt, found.prompt_logprobs, 2)
            check_ranks(letters, prompt, found.prompt_ranks)


def test_the_answer_is_the_same(engine: og.Engine) -> None:
    """And so are its own logprobs."""
    prompt = prompt_of(80)
    plain = engine.generate(prompt, max_tokens=12, sampling=SURE, logprobs=2)
    scored = engine.generate(prompt, max_tokens=12, sampling=SURE, logprobs=2, prompt_logprobs=5)
    assert scored.tokens == plain.tokens
    assert [own for own, _ in scored.logprobs] == pytest.approx([own for own, _ in plain.logprobs], abs=CLOSE)


def test_nothing_cached_is_used_and_others_use_what_is_computed(engine: og.Engine, letters: og.Model) -> None:
    """A cached prefix has no logits. Of several answers only the first computes the prompt."""
    prompt = prompt_of(60)
    engine.generate(prompt, max_tokens=1, **GREEDY)
    found = engine.generate(prompt, max_tokens=2, n=3, prompt_logprobs=1, **GREEDY)
    assert found.usage.cached_tokens == 0
    check(letters, prompt, found.prompt_logprobs, 1)
    assert [answer.request.n_cached for answer in found.answers[1:]] == [59, 59]
    assert len({tuple(answer.tokens) for answer in found.answers}) == 1
    other = [50, *prompt]
    engine.generate(other, max_tokens=1, prompt_logprobs=1, **GREEDY)
    assert engine.generate(other, max_tokens=1, **GREEDY).usage.cached_tokens == 60


@pytest.mark.parametrize("kv_unified", [False, True])
def test_in_a_crowd(letters: og.Model, kv_unified: bool) -> None:
    """Prompts with and without, and answers that go on, share steps, none of which has too many rows with logits."""
    rng = random.Random(4)
    with driven(letters, 4, n_outputs_max=6, kv_unified=kv_unified) as engine:
        runner, fill, most = runner_of(engine), runner_of(engine)._step.run, 0

        def run(*arguments: Any) -> Any:
            nonlocal most
            most = max(most, len(runner._step._rows))
            assert len(set(runner._step._rows)) == len(runner._step._rows) <= 6
            return fill(*arguments)

        runner._step.run = run  # type: ignore[assignment, method-assign]
        asked = []
        for i in range(24):
            prompt, wanted = prompt_of(rng.randrange(1, 150), i), rng.choice([None, 0, 4])
            options: dict[str, Any] = {} if wanted is None else {"prompt_logprobs": wanted}
            asked.append((prompt, wanted, engine.submit(prompt, max_tokens=5, sampling=SURE, **options)))
            turns(engine, rng.randrange(6))
        turns(engine)
        for prompt, wanted, found in asked:
            assert found.result().tokens == engine_alone(letters, prompt)
            if wanted is not None:
                check(letters, prompt, found.prompt_logprobs, wanted)
        assert most > 4
        idle(engine)


def engine_alone(model: og.Model, prompt: list[int]) -> list[int]:
    with make(model, 1) as engine:
        return engine.generate(prompt, max_tokens=5, sampling=SURE).tokens


def test_decodes_that_fail(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were computed are computed again, and told once; the request that is at fault fails alone."""
    with make(letters) as engine:
        faulty = Faulty(engine, monkeypatch, 5, og.DecodeFailed("broken", code=-3, memory_restored=False))
        prompts, never = [prompt_of(100, i) for i in range(3)], og.SamplingParams(logit_bias={5: -math.inf})
        found = [engine.submit(prompt, max_tokens=3, prompt_logprobs=2, sampling=never) for prompt in prompts]
        bad = engine.submit([*prompt_of(90), 5, 8], max_tokens=3, prompt_logprobs=2)
        for prompt, each in zip(prompts, found, strict=True):
            check(letters, prompt, each.result(60).prompt_logprobs, 2)
        with pytest.raises(og.DecodeFailed):
            bad.result(60)
        assert faulty.failures
        settle(engine)
        idle(engine)


def test_a_cancelled_one(letters: og.Model) -> None:
    """Its prompt is not computed to the end, and what is known of it can be read."""
    with driven(letters, n_outputs_max=4) as engine:
        found = engine.submit(prompt_of(200), max_tokens=3, prompt_logprobs=1)
        turns(engine, 3)
        found.cancel()
        turns(engine)
        assert 1 < len(found.prompt_logprobs) < 30
        idle(engine)


def test_a_deterministic_engine(letters: og.Model) -> None:
    """Prompts are computed in the same pieces with and without them, alone and in a crowd: to the bit."""
    prompt = prompt_of(180)
    with make(letters, deterministic=True, n_batch=200) as engine:
        plain = engine.generate(prompt, max_tokens=8, sampling=ENDLESS)
        alone = engine.generate(prompt, max_tokens=8, sampling=ENDLESS, prompt_logprobs=3)
        others = [engine.submit(prompt_of(150, i), max_tokens=9, sampling=ENDLESS) for i in range(6)]
        crowded = engine.generate(prompt, max_tokens=8, sampling=ENDLESS, prompt_logprobs=3)
        for other in others:
            other.result()
        assert plain.tokens == alone.tokens == crowded.tokens
        assert alone.prompt_logprobs == crowded.prompt_logprobs
        check(letters, prompt, alone.prompt_logprobs, 3)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """A tiny llama whose logits of token 6 are no numbers."""
    path = tmp_path_factory.mktemp("broken") / "broken.gguf"
    keys, weights = tiny_llama()
    weights["output.weight"][6] = np.nan
    write_gguf(path, {**keys, **LETTERS, "tokenizer.ggml.eos_token_id": EOS}, weights)
    with og.Model(path) as model:
        yield model


@pytest.mark.parametrize("at", [1, 20, 99])
def test_logits_that_are_no_numbers(broken: og.Model, at: int) -> None:
    """The request fails, no other does, and nothing of it is found again: memory may lack some of it."""
    with make(broken) as engine:
        prompt = [*range(7, 57)] * 2
        prompt[at] = 6
        other = engine.submit([*range(8, 40)], max_tokens=20, sampling=SURE)
        with pytest.raises(og.SamplerError, match="prompt"):
            engine.generate(prompt, max_tokens=2, prompt_logprobs=1, sampling=SURE)
        assert len(other.result().tokens) == 20
        assert engine.generate(prompt, max_tokens=2, sampling=SURE).usage.cached_tokens == 0
        settle(engine)
        idle(engine)


def test_what_ends_a_text(engine: og.Engine) -> None:
    """The token that ends an answer has logprobs, too; one that a stop string ends has none."""
    sure = og.SamplingParams(temperature=0, logit_bias={EOS: 1e4})
    ended = engine.generate([7, 8, 9], max_tokens=5, sampling=sure, logprobs=2).answers[0]
    assert (ended.tokens, ended.end) == ([], EOS)
    assert ended.end_logprobs is not None
    assert ended.end_logprobs[0] < 0
    assert len(ended.end_logprobs[1]) == 2
    for options in ({"max_tokens": 2}, {"max_tokens": 9, "stop": engine.model.vocab.detokenize([58])}):
        other = engine.generate([7, 8, 9], sampling=SURE, logprobs=2, **options).answers[0]
        assert (other.end, other.end_logprobs) == (None, None)


def test_what_is_refused(engine: og.Engine) -> None:
    """Numbers of tokens that the vocabulary does not have, and what is no number."""
    for wrong in (-1, 62, 2**40):
        with pytest.raises(ValueError, match="prompt_logprobs"):
            engine.generate([7], prompt_logprobs=wrong)
    with pytest.raises(TypeError, match="prompt_logprobs"):
        engine.generate([7], prompt_logprobs="2")  # type: ignore[arg-type]
