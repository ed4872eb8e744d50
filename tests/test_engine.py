"""Engine: what its users see of it. Each request gets what it gets alone, whatever else comes, goes or fails."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import math
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from architectures import ARCHITECTURES
from conftest import RunChild
from twin import EXACT, LETTERS, tiny_llama, write_gguf, write_tiny_llama

import offgrid_llama as og
from offgrid_llama._capi import lib
from offgrid_llama.engine import Completion, FinishReason
from offgrid_llama.engine.guessing import Acceptance, Costs
from offgrid_llama.engine.runner import Runner
from offgrid_llama.engine.scheduler import Plan, Scheduler

N_CTX_SEQ = 256
EOS = 2
GREEDY: dict[str, Any] = {"temperature": 0}
ENDLESS = og.SamplingParams(seed=3, logit_bias={EOS: -math.inf})
SURE = replace(ENDLESS, temperature=0)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """A tiny llama whose tokens are letters; one of them ends a text."""
    path = tmp_path_factory.mktemp("engine") / "letters.gguf"
    write_tiny_llama(path, more={**LETTERS, "tokenizer.ggml.eos_token_id": EOS})
    with og.Model(path) as model:
        yield model


@pytest.fixture(scope="module")
def nearly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """One that often says what ``letters`` says."""
    path = tmp_path_factory.mktemp("engine") / "nearly.gguf"
    keys, weights = tiny_llama()
    weights["output.weight"] += 0.05 * np.random.default_rng(1).standard_normal((61, 64)).astype(np.float32)
    write_gguf(path, {**keys, **LETTERS, "tokenizer.ggml.eos_token_id": EOS}, weights)
    with og.Model(path) as model:
        yield model


def make(model: og.Model, n_seq_max: int = 4, **options: Any) -> og.Engine:
    return og.Engine(
        model, **{**EXACT, "n_seq_max": n_seq_max, "n_ctx": n_seq_max * N_CTX_SEQ, "n_batch": 64, **options}
    )


@pytest.fixture
def engine(letters: og.Model) -> Iterator[og.Engine]:
    """Four sequences of 256 tokens, 64 in a step."""
    with make(letters) as engine:
        yield engine


def driven(model: og.Model, n_seq_max: int = 4, **options: Any) -> og.Engine:
    """Return an engine without a thread: ``engine._loop._turn()`` makes a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offgrid_llama.engine.loop.Loop.start", lambda _: None)
        engine = make(model, n_seq_max, **options)
    engine._finalizer.detach()
    return engine


def turns(engine: og.Engine, n: int = 1_000_000) -> int:
    """Make ``n`` steps, or as many as there are; return how many."""
    loop = engine._loop
    for done in range(n):
        if not loop._scheduler.unfinished() and loop._inbox.empty():
            return done
        loop._turn()
    return n


def alone(model: og.Model, prompt: list[int], max_tokens: int, params: og.SamplingParams) -> tuple[list[int], str]:
    """Return the tokens that a loop over the nouns gives, and why they end."""
    tokens: list[int] = []
    with og.Context(model, n_ctx=N_CTX_SEQ, n_batch=N_CTX_SEQ, **EXACT) as context:
        sampler = og.FastSampler(model.vocab, params)
        batch = og.Batch(N_CTX_SEQ)
        batch.add_sequence(prompt)
        while True:
            context.decode(batch)
            token = sampler.sample(context, -1)
            if model.vocab.is_eog(token):
                return tokens, "stop"
            tokens.append(token)
            if len(tokens) == max_tokens or len(prompt) + len(tokens) > N_CTX_SEQ:
                return tokens, "length"
            batch.clear()
            batch.add(token, len(prompt) + len(tokens) - 1, [0], logits=True)


def on_the_edge(model: og.Model, prompt: list[int], params: og.SamplingParams, tokens: list[int], other: int) -> bool:
    """Return whether ``other`` in place of the last token is but rounding: noise of 1e-5 in its logits gives both."""
    rng = np.random.default_rng(1)
    sampler = og.FastSampler(model.vocab, params)
    with og.Context(model, n_ctx=N_CTX_SEQ, n_batch=N_CTX_SEQ, **EXACT) as context:
        batch = og.Batch(N_CTX_SEQ)
        batch.add_sequence(prompt)
        context.decode(batch)
        for i in range(len(tokens) - 1):
            assert sampler.sample(context, -1) == tokens[i]
            batch.clear()
            batch.add(tokens[i], len(prompt) + i, [0], logits=True)
            context.decode(batch)
        row = context.logits(-1)
        noisy = [(row + 1e-5 * rng.standard_normal(row.shape)).astype(np.float32) for _ in range(100)]
    return {sampler.clone().choose(each) for each in noisy} == {tokens[-1], other}


def idle(engine: og.Engine) -> None:
    """Check that nothing is left behind: no request, and memory holds what the slots say."""
    stats = engine.stats()
    assert (stats.n_waiting, stats.n_running) == (0, 0)
    assert stats.n_free + stats.n_cached == engine._loop._runner.context.n_seq_max  # type: ignore[attr-defined]
    slots = engine._loop._slots
    lengths = engine._loop._runner.lengths()
    assert [slots.n_computed(seq) for seq in range(len(lengths))] == lengths


def settle(engine: og.Engine) -> None:
    """Wait until the engine has ended the turn in which it has given out the last answer."""
    engine.generate([7], max_tokens=1)
    deadline = time.monotonic() + 30
    while engine.stats().n_running:
        assert time.monotonic() < deadline
        time.sleep(0.001)


# What comes out ---------------------------------------------------------------------------------------------------------


def test_one_request(letters: og.Model, engine: og.Engine) -> None:
    """Greedy text is that of a loop over the nouns; the Completion says how it came about."""
    prompt = letters.vocab.tokenize("hello")
    completion = engine.generate("hello", max_tokens=20, **GREEDY)
    tokens, reason = alone(letters, prompt, 20, og.SamplingParams(temperature=0))
    assert completion.tokens == tokens
    assert completion.text == letters.vocab.detokenize(tokens)
    assert completion.finish_reason == reason
    assert completion.done
    assert completion.usage == og.engine.Usage(len(prompt), 0, len(tokens))
    timings = completion.timings
    assert None not in (timings.queue, timings.prefill, timings.first_token, timings.decode)


def test_the_twins_are_the_same(engine: og.Engine) -> None:
    """generate, stream and their awaitable twins give the same text, also for chains of llama.cpp's samplers."""
    for options in (GREEDY, {"seed": 5}, {"sampling": og.SamplingParams(mirostat=2, seed=5)}):
        whole = engine.generate("abc", max_tokens=30, **options)
        pieces = list(engine.stream("abc", max_tokens=30, **options))

        async def both(options: dict[str, Any] = options) -> tuple[og.Completion, list[og.Piece]]:
            return (
                await engine.generate_async("abc", max_tokens=30, **options),
                [piece async for piece in engine.stream_async("abc", max_tokens=30, **options)],
            )

        later, later_pieces = asyncio.run(both())
        assert whole.text == later.text == "".join(piece.text for piece in pieces)
        assert "".join(piece.text for piece in later_pieces) == whole.text
        assert [token for piece in pieces for token in piece.tokens] == whole.tokens == later.tokens
        assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + [whole.finish_reason]


def test_seeds(engine: og.Engine) -> None:
    """The same seed gives the same answer beside any neighbours; the n answers have seeds of their own."""
    first = engine.generate("abc", max_tokens=30, seed=11, n=3)
    neighbours = [engine.submit([9 + i, 8, 7], max_tokens=50) for i in range(6)]
    again = [engine.submit("abc", max_tokens=30, seed=11 + i) for i in range(3)]
    assert [answer.tokens for answer in first.answers] == [each.result().tokens for each in again]
    assert len({tuple(answer.tokens) for answer in first.answers}) == 3
    assert [answer.seed for answer in first.answers] == [11, 12, 13]
    for each in neighbours:
        each.result()


