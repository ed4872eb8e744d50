"""Computed prefixes are found again: in other sequences, in host memory and on the disk."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.engines import ENDLESS, GREEDY, N_CTX_SEQ, SURE, alone, idle, make, runner_of, settle
from offgrid_llama.engine.planning.plan import Plan
from offgrid_llama.engine.request import EngineRequest


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
        states = runner_of(engine).cache.states
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
        disk = runner_of(engine).cache.disk
        assert disk is not None
        disk.wait()
        (folder,) = tmp_path.iterdir()
        assert sum(file.stat().st_size for file in folder.glob("*.state")) == stats.disk_bytes
        assert stats.n_failed_steps == 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError):
        make(letters, cache_dir=tmp_path / "none")


def test_a_disk_that_fails(letters: og.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prefix that could not be written, or is damaged, is computed again, and no longer counted."""
    prompts = [[7 + i] * 100 for i in range(8)]
    with make(letters, 1, cache_bytes=150_000, cache_dir=tmp_path) as engine:
        disk = runner_of(engine).cache.disk
        assert disk is not None
        expected = [engine.generate(prompt, max_tokens=10, sampling=SURE).tokens for prompt in prompts]
        disk.wait()
        (folder,) = tmp_path.iterdir()
        damaged = sorted(folder.glob("*.state"))[0]
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("offgrid_llama.context.state.State.save", full)
            for prompt, tokens in zip(prompts, expected, strict=True):
                assert engine.generate(prompt, max_tokens=10, sampling=SURE).tokens == tokens
            disk.wait()
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


def test_eight_that_arrive_together_compute_their_prefix_once(letters: og.Model) -> None:
    """No token of a shared beginning is computed twice."""
    system = [random.Random(1).randrange(7, 57) for _ in range(150)]
    with make(letters, 8, n_ctx=8 * N_CTX_SEQ) as engine:
        computed = 0
        runner = runner_of(engine)
        run = runner.run

        def count(plan: Plan[EngineRequest], n_steps: int = 1, seconds: float = 0) -> Any:
            nonlocal computed
            computed += plan.n_prompt
            return run(plan, n_steps, seconds)

        runner.run = count  # type: ignore[method-assign]
        completions = [engine.submit([*system, 20 + i], max_tokens=4, **GREEDY) for i in range(8)]
        for i, completion in enumerate(completions):
            assert (
                completion.result().tokens == alone(letters, [*system, 20 + i], 4, og.SamplingParams(temperature=0))[0]
            )
        assert computed == len(system) + 8
