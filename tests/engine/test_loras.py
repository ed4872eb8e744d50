"""Adapters of requests: by names, batched by the adapters that they have in common, and never mixed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.adapters import write_lora
from helpers.engines import SURE, driven, idle, loop_of, make, runner_of, turns
from helpers.twin import tiny_llama

PROMPT = [*range(7, 31)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four adapters of the tiny llama."""
    folder = tmp_path_factory.mktemp("loras")
    found = {}
    for i, name in enumerate("abcd"):
        found[name] = folder / f"{name}.gguf"
        write_lora(found[name], tiny_llama()[1], seed=i)
    return found


@pytest.fixture(scope="module")
def named(letters: og.Model, files: dict[str, Path]) -> Iterator[og.Engine]:
    """An engine with all four."""
    with make(letters, adapters=files) as engine:
        yield engine


def test_requests_name_adapters(letters: og.Model, named: og.Engine, files: dict[str, Path]) -> None:
    """A request has those that it names, at its scales; they are those of the same files as LoRAs."""
    said = {name: named.generate(PROMPT, max_tokens=12, sampling=SURE, loras=[name]).tokens for name in files}
    plain = named.generate(PROMPT, max_tokens=12, sampling=SURE).tokens
    assert len({tuple(tokens) for tokens in (*said.values(), plain)}) == 5
    assert named.generate(PROMPT, max_tokens=12, sampling=SURE, loras={"a": 0}).tokens == plain
    weaker = named.generate(PROMPT, max_tokens=12, sampling=SURE, loras={"a": 0.2}).tokens
    with og.LoRA(letters, files["a"]) as lora, make(letters) as engine:
        assert engine.generate(PROMPT, max_tokens=12, sampling=SURE, loras={lora: 1.0}).tokens == said["a"]
        assert engine.generate(PROMPT, max_tokens=12, sampling=SURE, loras={lora: 0.2}).tokens == weaker
    both = named.generate(PROMPT, max_tokens=12, sampling=SURE, loras={"a": 1.0, named.adapters["b"]: 0.5}).tokens
    assert both not in (said["a"], said["b"], plain)
    named.set_loras({"b": 1})
    assert named.generate(PROMPT, max_tokens=12, sampling=SURE).tokens == said["b"]
    named.set_loras(())
    assert named.generate(PROMPT, max_tokens=12, sampling=SURE).tokens == plain
    likely, unlikely = (named.score(PROMPT, [said["a"]], loras=loras)[0].logprob for loras in (["a"], []))
    assert likely > unlikely


def test_what_is_refused(letters: og.Model, smollm2: og.Model, files: dict[str, Path], named: og.Engine) -> None:
    """Unknown names, the same adapter twice, files that are none, adapters of another model."""
    with pytest.raises(ValueError, match="Known: 'a', 'b', 'c', 'd'"):
        named.submit(PROMPT, loras={"e": 1})
    with pytest.raises(ValueError, match="given twice"):
        named.submit(PROMPT, loras={"a": 1, named.adapters["a"]: 1})
    with make(letters) as engine, pytest.raises(ValueError, match=r"name them by Engine\(adapters"):
        engine.submit(PROMPT, loras=["a"])
    with pytest.raises(TypeError, match="names of an engine's adapters"):
        named.submit(PROMPT, loras=[3])  # type: ignore[list-item]
    with pytest.raises(FileNotFoundError):
        make(letters, adapters={"a": files["a"], "b": "nowhere.gguf"})
    with pytest.raises(TypeError, match="each name in adapters"):
        make(letters, adapters={3: files["a"]})
    with og.LoRA(letters, files["a"]) as lora, pytest.raises(ValueError, match="is for"):
        og.Engine(smollm2, n_ctx=256, n_seq_max=1, adapters={"a": lora})