def test_n_answers_share_the_prompt(engine: og.Engine, letters: og.Model) -> None:
    """The prompt is computed once, but for its last token; each answer's pieces carry its index."""
    prompt = list(range(7, 57))
    completion = engine.generate(prompt, max_tokens=9, n=4, seed=1)
    assert [answer.request.n_cached for answer in completion.answers] == [0, 49, 49, 49]
    assert completion.usage.completion_tokens == sum(len(answer.tokens) for answer in completion.answers)
    for answer in completion.answers:
        pieces = [piece for piece in completion if piece.index == answer.index]
        assert "".join(piece.text for piece in pieces) == answer.text
        assert answer.tokens == alone(letters, prompt, 9, og.SamplingParams(seed=answer.seed))[0]


def test_stop_strings(engine: og.Engine) -> None:
    """The text ends before the stop string, and the tokens with the one that completes it."""
    whole = engine.generate("abc", max_tokens=60, sampling=ENDLESS)
    stop = whole.text[10:14]
    at = whole.text.index(stop)
    stopped = engine.generate("abc", max_tokens=60, sampling=ENDLESS, stop=[stop, "never"], n=2)
    assert (stopped.text, stopped.finish_reason, stopped.stop) == (whole.text[:at], FinishReason.STOP, stop)
    assert stopped.tokens == whole.tokens[: len(stopped.tokens)]
    assert engine.model.vocab.detokenize(stopped.tokens) == whole.text[: at + 4]
    last = engine.generate("abc", max_tokens=len(stopped.tokens), sampling=ENDLESS, stop=iter([stop]), n=2)
    assert (last.text, last.finish_reason, last.stop) == (stopped.text, FinishReason.STOP, stop)
    assert engine.generate("abc", max_tokens=5, sampling=ENDLESS, stop="never").finish_reason is FinishReason.LENGTH


def test_what_comes_after_a_stop_string(letters: og.Model) -> None:
    """Where a call makes several steps, the tokens after the stop string are no part of the answer, nor of its usage."""
    engine = driven(letters)
    runner = engine._loop._runner
    assert isinstance(runner, Runner)
    whole = engine.submit("abc", max_tokens=60, sampling=ENDLESS)
    turns(engine)
    stop = whole.text[10:14]
    stopped = engine.submit("abc", max_tokens=60, sampling=ENDLESS, stop=stop, logprobs=1)
    turns(engine, 2)
    runner._gil_seconds = 1.0
    turns(engine, 1)
    assert stopped.done
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert letters.vocab.detokenize(stopped.tokens) == stopped.text + stop
    assert stopped.usage.completion_tokens == len(stopped.tokens) == len(stopped.logprobs)
    idle(engine)
    again = engine.submit("abc", max_tokens=60, sampling=ENDLESS)
    turns(engine)
    assert again.tokens == whole.tokens
    engine._loop._stop()


def test_logprobs(engine: og.Engine, letters: og.Model) -> None:
    """Each token has the logprob that a softmax over the logits gives, and the pieces have those of their tokens."""
    completion = engine.generate("abc", max_tokens=6, logprobs=2, **GREEDY)
    with og.Context(letters, n_ctx=N_CTX_SEQ, **EXACT) as context:
        batch = og.Batch(64)
        prompt = letters.vocab.tokenize("abc")
        batch.add_sequence([*prompt, *completion.tokens], logits="all")
        context.decode(batch)
        for i, (logprob, top) in enumerate(completion.logprobs):
            row = context.logits(len(prompt) - 1 + i).copy().astype(float)
            expected = row - row.max() - np.log(np.exp(row - row.max()).sum())
            assert logprob == pytest.approx(expected[completion.tokens[i]], abs=1e-4)
            assert [token for token, _ in top] == expected.argsort()[::-1][:2].tolist()
    assert [each for piece in completion for each in piece.logprobs] == completion.logprobs
    assert len(completion.logprobs) == len(completion.tokens)


def test_a_conversation_finds_what_it_has_said(engine: og.Engine) -> None:
    """The next turn computes only what is new."""
    prompt = list(range(7, 40))
    first = engine.generate(prompt, max_tokens=10, sampling=ENDLESS)
    turn = [*prompt, *first.tokens, 50, 51]
    second = engine.generate(turn, max_tokens=3, **GREEDY)
    assert second.usage.cached_tokens == len(prompt) + len(first.tokens) - 1
    assert engine.stats().prompt_tokens_cached == second.usage.cached_tokens


def test_what_made_room_is_not_computed_again(letters: og.Model) -> None:
    """With one sequence, a conversation comes back from host memory after another one; without a cache it does not."""
    for cache_bytes, cached in ((2**20, 60), (0, 0)):
        with make(letters, 1, cache_bytes=cache_bytes) as engine:
            prompt = list(range(7, 57)) + [9] * 10
            first = engine.generate(prompt, max_tokens=10, sampling=ENDLESS)
            engine.generate([8] * 100, max_tokens=5, sampling=ENDLESS)
            turn = [*prompt, *first.tokens, 50]
            second = engine.generate(turn, max_tokens=10, sampling=ENDLESS)
            assert second.usage.cached_tokens >= cached
            assert bool(second.usage.cached_tokens) == bool(cached)
            assert second.tokens == alone(letters, turn, 10, ENDLESS)[0]
            stats = engine.stats()
            assert (stats.n_shelved > 0) == (stats.shelved_bytes > 0) == bool(cached)
            assert stats.shelved_bytes <= cache_bytes


def test_the_cache_has_a_budget(letters: og.Model) -> None:
    """The bytes of all that lies there stay within it; they are those of the states."""
    with make(letters, 1, cache_bytes=300_000) as engine:
        for i in range(12):
            engine.generate([7 + i] * 100, max_tokens=1, **GREEDY)
        settle(engine)
        states = engine._loop._runner._states  # type: ignore[attr-defined]
        stats = engine.stats()
        assert 0 < sum(state.n_bytes for state in states.values()) == stats.shelved_bytes <= 300_000
        assert 0 < len(states) == stats.n_shelved < 10


def test_what_memory_has_no_room_for_is_on_the_disk(letters: og.Model, tmp_path: Path) -> None:
    """It comes back from there, whole; the files keep to their budget, and go with the engine."""
    prompts = [[7 + i] * 100 for i in range(12)]
    with make(letters, 1, cache_bytes=150_000, cache_dir=tmp_path, cache_dir_bytes=400_000) as engine:
        expected = [engine.generate(prompt, max_tokens=10, sampling=SURE).tokens for prompt in prompts]
        for prompt, tokens in zip(prompts[-6:], expected[-6:], strict=True):
            again = engine.generate([*prompt, 9], max_tokens=2, sampling=SURE)
            assert again.usage.cached_tokens >= 100
            assert engine.generate(prompt, max_tokens=10, sampling=SURE).tokens == tokens
        settle(engine)
        stats = engine.stats()
        assert 0 < stats.shelved_bytes <= 150_000 < stats.disk_bytes <= 400_000
        disk = engine._loop._runner._disk  # type: ignore[attr-defined]
        disk._thread.submit(int).result()  # all before is written
        (folder,) = tmp_path.iterdir()
        assert sum(file.stat().st_size for file in folder.iterdir()) == stats.disk_bytes
        assert stats.n_failed_steps == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        make(letters, cache_dir=tmp_path / "none")


