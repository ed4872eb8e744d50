"""Scores of continuations: those of a plain log_softmax, also with a cache, and beside other requests."""

from __future__ import annotations

import asyncio
import math
import random
from typing import Any

import pytest

import offgrid_llama as og
from helpers.engines import EOS, GREEDY, N_CTX_SEQ, SURE, Faulty, driven, idle, logprobs_of, make, settle, turns

CLOSE = 2e-5


def check(model: og.Model, prompt: list[int], continuation: list[int], score: og.Score) -> None:
    """Compare a score with what is expected."""
    rows = logprobs_of(model, [*prompt, *continuation])[len(prompt) - 1 : -1]
    own = [rows[i, token] for i, token in enumerate(continuation)]
    assert score.tokens == tuple(continuation)
    assert score.logprobs == pytest.approx(own, abs=CLOSE)
    assert score.logprob == pytest.approx(sum(own), abs=CLOSE * len(own))
    assert score.mean_logprob == pytest.approx(sum(own) / len(own), abs=CLOSE)
    assert score.n_tokens == len(continuation)
    best = rows.max(axis=1)
    if all(abs(each - top) > CLOSE or each == top for each, top in zip(own, best, strict=True)):
        assert score.is_greedy == all(each == top for each, top in zip(own, best, strict=True))


def texts(rng: random.Random, n: int, most: int) -> list[list[int]]:
    """Return ``n`` token sequences, in which tokens end texts, too."""
    return [[rng.choice([EOS, *range(7, 61)]) for _ in range(rng.randint(1, most))] for _ in range(n)]


@pytest.mark.parametrize("n_outputs_max", [4, 7, 64])
@pytest.mark.parametrize("n", [1, 2, 17, 64, 65, 200])
def test_they_are_those_of_a_log_softmax(letters: og.Model, n: int, n_outputs_max: int) -> None:
    """For prompts of each length, and however few rows with logits a step has."""
    rng = random.Random(n)
    prompt = [rng.randrange(7, 61) for _ in range(n)]
    continuations = [*texts(rng, 9, 40), [9], [9, 9], [9, 9, 9]]
    with make(letters, n_outputs_max=n_outputs_max) as engine:
        for _ in range(2):  # the second time all of it is cached
            scores = engine.score(prompt, continuations)
            for continuation, score in zip(continuations, scores, strict=True):
                check(letters, prompt, continuation, score)
        assert engine.score(prompt, []) == []
        idle(engine)


def test_what_greedy_sampling_writes_is_greedy(engine: og.Engine, letters: og.Model) -> None:
    """And the same with another last token is not."""
    prompt = [7, 8, 9, 10]
    written = engine.generate(prompt, max_tokens=6, sampling=SURE).tokens
    other = [*written[:-1], (written[-1] - 7 + 1) % 50 + 7]
    assert (
        sum(each.is_greedy for each in engine.score(prompt, [[token] for token in range(letters.vocab.n_tokens)])) == 1
    )
    first, second = engine.score(prompt, [written, other])
    assert (first.is_greedy, second.is_greedy) == (True, False)
    assert first.logprob > second.logprob
    check(letters, prompt, other, second)


def test_the_prompt_is_computed_once(letters: og.Model) -> None:
    """Of all continuations of a long prompt, and not at all where a request has computed it."""
    prompt, continuations = [*range(7, 57)] * 3, [[each] for each in range(7, 57)]
    with make(letters) as engine:
        engine.score(prompt, continuations)
        computed = engine.stats().prompt_tokens - engine.stats().prompt_tokens_cached
        assert computed <= len(prompt) + len(continuations)
        engine.generate([*prompt, 9], max_tokens=1, **GREEDY)
        before = engine.stats()
        engine.score([*prompt, 9], [[8, 8]])
        after = engine.stats()
        cached = after.prompt_tokens_cached - before.prompt_tokens_cached
        assert (after.prompt_tokens - before.prompt_tokens, cached) == (len(prompt) + 2, len(prompt))


