"""Decodes, memories and models that fail: one request ends with the error, the others go on."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.engines import ENDLESS, Faulty, alone, driven, idle, loop_of, make, runner_of, settle, turns
from helpers.estimates import MadeUpPadding
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama._capi import lib
from offgrid_llama.engine import FinishReason


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
    engine.close()


@pytest.mark.parametrize("several", [False, True])
def test_rows_for_nobody(letters: og.Model, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
    """Padding leaves no trace: neither in what others say, nor in what its slots have, also where a decode has failed."""
    engine = driven(letters, steps_in_a_call=8 if several else 1)
    estimates, context = loop_of(engine).scheduler.estimates, runner_of(engine).context
    assert estimates.padding is not None
    estimates.padding = MadeUpPadding(estimates.padding.limit, lambda n_rows: 4 - n_rows)
    decode, widths, failures = context.decode_with, [], []

    def failing(batch: og.Batch, function: Any) -> None:
        widths.append(len(batch))
        seqs = [batch.c.seq_id[row][0] for row in range(len(batch))]
        assert seqs == sorted(seqs)  # otherwise llama.cpp computes them in parts
        decode(batch, lib.llama_decode if len(widths) == 6 else function)
        if len(widths) == 6:
            failures.append(len(batch))
            raise og.DecodeFailed("broken", code=-3, memory_restored=False)

    monkeypatch.setattr(context, "decode_with", failing)
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
    engine.close()


def test_a_shelf_that_fails(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix that cannot be kept, or does not come back, is computed again."""
    engine = driven(letters, 1)
    runner = runner_of(engine)
    prompt = [7] * 60

    def ask(tokens: list[int]) -> og.Completion:
        completion = engine.submit(tokens, max_tokens=8, sampling=ENDLESS)
        turns(engine)
        assert completion.result().tokens == alone(letters, tokens, 8, ENDLESS)[0]
        return completion

    def fail(*_: object) -> None:
        raise og.StateError("not now")

    for name in ("save", "load"):
        ask(prompt)
        with monkeypatch.context() as patch:
            patch.setattr(runner.cache, name, fail)
            ask([8] * 60)
            ask(prompt)
        assert engine.stats().n_shelved == len(runner.cache.states)
    assert engine.stats().n_failed_steps == 1
    idle(engine)
    engine.close()


def test_a_memory_that_has_forgotten(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where llama.cpp has nothing left to go back to, the prompt is computed again."""
    engine = driven(letters, 1)
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
    engine.close()


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