def test_a_disk_that_fails(letters: og.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What could not be written, or is damaged, is computed again, and no longer counted."""
    prompts = [[7 + i] * 100 for i in range(8)]
    with make(letters, 1, cache_bytes=150_000, cache_dir=tmp_path) as engine:
        disk = engine._loop._runner._disk  # type: ignore[attr-defined]
        expected = [engine.generate(prompt, max_tokens=10, sampling=SURE).tokens for prompt in prompts]
        disk._thread.submit(int).result()
        (folder,) = tmp_path.iterdir()
        damaged = sorted(folder.iterdir())[0]
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("offgrid_llama.state.State.save", full)
            for prompt, tokens in zip(prompts, expected, strict=True):
                assert engine.generate(prompt, max_tokens=10, sampling=SURE).tokens == tokens
            disk._thread.submit(int).result()
        for prompt, tokens in zip(prompts, expected, strict=True):
            assert engine.generate(prompt, max_tokens=10, sampling=SURE).tokens == tokens
        assert engine.stats().n_failed_steps > 0
        settle(engine)
        idle(engine)


def test_one_cache_for_all(letters: og.Model) -> None:
    """With kv_unified a request may have all positions; those that do not fit beside others wait, and all is shared."""
    with pytest.raises(og.ContextLengthError, match="kv_unified"), make(letters) as engine:
        engine.submit([7] * 600)
    with make(letters, kv_unified=True) as engine:
        long = engine.submit([7] * 600, max_tokens=400, sampling=ENDLESS)
        others = [engine.submit([8 + i] * 30, max_tokens=20, sampling=ENDLESS) for i in range(6)]
        assert len(long.result().tokens) == 400
        for i, other in enumerate(others):
            assert other.result().tokens == alone(letters, [8 + i] * 30, 20, ENDLESS)[0]
        several = engine.generate([9] * 200, n=4, max_tokens=150, sampling=ENDLESS)  # 4 * 350 are more than 1,024
        assert [len(answer.tokens) for answer in several.answers] == [150] * 4
        assert engine.stats().n_failed_steps == 0
        settle(engine)
        idle(engine)


def test_pieces_that_come_together(letters: og.Model) -> None:
    """What is computed within ``stream_interval`` comes as one piece, but for the first token; the text is the same."""
    expected = alone(letters, [9], 90, ENDLESS)[0]
    n_pieces = {}
    for interval in (0.0, 1.0):
        with make(letters, stream_interval=interval) as engine:
            pieces = list(engine.stream([9], max_tokens=90, sampling=ENDLESS))
            assert [token for piece in pieces for token in piece.tokens] == expected
            assert len(pieces[0].tokens) == 1
            n_pieces[interval] = len(pieces)
    assert n_pieces[1.0] < n_pieces[0.0] / 2
    for wrong in (-1, 2, math.nan):
        with pytest.raises(ValueError, match="stream_interval"):
            make(letters, stream_interval=wrong)


def test_a_piece_that_is_held(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens wait for the next piece, no longer than the interval, nor for a step with prompts, nor beyond the end."""
    monkeypatch.setattr("offgrid_llama.engine.loop.UNSEEN", 1)
    engine = driven(letters, stream_interval=1.0)
    long = engine.submit([9] * 20, max_tokens=50, sampling=ENDLESS, lookup=False)
    turns(engine, 6)
    assert (len(long.text), len(long.tokens)) == (1, 6)
    other = engine.submit([8] * 20, max_tokens=2, sampling=ENDLESS)
    turns(engine, 1)
    assert (len(long.text), len(long.tokens)) == (6, 7)
    long.answers[0].told -= 2
    turns(engine, 1)
    assert (len(long.text), len(long.tokens)) == (8, 8)
    assert other.done
    assert len(other.text) == 2
    turns(engine, 2)
    long.cancel()
    turns(engine)
    assert len(long.text) == len(long.tokens) == 10
    engine._loop._stop()


def test_what_can_wait_is_done_when_nothing_else_is(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's thread sees to it once, after a while without a request, and not before one that is there."""
    loop = driven(letters)._loop
    done: list[int] = []

    def when_quiet() -> None:
        done.append(1)
        loop._inbox.put(("second", ()))

    monkeypatch.setattr("offgrid_llama.engine.loop.QUIET", 0.01)
    loop._when_quiet = when_quiet
    loop._inbox.put(("first", ()))
    assert loop._wait() == ("first", ())
    assert not done
    assert loop._wait() == ("second", ())
    assert done == [1]
    loop._inbox.put(("third", ()))
    assert loop._wait() == ("third", ())
    assert done == [1]
    loop._stop()


def test_eight_that_arrive_together_compute_their_prefix_once(letters: og.Model) -> None:
    """No token of a shared beginning is computed twice."""
    system = [random.Random(1).randrange(7, 57) for _ in range(150)]
    with make(letters, 8, n_ctx=8 * N_CTX_SEQ) as engine:
        computed = 0
        run = engine._loop._runner.run

        def count(plan: Plan, n_steps: int = 1, seconds: float = 0) -> Any:
            nonlocal computed
            computed += plan.n_prompt
            return run(plan, n_steps, seconds)

        engine._loop._runner.run = count  # type: ignore[method-assign]
        completions = [engine.submit([*system, 20 + i], max_tokens=4, **GREEDY) for i in range(8)]
        for i, completion in enumerate(completions):
            assert (
                completion.result().tokens == alone(letters, [*system, 20 + i], 4, og.SamplingParams(temperature=0))[0]
            )
        assert computed == len(system) + 8


class Prophet:
    """Guesses what will come, with errors now and then."""

    said: ClassVar[dict[tuple[int, ...], list[int]]] = {}
    follows = True

    def __init__(self, tokens: list[int], *, guided: bool = False) -> None:
        self.future = self.said.get(tuple(tokens), [])
        self.rng = random.Random(len(self.future))
        self.at = 0

    def follow(self, tokens: list[int], n_forced: int = 0) -> None:
        self.at += len(tokens)

    def guess(self, _costs: object, _rows: int, _guessed: int, room: int) -> list[int]:
        guess = self.future[self.at : self.at + self.rng.randint(0, max(room, 0))]
        if guess and self.rng.random() < 0.5:
            guess[self.rng.randrange(len(guess))] = 60
        return guess


def test_guesses_change_nothing(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that were guessed right are taken several at a time; the text, its logprobs and its end are the same."""
    monkeypatch.setattr("offgrid_llama.engine.engine.Lookup", Prophet)
    with make(letters) as engine:
        completions = []
        for seed in range(24):
            sampling = og.SamplingParams(seed=seed, temperature=0.5, repeat_penalty=1.1, repeat_last_n=4)
            if seed % 3:
                sampling = replace(sampling, logit_bias={EOS: -math.inf})
            prompt = [7 + seed, *range(20, 30)]
            tokens, reason = alone(letters, prompt, 60, sampling)
            Prophet.said[tuple(prompt)] = [*tokens, EOS]
            plain = engine.generate(prompt, max_tokens=60, sampling=sampling, lookup=False, logprobs=1)
            completions.append((engine.submit(prompt, max_tokens=60, sampling=sampling, logprobs=1), plain))
            assert (plain.tokens, plain.finish_reason) == (tokens, reason)
        for guessed, plain in completions:
            guessed.result()
            assert (guessed.tokens, guessed.finish_reason, guessed.text) == (
                plain.tokens,
                plain.finish_reason,
                plain.text,
            )
            ours, theirs = ([logprob for logprob, _ in each.logprobs] for each in (guessed, plain))
            assert ours == pytest.approx(theirs, abs=1e-3)
        stats = engine.stats()
        assert stats.guessed_tokens > stats.guessed_tokens_right > 500
        settle(engine)
        idle(engine)


def alone_shifting(model: og.Model, prompt: list[int], max_tokens: int, n_keep: int) -> list[int]:
    """Return the tokens of a loop over the nouns that forgets half of what is behind ``n_keep`` when it is full."""
    tokens: list[int] = []
    with og.Context(model, n_ctx=N_CTX_SEQ, n_batch=N_CTX_SEQ, **EXACT) as context:
        sampler = og.FastSampler(model.vocab, SURE)
        batch = og.Batch(N_CTX_SEQ)
        batch.add_sequence(prompt)
        n = len(prompt)
        while True:
            context.decode(batch)
            tokens.append(sampler.sample(context, -1))
            if len(tokens) == max_tokens:
                return tokens
            if n == N_CTX_SEQ:
                half = (N_CTX_SEQ - n_keep + 1) // 2
                context.memory.remove(0, n_keep, n_keep + half)
                context.memory.shift(0, n_keep + half, -1, -half)
                n -= half
            batch.clear()
            batch.add(tokens[-1], n, [0], logits=True)
            n += 1


@pytest.mark.parametrize("kv_unified", [False, True])
def test_a_context_that_shifts(letters: og.Model, kv_unified: bool) -> None:
    """A full sequence goes on without the older half; what it has kept can be used by others, and nothing else of it."""
    options: dict[str, Any] = {"n_ctx": N_CTX_SEQ, "kv_unified": True} if kv_unified else {}
    prompt = [random.Random(5).randrange(7, 57) for _ in range(100)]
    for n_keep in (0, 40, 200):
        engine = driven(letters, 4, **options)
        long = engine.submit(prompt, max_tokens=600, sampling=SURE, n_keep=n_keep)
        expected = alone_shifting(letters, prompt, 600, n_keep)
        neighbours = []
        while not long.done:
            turns(engine, 40)
            if not kv_unified:
                neighbours.append(engine.submit([*prompt, 9], max_tokens=20, sampling=SURE))
        assert (long.tokens, long.finish_reason) == (expected, FinishReason.LENGTH)
        turns(engine)
        for text in (prompt, [*prompt, *long.tokens[:100]], [*prompt[:40], *long.tokens[-50:]]):
            after = engine.submit(text, max_tokens=20, sampling=SURE)
            turns(engine)
            assert after.tokens == alone(letters, text, 20, SURE)[0]
        for neighbour in neighbours:
            assert neighbour.tokens == alone(letters, [*prompt, 9], 20, SURE)[0]
        idle(engine)
        assert engine.stats().n_failed_steps == 0
        engine._loop._stop()


def test_a_shift_and_a_decode_that_fails(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was kept after a shift is what is computed again; the answer goes on from the same text."""
    monkeypatch.setattr("offgrid_llama.engine.loop.UNSEEN", 1)  # a step in each turn
    engine = driven(letters, 1)
    long = engine.submit([9] * 30, max_tokens=400, sampling=SURE, n_keep=10, lookup=False)
    turns(engine, 300)
    text = [*[9] * 30, *long.tokens]
    assert len(text) > N_CTX_SEQ
    runner = engine._loop._runner
    assert isinstance(runner, Runner)

    def fail(*_: object) -> None:
        raise og.DecodeFailed("broken", code=-3, memory_restored=False)

    with monkeypatch.context() as patch:
        patch.setattr(runner.context, "_decode", fail)
        runner.context.memory.clear()
        turns(engine, 1)
    # Alone it is the suspect, and ends; what it had computed is gone, and its slot with it.
    with pytest.raises(og.DecodeFailed):
        long.result()
    idle(engine)
    aborted = engine.submit([9] * 30, max_tokens=400, sampling=SURE, n_keep=10, lookup=False)
    turns(engine, 300)

    def abort(*_: object) -> None:
        raise og.Aborted("stopped", code=2, memory_restored=False)

    with monkeypatch.context() as patch:
        patch.setattr(runner.context, "_decode", abort)
        runner.context.memory.clear()
        turns(engine, 1)
    turns(engine)
    assert len(aborted.result().tokens) == 400
    assert aborted.tokens[:300] == alone_shifting(letters, [9] * 30, 300, 10)
    idle(engine)
    engine._loop._stop()


def test_a_memory_that_cannot_shift(tmp_path: Path) -> None:
    """It is told so at once."""
    ARCHITECTURES["mamba"].write(tmp_path / "mamba.gguf", LETTERS)
    with og.Model(tmp_path / "mamba.gguf") as model, make(model) as engine, pytest.raises(ValueError, match="n_keep"):
        engine.submit([9], n_keep=0)


def test_a_draft_changes_nothing(letters: og.Model, nearly: og.Model) -> None:
    """What a small model guesses right is taken several tokens at a time; text, logprobs and end are the same."""
    plain = make(letters)
    for small in (letters, nearly):
        with make(letters, draft=small, kv_unified=small is nearly) as engine:
            always(engine._loop._scheduler, 4)
            for seed in range(12):
                prompt = [*range(20, 50), 7 + seed]
                endless = {EOS: -math.inf} if seed % 4 else {}
                sampling = og.SamplingParams(seed=seed, temperature=0.5 * (seed % 2), logit_bias=endless)
                options: dict[str, Any] = {"n": 1 + seed % 3, "sampling": sampling, "lookup": False, "logprobs": 1}
                expected = plain.generate(prompt, max_tokens=60, **options)
                drafted = engine.generate(prompt, max_tokens=60, **options)
                for ours, theirs in zip(drafted.answers, expected.answers, strict=True):
                    assert (ours.tokens, ours.text, ours.finish_reason) == (
                        theirs.tokens, theirs.text, theirs.finish_reason,
                    )  # fmt: skip
                    pairs = zip(ours.logprobs, theirs.logprobs, strict=True)
                    assert all(a == pytest.approx(b, abs=1e-3) for (a, _), (b, _) in pairs)
            stats = engine.stats()
            assert stats.guessed_tokens > stats.guessed_tokens_right > 0.3 * stats.guessed_tokens > 100
            before = stats.guessed_tokens
            engine.generate([9, 8], max_tokens=60, sampling=ENDLESS, lookup=False, draft=False)
            assert engine.stats().guessed_tokens == before
            settle(engine)
            idle(engine)
    plain.close()


def always(scheduler: Scheduler, n: int) -> None:
    """Let the draft model always be asked for ``n`` tokens."""
    drafting = scheduler._drafting
    assert drafting is not None

    def length(requests: Sequence[Acceptance], costs: Costs, n_generating: int, room: int) -> int:
        return min(n, room // max(len(requests), 1))

    drafting.length = length  # type: ignore[method-assign]


def test_a_draft_follows_the_conversation(letters: og.Model) -> None:
    """What a request begins with, and another has computed in any sequence, the draft model does not compute again."""
    engine = driven(letters, draft=letters)
    always(engine._loop._scheduler, 3)
    runner = engine._loop._runner
    assert isinstance(runner, Runner)
    assert runner._drafter is not None
    context = runner._drafter._context
    computed: list[int] = []
    decode = context._decode

    def count(batch: og.Batch, function: Any) -> None:
        computed.append(len(batch))
        decode(batch, function)

    context._decode = count  # type: ignore[method-assign]
    prompt = [random.Random(4).randrange(7, 57) for _ in range(100)]
    options: dict[str, Any] = {"max_tokens": 12, "sampling": SURE, "lookup": False}
    first = engine.submit(prompt, **options)
    turns(engine)
    assert sum(computed) > 100
    computed.clear()
    several = engine.submit([*prompt, *first.tokens, 9], n=3, **options)
    turns(engine)
    assert 0 < sum(computed) < 100
    assert max(computed) <= 12
    assert several.tokens == alone(letters, [*prompt, *first.tokens, 9], 12, SURE)[0]
    stats = engine.stats()
    assert stats.guessed_tokens_right > 0.9 * stats.guessed_tokens > 0
    engine._loop._stop()


def test_a_draft_that_fails(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the draft model cannot go on, it begins anew, and nobody sees it."""
    engine = driven(letters, draft=letters)
    always(engine._loop._scheduler, 3)
    runner = engine._loop._runner
    assert isinstance(runner, Runner)
    assert runner._drafter is not None
    context = runner._drafter._context
    decode, calls = context._decode, 0

    def fail(batch: og.Batch, function: Any) -> None:
        nonlocal calls
        calls += 1
        decode(batch, function)
        if calls % 5 == 0:
            raise og.DecodeFailed("broken", code=-3, memory_restored=False)

    monkeypatch.setattr(context, "_decode", fail)
    completions = [engine.submit([9 + i] * 20, max_tokens=30, sampling=SURE, lookup=False) for i in range(3)]
    turns(engine)
    for i, completion in enumerate(completions):
        assert completion.result().tokens == alone(letters, [9 + i] * 20, 30, SURE)[0]
    assert calls > 10
    stats = engine.stats()
    assert stats.guessed_tokens_right > 0.9 * stats.guessed_tokens > 0
    assert stats.n_failed_steps == 0
    engine._loop._stop()


def test_a_draft_that_does_not_fit(letters: og.Model, smollm2: og.Model, tmp_path: Path) -> None:
    """Another vocabulary, and a memory that takes nothing back, are refused; a model that was loaded for it is closed."""
    with pytest.raises(ValueError, match="vocabulary"):
        make(letters, draft=smollm2)
    other = {**LETTERS, "tokenizer.ggml.tokens": [*LETTERS["tokenizer.ggml.tokens"][:-1], "!"]}  # type: ignore[index]
    write_tiny_llama(tmp_path / "other.gguf", more=other)
    children = len(letters._handle._children)
    with pytest.raises(ValueError, match="token 60 is b'!' there"):
        make(letters, draft=tmp_path / "other.gguf")
    assert len(letters._handle._children) == children
    ARCHITECTURES["mamba"].write(tmp_path / "mamba.gguf", LETTERS)
    with pytest.raises(ValueError, match="take back"):
        make(letters, draft=tmp_path / "mamba.gguf")


def test_options_are_those_of_submit() -> None:
    """Who hands options on has the names and types of all of them; what is ``chat``'s own has an underscore."""
    parameters = inspect.signature(og.Engine.submit).parameters.items()
    keywords = [(name, each) for name, each in parameters if each.kind is each.KEYWORD_ONLY]
    said = {name: each.annotation for name, each in keywords if name != "_budget"}
    assert list(said.items()) == [
        (name, each.__forward_arg__) for name, each in og.engine.RequestOptions.__annotations__.items()
    ]


# Python in the middle ---------------------------------------------------------------------------------------------------


def test_processors_that_do_nothing(engine: og.Engine) -> None:
    """They get the text so far and its logits; the answer is the one without them, for every kind of sampler."""
    seen: list[list[int]] = []

    def nothing(tokens: Any, logits: Any) -> None:
        assert logits.shape == (61,)
        assert logits.dtype == np.float32
        seen.append(list(tokens))

    prompt = engine.model.vocab.tokenize("abc")
    for sampling, logprobs in ((ENDLESS, 2), (og.SamplingParams(mirostat=2, seed=1), None)):
        plain = engine.generate("abc", max_tokens=8, sampling=sampling, logprobs=logprobs)
        seen.clear()
        same = engine.generate("abc", max_tokens=8, sampling=sampling, logprobs=logprobs, logits_processors=[nothing])
        assert (same.text, same.finish_reason) == (plain.text, plain.finish_reason)
        assert [own for own, _ in same.logprobs] == pytest.approx([own for own, _ in plain.logprobs], abs=1e-4)
        assert seen == [[*prompt, *same.tokens[:i]] for i in range(len(seen))]
        assert len(same.logprobs) == (len(same.tokens) if logprobs else 0)


def test_processors_have_the_last_word(engine: og.Engine) -> None:
    """They may write to the logits, or return others; one after the other."""

    def only(token: int) -> Any:
        def write(_tokens: Any, logits: Any) -> None:
            kept = logits[token]
            logits[:] = -np.inf
            logits[token] = kept

        return write

    assert engine.generate("abc", max_tokens=4, logits_processors=[only(33)], temperature=0).tokens == [33] * 4
    ones = np.arange(61, dtype=np.float32)
    last = engine.generate("abc", max_tokens=2, logits_processors=[only(33), lambda *_: ones], temperature=0)
    assert last.tokens == [60, 60]
    with pytest.raises(TypeError, match="logits_processors"):
        engine.submit("abc", logits_processors=[3])  # type: ignore[list-item]


def test_a_processor_that_raises(engine: og.Engine, letters: og.Model) -> None:
    """Its own request ends with what it raised, the others go on."""

    def fail(tokens: Any, logits: Any) -> Any:
        if len(tokens) > 8:
            raise ZeroDivisionError("mine")

    good = engine.submit("abc", max_tokens=30, sampling=ENDLESS)
    bad = engine.submit([9, 8], max_tokens=30, sampling=ENDLESS, logits_processors=[fail])
    shape = engine.submit([9, 8], max_tokens=30, logits_processors=[lambda *_: np.zeros(5, np.float32)])
    with pytest.raises(ZeroDivisionError):
        bad.result()
    with pytest.raises(ValueError, match="broadcast"):
        shape.result()
    assert len(bad.tokens) == 7
    assert good.result().tokens == alone(letters, letters.vocab.tokenize("abc"), 30, ENDLESS)[0]
    settle(engine)
    idle(engine)


def test_a_hook_for_each_step(letters: og.Model, caplog: pytest.LogCaptureFixture) -> None:
    """It has the logits of all who get a token, as one array, and they are sampled from what it leaves there."""
    seen: list[int] = []

    def hook(step: og.engine.StepView) -> None:
        seen.append(len(step.answers))
        assert step.logits.shape == (len(step.answers), 61)
        for answer, row in zip(step.answers, step.logits, strict=True):
            row[:] = 0
            row[20 + answer.index] = 9
        if len(seen) == 3:
            raise ZeroDivisionError("mine")

    with make(letters, on_step=hook) as engine:
        completion = engine.generate([9] * 20, n=3, max_tokens=12, temperature=0)
        assert [answer.tokens for answer in completion.answers] == [[20 + i] * 12 for i in range(3)]
    assert max(seen) == 3
    assert "ZeroDivisionError: mine" in caplog.text


# Any schedule -----------------------------------------------------------------------------------------------------------


class Schedule:
    """Requests at random on an engine that is driven turn by turn; each is compared with what it gives alone."""

    cache: ClassVar[dict[Any, tuple[list[int], str]]] = {}

    def __init__(self, model: og.Model, seed: int, folder: Path) -> None:
        self.model = model
        self.rng = rng = random.Random(seed)
        n_seq_max = rng.randint(1, 4)
        unified = rng.random() < 0.3  # and with less room than all may need
        n_ctx = N_CTX_SEQ if unified else n_seq_max * N_CTX_SEQ
        n_batch = rng.choice([8, 64])
        small = model if rng.random() < 0.2 else None
        disk: dict[str, Any] = {"cache_bytes": 100_000, "cache_dir": folder} if rng.random() < 0.2 else {}
        self.engine = driven(model, n_seq_max, n_batch=n_batch, kv_unified=unified, n_ctx=n_ctx, draft=small, **disk)
        scheduler = self.engine._loop._scheduler  # what it measures is made up, so that a seed is the same again
        if small is not None:
            always(scheduler, rng.choice([1, 4]))
        scheduler._prompt_budget = lambda n_generating, n_prompts, n_tokens: rng.choice([1, 7, n_batch])
        if scheduler._padding is not None:
            scheduler._padding.n_pads = lambda n_rows: rng.choice([0, 0, 1, 2, 3])  # type: ignore[method-assign]
        scheduler._costs.slowdown = lambda n_generating, n_guessed: rng.choice([1.0, 3.0])  # type: ignore[method-assign]
        self.said: list[tuple[list[int], int, og.SamplingParams, og.Completion]] = []
        self.cancelled: set[Completion] = set()

    def say(self, prompt: list[int], params: og.SamplingParams) -> tuple[list[int], str]:
        """Return what a prompt gives alone."""
        key = (tuple(prompt), params.temperature, params.seed)
        if key not in self.cache:
            self.cache[key] = alone(self.model, prompt, 20, params)
        return self.cache[key]

    def disturb(self, chance: float) -> None:
        rng = self.rng
        while rng.random() < chance:
            prompt = [7 + i % 40 for i in range(rng.choice([3, 20, 40]))] + [rng.randrange(7, 57)] * rng.randint(0, 3)
            if self.said and rng.random() < 0.3:
                before = rng.choice(self.said)
                prompt = [*before[0], *before[3].tokens, 9][:100]
            seed = rng.randrange(3)
            params = og.SamplingParams(temperature=0) if seed == 0 else og.SamplingParams(seed=seed)
            if rng.random() < 0.3:  # something to guess from
                prompt = [*prompt, *self.say(prompt, params)[0], *prompt][:120]
            max_tokens = rng.randint(1, 20)
            completion = self.engine.submit(prompt, max_tokens=max_tokens, sampling=params, priority=rng.randint(0, 1))
            self.said.append((prompt, max_tokens, params, completion))
        if self.said and rng.random() < chance / 2:
            completion = rng.choice(self.said)[3]
            if not completion.done:
                self.cancelled.add(completion)
            completion.cancel()

    def run(self) -> None:
        runner = self.engine._loop._runner
        assert isinstance(runner, Runner)
        for _ in range(25):
            self.disturb(0.3)
            runner._gil_seconds = self.rng.choice([0.0, 1.0])  # one step in a call, or several
            turns(self.engine, 1)
            cells = self.engine._loop._slots._cells
            assert cells is None or cells.free >= 0
        turns(self.engine)
        idle(self.engine)
        assert self.engine.stats().n_failed_steps == 0
        for prompt, max_tokens, params, completion in self.said:
            tokens, reason = self.say(prompt, params)
            both = zip(tokens, completion.tokens, strict=False)
            parted = next((i for i, (expected, said) in enumerate(both) if expected != said), None)
            if parted is not None and params.temperature:  # once in a million tokens
                expected = tokens[: parted + 1]
                assert on_the_edge(self.model, prompt, params, expected, completion.tokens[parted])
            elif completion in self.cancelled and completion.finish_reason is FinishReason.CANCELLED:
                assert completion.tokens == tokens[: len(completion.tokens)]
            else:
                assert completion.tokens == tokens[:max_tokens]
                assert completion.finish_reason == ("length" if len(tokens) >= max_tokens else reason)
        self.engine._loop._stop()


def test_any_schedule(letters: og.Model, pytestconfig: pytest.Config, tmp_path: Path) -> None:
    """Whatever comes and goes, each request gives what it gives alone, and nothing is left."""
    for seed in range(pytestconfig.getoption("--hazard-cases") or 200):
        Schedule(letters, seed, tmp_path).run()


MEMORY = """
import ctypes, gc, random, re, sys
from pathlib import Path
import offgrid_llama as og

def resident():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

n, rng, seen, waiting = int(sys.argv[2]), random.Random(1), [], []
options = {"n_seq_max": 4, "n_ctx": 1024, "n_batch": 64, "n_threads": 1, "cache_bytes": 500_000}
with og.Model(sys.argv[1]) as model, og.Engine(model, draft=model, **options) as engine:
    for i in range(n):
        prompt = [rng.randrange(7, 57) for _ in range(rng.choice([3, 10, 40]))]
        asked = {"seed": i, "n": rng.choice([1, 1, 2]), "logprobs": rng.choice([None, 2]), "stop": rng.choice([[], ["ab"]])}
        waiting.append(engine.submit(prompt, max_tokens=rng.randint(1, 8), **asked))
        if rng.random() < 0.1:
            rng.choice(waiting).cancel()
        if len(waiting) == 16:
            for each in waiting:
                each.result() if rng.random() < 0.5 else list(each)
            waiting.clear()
        if i % (n // 10) == n // 10 - 1:
            seen.append(resident())
print(seen)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads memory as Linux tells it")
def test_memory_is_flat(tmp_path: Path, run_child: RunChild, request: pytest.FixtureRequest) -> None:
    """Requests of all kinds leave nothing behind: after the first fifth of them memory is what it will be."""
    write_tiny_llama(tmp_path / "letters.gguf", more={**LETTERS, "tokenizer.ggml.eos_token_id": EOS})
    n = request.config.getoption("--hazard-cases") or 3000
    done = run_child(MEMORY, tmp_path / "letters.gguf", str(n), timeout=3000)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    request.node.add_report_section("call", f"kB after each tenth of {n} requests", str(seen))
    assert max(seen[2:]) - seen[1] < 1024


# Ending early -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unseen", [1, 8])
def test_cancelling_at_every_step(letters: og.Model, monkeypatch: pytest.MonkeyPatch, unseen: int) -> None:
    """After any number of steps: a request ends, its slot is free by the next step, and its neighbour goes on."""
    monkeypatch.setattr("offgrid_llama.engine.loop.UNSEEN", unseen)
    expected = alone(letters, [9] * 100, 12, og.SamplingParams(temperature=0))[0]
    engine = driven(letters)
    for step in range(30):
        other = engine.submit([9] * 100, max_tokens=12, **GREEDY)
        doomed = engine.submit([8 + step] * 130, max_tokens=8, sampling=ENDLESS)
        begun = turns(engine, step)
        doomed.cancel()
        turns(engine, 1)
        assert doomed.done
        assert doomed.finish_reason is FinishReason.LENGTH if begun < step else FinishReason.CANCELLED
        assert doomed.answers[0].request not in engine._loop._scheduler.unfinished()
        turns(engine)
        assert other.tokens == expected
        idle(engine)
    engine._loop._stop()


def test_a_long_prompt_is_cancelled_within_its_step(smollm2: og.Model) -> None:
    """cancel() does not wait for the rest of a prompt: the decode stops, and what others have stays."""
    with og.Engine(smollm2, n_seq_max=2, n_ctx=4096, n_batch=2048, n_threads=2) as engine:
        steps = engine.stats().n_steps
        long = engine.submit([5] * 1200, max_tokens=2)
        while engine._loop._plan is None:
            time.sleep(0.001)
        time.sleep(0.05)
        begin = time.perf_counter()
        long.cancel()
        long.result()
        cancelled = time.perf_counter() - begin
        assert engine.stats().n_steps == steps  # it was one step, and did not end
        assert engine.stats().n_failed_steps == 1
        begin = time.perf_counter()
        engine.generate([5] * 1200, max_tokens=1)
        assert cancelled < (time.perf_counter() - begin) / 2


def test_dropping_the_iterator_cancels(engine: og.Engine) -> None:
    """Whoever stops to listen frees the slot; so does a Completion that nobody holds, and the end of a with block."""
    for piece in engine.stream("abc", max_tokens=200, sampling=ENDLESS):
        assert piece.text
        break
    engine.submit("abc", max_tokens=200, sampling=ENDLESS)
    gc.collect()
    with engine.submit("abc", max_tokens=200, sampling=ENDLESS) as completion:
        pass
    assert completion.result().finish_reason is FinishReason.CANCELLED
    settle(engine)
    assert engine.stats().finished["cancelled"] == 3
    idle(engine)


def test_a_task_that_is_cancelled(engine: og.Engine) -> None:
    """Cancelling the task cancels the request."""

    async def main() -> None:
        task = asyncio.ensure_future(engine.generate_async("abc", max_tokens=240, sampling=ENDLESS))
        async for _ in engine.stream_async("abd", max_tokens=3, sampling=ENDLESS):
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    settle(engine)
    assert engine.stats().finished["cancelled"] == 1


def test_waiting_no_longer(letters: og.Model) -> None:
    """result() with a timeout gives up the waiting, and not the request."""
    engine = driven(letters)
    completion = engine.submit("abc", max_tokens=3, sampling=ENDLESS)
    with pytest.raises(TimeoutError):
        completion.result(timeout=0.01)
    turns(engine)
    assert len(completion.result(timeout=0).tokens) == 3
    engine._loop._stop()


def test_priorities_and_a_full_queue(letters: og.Model) -> None:
    """The larger priority begins first; one request more than max_queue is refused, and nothing of it is queued."""
    engine = driven(letters, 1, max_queue=3)
    low, high = engine.submit("abc", max_tokens=1), engine.submit("abd", max_tokens=1, priority=1)
    with pytest.raises(og.QueueFullError) as full:
        engine.submit("abe", n=2)
    assert full.value.n_waiting == engine.stats().n_waiting == 2
    turns(engine, 1)
    assert (low.done, high.done) == (False, True)
    low.cancel()
    turns(engine, 1)
    assert engine.stats().n_waiting == 0
    engine.submit("abe", n=3, max_tokens=1)
    engine._loop._stop()


def test_what_cannot_be(engine: og.Engine) -> None:
    """Bad arguments are refused at the call, before anything is queued."""
    with pytest.raises(og.ContextLengthError) as error:
        engine.submit([7] * N_CTX_SEQ)
    assert (error.value.n_tokens, error.value.n_ctx) == (N_CTX_SEQ, N_CTX_SEQ)
    assert len(engine.generate([7] * (N_CTX_SEQ - 1), sampling=ENDLESS).tokens) == 2
    bad: list[tuple[dict[str, Any], type[Exception], str | None]] = [
        ({"prompt": []}, ValueError, "prompt"),
        ({"prompt": [61]}, ValueError, "prompt"),
        ({"n": 0}, ValueError, "n must"),
        ({"max_tokens": 0}, ValueError, "max_tokens"),
        ({"n_keep": N_CTX_SEQ - 1}, ValueError, "n_keep"),
        ({"stop": ["a", ""]}, ValueError, "stop"),
        ({"sampling": {"temperature": 0}}, TypeError, "sampling"),
        ({"priority": "high"}, TypeError, "priority"),
        ({"logprobs": -1}, ValueError, "logprobs"),
        ({"logprobs": 1, "sampling": og.SamplingParams(mirostat=1)}, ValueError, "logprobs"),
        ({"grammar": og.Grammar.gbnf('root ::= "0"')}, og.GrammarError, None),
    ]
    for arguments, kind, words in bad:
        with pytest.raises(kind, match=words):
            engine.submit(**{"prompt": "abc", **arguments}).result()
    settle(engine)
    idle(engine)
    with pytest.raises(ValueError, match="n_batch"):
        make(engine.model, 8, n_batch=8)


# Failing ----------------------------------------------------------------------------------------------------------------


class Faulty:
    """Lets decodes fail that have a certain token in a prompt, after some of them was computed."""

    def __init__(self, engine: og.Engine, monkeypatch: pytest.MonkeyPatch, token: int, error: Exception) -> None:
        runner = engine._loop._runner
        assert isinstance(runner, Runner)
        context, self.failures = runner.context, 0
        decode = context._decode

        def fail(batch: og.Batch, function: Any) -> None:
            tokens = [batch._token[row] for row in range(len(batch))]
            if token not in tokens:
                return decode(batch, function)
            self.failures += 1
            some = og.Batch(len(batch))
            for row in range(tokens.index(token)):
                some.add(tokens[row], batch._pos[row], [batch._first_seq_id[row]])
            if len(some):
                decode(some, lib.llama_decode)
            raise error

        monkeypatch.setattr(context, "_decode", fail)


@pytest.mark.parametrize(
    "error",
    [
        og.DecodeFailed("broken", code=-3, memory_restored=False),
        og.NoKVSlot("full", code=1, memory_restored=True),
        og.NativeError("llama_decode", "std::bad_alloc"),
    ],
)
def test_a_decode_that_fails(letters: og.Model, monkeypatch: pytest.MonkeyPatch, error: og.OffgridLlamaError) -> None:
    """The request that makes decodes fail ends with the error; all others go on as if it had never been."""
    engine = driven(letters)
    poison = 56
    faulty = Faulty(engine, monkeypatch, poison, error)
    prompts = [[9 + i] * 30 for i in range(3)]
    before = engine.submit(prompts[0], max_tokens=12, sampling=ENDLESS)
    turns(engine, 3)
    doomed = engine.submit([8] * 20 + [poison] + [8] * 20, max_tokens=12)
    others = [before, *(engine.submit(prompt, max_tokens=12, sampling=ENDLESS) for prompt in prompts[1:])]
    turns(engine)
    with pytest.raises(type(error)) as raised:
        doomed.result()
    assert raised.value is error
    assert doomed.finish_reason is FinishReason.ERROR
    assert faulty.failures == engine.stats().n_failed_steps >= 2
    for prompt, other in zip(prompts, others, strict=True):
        assert other.result().tokens == alone(letters, prompt, 12, ENDLESS)[0]
    idle(engine)
    engine._loop._stop()


@pytest.mark.parametrize("several", [False, True])
def test_rows_for_nobody(letters: og.Model, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    """Padding leaves no trace: neither in what others say, nor in what its slots have, also where a decode has failed."""
    engine = driven(letters)
    runner = engine._loop._runner
    assert isinstance(runner, Runner)
    padding, context = engine._loop._scheduler._padding, runner.context
    assert padding is not None
    monkeypatch.setattr(padding, "n_pads", lambda n_rows: 4 - n_rows)
    monkeypatch.setattr("offgrid_llama.engine.loop.UNSEEN", 8 if several else 1)
    decode, widths, failures = context._decode, [], []

    def failing(batch: og.Batch, function: Any) -> None:
        widths.append(len(batch))
        seqs = [batch._first_seq_id[row] for row in range(len(batch))]
        assert seqs == sorted(seqs)  # otherwise llama.cpp computes them in parts
        decode(batch, lib.llama_decode if len(widths) == 6 else function)
        if len(widths) == 6:
            failures.append(len(batch))
            raise og.DecodeFailed("broken", code=-3, memory_restored=False)

    monkeypatch.setattr(context, "_decode", failing)
    first = engine.submit([9] * 40, max_tokens=2, sampling=ENDLESS)
    turns(engine)
    prompts = [[10 + i] * 30 for i in range(2)]
    others = [engine.submit(prompt, max_tokens=40, sampling=ENDLESS) for prompt in prompts]
    turns(engine)
    for prompt, other in zip(prompts, others, strict=True):
        assert other.done
        assert other.result().tokens == alone(letters, prompt, 40, ENDLESS)[0]
    assert widths[-1] == 4
    assert failures == [4]
    assert (len(widths) < 40) is several
    idle(engine)
    again = engine.submit([*[9] * 40, *first.tokens, 7], max_tokens=1)
    turns(engine)
    assert again.result().usage.cached_tokens == 41
    engine._loop._stop()


def test_a_shelf_that_fails(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be kept, or does not come back, is computed again."""
    engine = driven(letters, 1)
    runner = engine._loop._runner
    assert isinstance(runner, Runner)
    prompt = [7] * 60

    def ask(tokens: list[int]) -> og.Completion:
        completion = engine.submit(tokens, max_tokens=8, sampling=ENDLESS)
        turns(engine)
        assert completion.result().tokens == alone(letters, tokens, 8, ENDLESS)[0]
        return completion

    def fail(*_: object) -> None:
        raise og.StateError("not now")

    for name in ("save_state", "load_state"):
        ask(prompt)
        with monkeypatch.context() as patch:
            patch.setattr(runner.context, name, fail)
            ask([8] * 60)
            ask(prompt)
        assert engine.stats().n_shelved == len(runner._states)
    assert engine.stats().n_failed_steps == 1
    idle(engine)
    engine._loop._stop()


def test_a_memory_that_has_forgotten(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where llama.cpp has nothing left to go back to, the prompt is computed again."""
    engine = driven(letters, 1)
    runner = engine._loop._runner
    assert isinstance(runner, Runner)
    remove = og.Memory.remove
    for prompt in ([7] * 60, [*[7] * 50, 8]):
        completion = engine.submit(prompt, max_tokens=8, sampling=ENDLESS)
        turns(engine)
        assert completion.result().tokens == alone(letters, prompt, 8, ENDLESS)[0]
        monkeypatch.setattr(og.Memory, "remove", lambda self, seq, p0=-1: p0 <= 0 and remove(self, seq, p0))
    assert completion.usage.cached_tokens == 0
    assert engine.stats().n_failed_steps == 1
    monkeypatch.undo()
    idle(engine)
    engine._loop._stop()


def test_a_request_without_a_token(engine: og.Engine) -> None:
    """Where everything is forbidden, the request fails alone."""
    nothing = og.SamplingParams(logit_bias=dict.fromkeys(range(61), -math.inf))
    good = engine.submit("abc", max_tokens=20, sampling=ENDLESS)
    bad = engine.submit("abd", max_tokens=20, sampling=nothing)
    with pytest.raises(og.SamplerError):
        bad.result()
    with pytest.raises(og.SamplerError):
        list(bad)
    assert len(good.result().tokens) == 20
    settle(engine)
    idle(engine)


def test_the_model_is_closed_under_it(tmp_path: Path) -> None:
    """Requests end with ClosedError, and so does the next submit(); close() still works."""
    write_tiny_llama(tmp_path / "model.gguf", more=LETTERS)
    model = og.Model(tmp_path / "model.gguf")
    engine = make(model)
    completion = engine.submit("abc", max_tokens=250)
    next(iter(completion))
    model.close()
    with suppress(og.ClosedError):  # or it has ended before
        completion.result()
    with pytest.raises(og.ClosedError):
        engine.generate("abc")
    engine.close()


# Closing ----------------------------------------------------------------------------------------------------------------


def test_close(letters: og.Model) -> None:
    """What runs and what waits ends as cancelled, and after that everything is refused; a second close does nothing."""
    engine = make(letters, 1)
    completions = [engine.submit("abc", max_tokens=200, sampling=ENDLESS) for _ in range(5)]
    engine.close()
    engine.close()
    assert {completion.result().finish_reason for completion in completions} <= {
        FinishReason.CANCELLED, FinishReason.LENGTH,
    }  # fmt: skip
    assert completions[-1].finish_reason is FinishReason.CANCELLED
    with pytest.raises(og.ClosedError, match="Engine of"):
        engine.submit("abc")
    assert engine.closed
    assert not engine.model.closed


def test_close_can_wait(letters: og.Model) -> None:
    """With drain, all that was submitted before goes on to its end."""
    engine = make(letters, 1)
    completions = [engine.submit("abc", max_tokens=20, sampling=ENDLESS) for _ in range(5)]
    engine.close(drain=True)
    assert [len(completion.tokens) for completion in completions] == [20] * 5


def test_an_engine_that_is_dropped(letters: og.Model) -> None:
    """It warns, and frees its context."""
    children = len(letters._handle._children)
    engine = make(letters)
    engine.generate("abc", max_tokens=1)
    held = [engine]
    del engine
    with pytest.warns(ResourceWarning, match="Engine of"):
        held.clear()
    assert len(letters._handle._children) == children


def test_its_own_model(smollm2_path: Path) -> None:
    """A model that the engine has loaded by its path is closed with it."""
    with og.Engine(smollm2_path, n_seq_max=1, n_ctx=256) as engine:
        assert engine.generate("The capital of France is", max_tokens=1, temperature=0).text == " Paris"
    assert engine.model.closed


def test_a_script_that_ends_without_closing(run_child: RunChild, smollm2_path: Path) -> None:
    """The process ends, with an engine at work and a reader that waits in another thread."""
    source = """
        import sys, threading, offgrid_llama as og
        engine = og.Engine(sys.argv[1], n_seq_max=2, n_ctx=2048)
        completion = engine.submit("Once", max_tokens=1000)
        threading.Thread(target=completion.result, daemon=True).start()
        next(iter(completion))
        print("end")
    """
    done = run_child(source, smollm2_path)
    assert (done.returncode, done.stdout.strip()) == (0, "end")


# Threads and event loops ------------------------------------------------------------------------------------------------


def test_many_threads(letters: og.Model, engine: og.Engine) -> None:
    """Sixteen threads at once, and each gets its own text."""
    answers: dict[int, list[int]] = {}

    def one(i: int) -> None:
        answers[i] = [
            token for piece in engine.stream([7 + i, 9], max_tokens=25, sampling=ENDLESS) for token in piece.tokens
        ]

    threads = [threading.Thread(target=one, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(16):
        assert answers[i] == alone(letters, [7 + i, 9], 25, ENDLESS)[0]


def test_one_wakeup_for_a_step_and_a_loop(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four readers on one event loop are woken by one call from the engine's thread, not by four."""

    async def main() -> int:
        loop = asyncio.get_running_loop()
        calls = 0
        call_soon = loop.call_soon_threadsafe

        def count(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            return call_soon(*arguments, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        engine = driven(letters)

        async def read() -> None:
            async for _ in engine.stream_async([9], max_tokens=10, sampling=ENDLESS):
                pass

        tasks = [asyncio.ensure_future(read()) for _ in range(4)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            turns(engine, 1)
        steps = engine.stats().n_steps
        engine._loop._stop()
        assert 0 < calls <= steps
        return calls

    assert asyncio.run(main()) >= 5


def test_steps_that_nobody_reads_along(letters: og.Model) -> None:
    """While nobody iterates, a call makes several steps; from the moment when somebody does, one."""
    engine = driven(letters)
    first = engine.submit("abc", max_tokens=100, sampling=ENDLESS, lookup=False)
    turns(engine, 2)
    before = len(first.tokens)
    turns(engine, 5)
    assert before + 5 < len(first.tokens) <= before + 40
    before = len(first.tokens)
    reader = iter(first)
    next(reader)
    turns(engine, 5)
    assert len(first.tokens) == before + 5
    second = engine.submit("abd", max_tokens=4, sampling=ENDLESS)
    turns(engine)
    assert first.tokens == alone(letters, letters.vocab.tokenize("abc"), 100, ENDLESS)[0]
    assert second.tokens == alone(letters, letters.vocab.tokenize("abd"), 4, ENDLESS)[0]
    engine._loop._stop()


def test_a_busy_python_thread(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where other threads keep the GIL, some steps are made in one call, and the text is the same."""
    monkeypatch.setattr("offgrid_llama.engine.runner.TOGETHER", 60.0)  # a busy machine makes steps as long as others
    stop = False

    def busy() -> None:
        while not stop:
            sum(range(1000))

    threads = [threading.Thread(target=busy) for _ in range(2)]
    with make(letters) as engine:
        calls = 0
        runner = engine._loop._runner
        run = runner.run

        def count(plan: Plan, n_steps: int = 1, seconds: float = 0) -> Any:
            nonlocal calls
            calls += 1
            return run(plan, n_steps, seconds)

        runner.run = count  # type: ignore[method-assign]
        for thread in threads:
            thread.start()
        try:
            completions = [engine.submit([9 + i], max_tokens=200, sampling=ENDLESS) for i in range(3)]
            for i, completion in enumerate(completions):
                assert completion.result().tokens == alone(letters, [9 + i], 200, ENDLESS)[0]
        finally:
            stop = True
            for thread in threads:
                thread.join()
        assert calls < engine.stats().n_steps / 4


def test_threads_may_change(letters: og.Model) -> None:
    """Other numbers of threads, between steps and while idle, give the same text."""
    with og.Engine(letters, n_seq_max=2, n_ctx=256, n_threads=2, flash_attn_type="disabled") as engine:
        first = engine.generate([5, 6, 7], max_tokens=20, temperature=0).tokens
        engine.set_n_threads(1)
        assert engine.generate([5, 6, 7], max_tokens=20, temperature=0).tokens == first
        assert engine._loop._runner.context.n_threads == 1  # type: ignore[attr-defined]
        running = engine.submit([8, 9], max_tokens=100, temperature=0)
        engine.set_n_threads(2)
        assert len(running.result().tokens) > 0
        with pytest.raises(ValueError, match="n_threads"):
            engine.set_n_threads(0)
    with pytest.raises(og.ClosedError):
        engine.set_n_threads(1)