@pytest.mark.parametrize("kv_unified", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_in_a_crowd(letters: og.Model, kv_unified: bool, seed: int) -> None:
    """Continuations of several prompts, prompts with logprobs, and answers share steps."""
    rng = random.Random(seed)
    with make(letters, n_outputs_max=9, kv_unified=kv_unified) as engine:
        prompts = texts(rng, 4, 80)
        pairs = [(prompt, each) for prompt in prompts for each in texts(rng, 12, 20)]
        rng.shuffle(pairs)
        others = [engine.submit(prompt, max_tokens=9, sampling=SURE, prompt_logprobs=1) for prompt in prompts]
        scores = list(engine.score_pairs(pairs))
        for (prompt, continuation), score in zip(pairs, scores, strict=True):
            check(letters, prompt, continuation, score)
        for other in others:
            assert len(other.result().tokens) == 9
        settle(engine)
        idle(engine)


def test_a_deterministic_engine(letters: og.Model) -> None:
    """A score is the same to the bit cold, cached, alone and in a crowd."""
    rng = random.Random(3)
    prompt, continuations = texts(rng, 1, 180)[0], texts(rng, 8, 30)
    with make(letters, deterministic=True, n_batch=200) as engine:
        alone = [engine.score(prompt, [each])[0] for each in continuations]
        others = [engine.submit(each, max_tokens=9, sampling=SURE) for each in texts(rng, 6, 150)]
        assert engine.score(prompt, continuations) == alone
        for other in others:
            other.result()
    with make(letters, deterministic=True, n_batch=200) as engine:
        assert engine.score(prompt, continuations) == alone


def test_decodes_that_fail(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was lost is computed again; the continuation that is at fault fails alone."""
    with make(letters) as engine:
        faulty = Faulty(engine, monkeypatch, 5, og.DecodeFailed("broken", code=-3, memory_restored=False))
        prompt = [*range(7, 57)]
        with pytest.raises(og.DecodeFailed):
            engine.score(prompt, [[7], [5, 8, 9], [8]])
        assert faulty.failures
        check(letters, prompt, [9, 10], engine.score(prompt, [[9, 10]])[0])
        settle(engine)
        idle(engine)


def test_texts(smollm2: og.Model) -> None:
    """A prompt and its continuation are tokenized together; the scores are those of the tokens behind the prompt's own."""
    vocab, prompt = smollm2.vocab, "The capital of France is"
    with og.Engine(smollm2, n_seq_max=2, n_ctx=512) as engine:
        paris, london, nothing_alike = engine.score(prompt, [" Paris", " London", "ing"])
        assert paris.is_greedy
        assert paris.logprob > london.logprob > nothing_alike.logprob
        assert list(paris.tokens) == vocab.tokenize(" Paris", add_special=False)
        assert engine.score(vocab.tokenize(prompt), [" Paris"])[0].tokens == paris.tokens
        merged = engine.score("The capital of France is Par", ["is"])[0]  # its tokens hide where the prompt ends
        assert vocab.detokenize(list(merged.tokens)) == " Paris"
        apart = engine.score("Par", ["is"])[0]  # no token comes before " Paris"
        assert list(apart.tokens) == vocab.tokenize("is", add_special=False)
        assert engine.score(b"The capital of France is".decode(), [b" Paris"])[0].tokens == paris.tokens


def test_an_error_cancels_the_rest(letters: og.Model) -> None:
    """Also while its traceback is kept, as a notebook does."""
    with driven(letters) as engine:
        with pytest.raises(ValueError, match=r"pairs\[5\]") as kept:
            list(engine.score_pairs([*[([7, 8], [9])] * 5, ([7], [])]))
        turns(engine)
        assert engine.stats().finished == {"cancelled": 5}
        idle(engine)
        del kept


def test_an_interrupted_wait_cancels_the_rest(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same."""

    def interrupted(self: og.Completion) -> None:
        raise KeyboardInterrupt

    with driven(letters) as engine:
        monkeypatch.setattr(og.Completion, "result", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            engine.score([7, 8], [[9]] * 5)
        turns(engine)
        assert engine.stats().finished["cancelled"] >= 4
        idle(engine)
        del kept


def test_on_an_event_loop(engine: og.Engine) -> None:
    """The same, beside other tasks; a task that is cancelled cancels its requests."""
    prompt, continuations = [7, 8, 9], [[each, 9] for each in range(7, 57)]

    async def main() -> list[og.Score]:
        doomed = asyncio.create_task(engine.score_async([8, *prompt], continuations * 4))
        scores = await engine.score_async(prompt, continuations)
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        return scores

    assert [each.tokens for each in asyncio.run(main())] == [tuple(each) for each in continuations]
    settle(engine)
    idle(engine)


def test_those_that_are_left_cancel_the_rest(letters: og.Model) -> None:
    """Pairs are taken as they are needed, and what was submitted of them is cancelled when the iterator ends."""
    taken = 0

    def pairs() -> Any:
        nonlocal taken
        for each in range(10_000):
            taken += 1
            yield [7, 8, 7 + each % 50], [9]

    with make(letters) as engine:
        scores = engine.score_pairs(pairs())
        assert next(scores).tokens == (9,)
        assert taken <= 8 * 4
        scores.close()  # type: ignore[attr-defined]
        settle(engine)
        assert engine.stats().finished.get("length", 0) + engine.stats().finished.get("stop", 0) <= 8 * 4 + 1
        idle(engine)


def test_an_argument_of_the_wrong_kind(engine: og.Engine) -> None:
    """The error names it."""
    for prompt, continuations, kind, told in (
        ([7], [[]], ValueError, r"continuations\[0\] gives no tokens"),
        ([7], [[8], ""], ValueError, r"continuations\[1\] gives no tokens"),
        ([], [[8]], ValueError, "prompt gives no tokens"),
        ([7], [[8], [62]], ValueError, r"continuations\[1\]\[0\]"),
        ([7], "text", TypeError, "put it into a list"),
        ([7], [9], TypeError, r"continuations\[0\]"),
        ([7] * 250, [[8] * 8], og.ContextLengthError, "256"),
    ):
        with pytest.raises(kind, match=told):
            engine.score(prompt, continuations)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Engine.submit\(\) does"):
        engine.score([7], [[8]], max_tokens=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"pairs\[1\]"):
        list(engine.score_pairs([([7], [8]), ([7], [])]))
    engine.close()
    with pytest.raises(og.ClosedError):
        engine.score([7], [[8]])


def test_a_long_continuation_of_which_one_token_fits_no_more(letters: og.Model) -> None:
    """Prompt and continuation may fill the sequence, and one token more: nothing is generated behind the last."""
    with make(letters, 1) as engine:
        prompt, continuation = [7] * 100, [8] * (N_CTX_SEQ - 100)
        score = engine.score(prompt, [continuation])[0]
        assert len(score.logprobs) == N_CTX_SEQ - 100
        assert all(math.isfinite(each) for each in score.logprobs)