def test_files_are_closed_with_the_engine(letters: og.Model, files: dict[str, Path]) -> None:
    """What the engine has loaded, and nothing else."""
    with og.LoRA(letters, files["b"]) as mine:
        with make(letters, adapters={"a": files["a"], "b": mine}, loras={"a": 0.5}) as engine:
            loaded = engine.adapters["a"]
        assert loaded.handle.closed
        assert not mine.handle.closed


def test_those_with_the_same_adapters_share_steps(letters: og.Model, files: dict[str, Path]) -> None:
    """Sixteen requests in turn with two adapters: eight and eight, not one by one."""
    with driven(letters, 8, adapters=files, steps_in_a_call=1) as engine:
        some = [
            engine.submit([*PROMPT, 7 + i], max_tokens=6, sampling=SURE, loras=["a" if i % 2 else "b"])
            for i in range(16)
        ]
        changes, used = 0, None
        while loop_of(engine).has_work:
            turns(engine, 1)
            now = runner_of(engine).context.adapters.loras
            changes, used = changes + (list(now) != used), list(now)
        assert changes <= 3
        assert all(each.done for each in some)


def test_no_adapter_waits_for_ever(letters: og.Model, files: dict[str, Path]) -> None:
    """However many come with the adapters in use, one with others has its turn."""
    with driven(letters, 3, adapters=files, steps_in_a_call=1) as engine:
        first = engine.submit(PROMPT, max_tokens=30, sampling=SURE, loras=["a"])
        turns(engine, 1)
        assert not first.done
        other = engine.submit(PROMPT, max_tokens=4, sampling=SURE, loras=["b"])
        more: list[og.Completion] = []
        while not other.done:
            if engine.stats().n_waiting < 8:
                n = len(more)
                more.append(
                    engine.submit([7 + n % 40, *PROMPT], max_tokens=15 + 4 * (n % 3), sampling=SURE, loras=["a"])
                )
            turns(engine, 1)
            assert len(more) < 60
        assert not more[-1].done
        turns(engine)


def test_any_schedule(letters: og.Model, files: dict[str, Path], pytestconfig: pytest.Config) -> None:
    """Sixteen requests with four adapters and none, as they come: each says what it says alone, and nothing is left."""
    alone: dict[Any, list[int]] = {}
    choices: list[dict[str, float]] = [
        {},
        *({name: scale} for name in files for scale in (1.0, 0.5)),
        {"a": 1.0, "b": 1.0},
    ]
    with make(letters, 1, adapters=files, cache_bytes=0) as engine:
        for index in range(len(choices)):
            for n in range(0, 60, 12):
                key = (index, n)
                prompt = [*PROMPT, *range(7, 7 + n % 24), 9 + n % 7]
                alone[key] = engine.generate(prompt, max_tokens=12, sampling=SURE, loras=choices[index]).tokens
    for seed in range(pytestconfig.getoption("--hazard-cases") or 100):
        rng = random.Random(seed)
        options = {
            "kv_unified": rng.random() < 0.3,
            "cache_bytes": rng.choice([0, 2**20]),
            "n_batch": rng.choice([16, 64]),
        }
        with driven(letters, rng.randint(1, 5), adapters=files, **options) as engine:
            said = []
            for _ in range(16):
                index, n = rng.randrange(len(choices)), rng.randrange(0, 60, 12)
                prompt = [*PROMPT, *range(7, 7 + n % 24), 9 + n % 7]
                most = rng.randint(1, 12)
                said.append(
                    (index, n, most, engine.submit(prompt, max_tokens=most, sampling=SURE, loras=choices[index]))
                )
                turns(engine, rng.choice([0, 0, 1, 3]))
                if rng.random() < 0.1:
                    rng.choice(said)[3].cancel()
            turns(engine)
            for index, n, most, completion in said:
                cancelled = completion.finish_reason is og.FinishReason.CANCELLED
                n_tokens = len(completion.tokens) if cancelled else most
                assert completion.tokens == alone[index, n][:n_tokens], (seed, index, n)
            assert engine.stats().n_failed_steps == 0
            idle(engine)
