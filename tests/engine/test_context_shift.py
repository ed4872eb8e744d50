"""Full sequences go on without the older half of what they hold."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.architectures import ARCHITECTURES
from helpers.engines import N_CTX_SEQ, SURE, alone, driven, idle, make, runner_of, turns
from helpers.twin import EXACT, LETTERS
from offgrid_llama.engine import FinishReason


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
        engine.close()


def test_a_shift_and_a_decode_that_fails(letters: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly the tokens that were kept after a shift are computed again; the answer goes on from the same text."""
    engine = driven(letters, 1, steps_in_a_call=1)
    long = engine.submit([9] * 30, max_tokens=400, sampling=SURE, n_keep=10, lookup=False)
    turns(engine, 300)
    text = [*[9] * 30, *long.tokens]
    assert len(text) > N_CTX_SEQ
    runner = runner_of(engine)

    def fail(*_: object) -> None:
        raise og.DecodeFailed("broken", code=-3, memory_restored=False)

    with monkeypatch.context() as patch:
        patch.setattr(runner.context, "decode_with", fail)
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
        patch.setattr(runner.context, "decode_with", abort)
        runner.context.memory.clear()
        turns(engine, 1)
    turns(engine)
    assert len(aborted.result().tokens) == 400
    assert aborted.tokens[:300] == alone_shifting(letters, [9] * 30, 300, 10)
    idle(engine)
    engine.close()


def test_a_memory_that_cannot_shift(tmp_path: Path) -> None:
    """It is told so at once."""
    ARCHITECTURES["mamba"].write(tmp_path / "mamba.gguf", LETTERS)
    with og.Model(tmp_path / "mamba.gguf") as model, make(model) as engine, pytest.raises(ValueError, match="n_keep"):
        engine.submit([9], n_keep=0)
