"""Guesses and draft models change no answer, neither by wrong guesses nor by failures."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.architectures import ARCHITECTURES
from helpers.engines import (
    ENDLESS,
    EOS,
    SURE,
    Prophet,
    alone,
    always_draft,
    driven,
    idle,
    make,
    runner_of,
    settle,
    turns,
)
from helpers.handles import n_children
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama.context.batch import Rows


def test_guesses_change_nothing(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that were guessed right are taken several at a time; the text, its logprobs and its end are the same."""
    monkeypatch.setattr("offgrid_llama.engine.submission.Lookup", Prophet)
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


def test_a_draft_changes_nothing(letters: og.Model, nearly: og.Model) -> None:
    """Right guesses of a small model are taken several tokens at a time; text, logprobs and end are the same."""
    plain = make(letters)
    for small in (letters, nearly):
        with make(letters, draft_model=small, kv_unified=small is nearly) as engine:
            always_draft(engine, 4)
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


def test_a_draft_follows_the_conversation(letters: og.Model) -> None:
    """The draft model does not compute the beginning of a request again if another has computed it in any sequence."""
    engine = driven(letters, draft_model=letters)
    always_draft(engine, 3)
    runner = runner_of(engine)
    assert runner.drafter is not None
    context = runner.drafter.context
    computed: list[int] = []
    decode = context.decode_with

    def count(batch: Rows, function: Any) -> None:
        computed.append(len(batch))
        decode(batch, function)

    context.decode_with = count  # type: ignore[method-assign]
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
    engine.close()


def test_a_draft_that_fails(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft model that fails is started again, and the answer is the same."""
    engine = driven(letters, draft_model=letters)
    always_draft(engine, 3)
    runner = runner_of(engine)
    assert runner.drafter is not None
    context = runner.drafter.context
    decode, calls = context.decode_with, 0

    def fail(batch: og.Batch, function: Any) -> None:
        nonlocal calls
        calls += 1
        decode(batch, function)
        if calls % 5 == 0:
            raise og.DecodeFailed("broken", code=-3, memory_restored=False)

    monkeypatch.setattr(context, "decode_with", fail)
    completions = [engine.submit([9 + i] * 20, max_tokens=30, sampling=SURE, lookup=False) for i in range(3)]
    turns(engine)
    for i, completion in enumerate(completions):
        assert completion.result().tokens == alone(letters, [9 + i] * 20, 30, SURE)[0]
    assert calls > 10
    stats = engine.stats()
    assert stats.guessed_tokens_right > 0.9 * stats.guessed_tokens > 0
    assert stats.n_failed_steps == 0
    engine.close()


def test_a_draft_that_does_not_fit(letters: og.Model, smollm2: og.Model, tmp_path: Path) -> None:
    """Another vocabulary, and a memory that takes nothing back, are refused; a model that was loaded for it is closed."""
    with pytest.raises(ValueError, match="vocabulary"):
        make(letters, draft_model=smollm2)
    other = {**LETTERS, "tokenizer.ggml.tokens": [*LETTERS["tokenizer.ggml.tokens"][:-1], "!"]}  # type: ignore[index]
    write_tiny_llama(tmp_path / "other.gguf", more=other)
    children = n_children(letters)
    with pytest.raises(ValueError, match="token 60 is b'!' there"):
        make(letters, draft_model=tmp_path / "other.gguf")
    assert n_children(letters) == children
    ARCHITECTURES["mamba"].write(tmp_path / "mamba.gguf", LETTERS)
    with pytest.raises(ValueError, match="take back"):
        make(letters, draft_model=tmp_path / "mamba.gguf")
