"""Adapters of requests: by names, batched by the adapters that they have in common, and never mixed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.adapters import write_lora
from helpers.engines import EOS, SURE, driven, idle, loop_of, make, runner_of, turns
from helpers.twin import EXACT, tiny_llama

PROMPT = [*range(7, 31)]
MARKS = (9, 10)
"""Tokens that switch the late adapters on; PROMPT has them, too."""


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
def late_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters that tokens of the prompt switch on."""
    folder = tmp_path_factory.mktemp("late")
    found = {name: folder / f"{name}.gguf" for name in "yz"}
    for seed, path in enumerate(found.values()):
        write_lora(path, tiny_llama()[1], seed=10 + seed, invocation_tokens=MARKS)
    return found


def by_hand(
    model: og.Model, prompt: list[int], begin: list[og.LoRA], pos: int, then: list[og.LoRA], n: int
) -> list[int]:
    """Return what the nouns say to a prompt whose first ``pos`` tokens are computed with other adapters than the rest."""
    with og.Context(model, n_ctx=256, n_batch=128, **EXACT) as context:
        said: list[int] = []
        for some, loras in ((range(pos), begin), (range(pos, len(prompt)), then)):
            context.set_loras(loras)
            batch = og.Batch(128)
            for i in some:
                batch.add(prompt[i], i, [0], logits=True)
            if len(batch):
                context.decode(batch)
        for _ in range(n):
            logits = context.logits(len(batch) - 1).copy()
            logits[EOS] = -np.inf
            said.append(int(logits.argmax()))
            batch = og.Batch(1)
            batch.add(said[-1], len(prompt) + len(said) - 1, [0], logits=True)
            context.decode(batch)
        return said


def test_one_that_tokens_switch_on(letters: og.Model, files: dict[str, Path], late_files: dict[str, Path]) -> None:
    """It is used from the last of its tokens on; what comes before is computed without it, and shared."""
    prompt = [*PROMPT, *MARKS, 31, 32]
    with make(letters, adapters={**files, **late_files}) as engine:
        y, a = engine.adapters["y"], engine.adapters["a"]
        plain = engine.generate(prompt, max_tokens=12, sampling=SURE)
        assert engine.generate(prompt, max_tokens=1, sampling=SURE).usage.cached_tokens == len(prompt) - 1
        said = engine.generate(prompt, max_tokens=12, sampling=SURE, loras=["y"])
        assert said.usage.cached_tokens == len(PROMPT)  # of the plain one
        assert said.tokens == by_hand(letters, prompt, [], len(PROMPT), [y], 12)
        again = engine.generate(prompt, max_tokens=12, sampling=SURE, loras=["y"])
        assert (again.tokens, again.usage.cached_tokens) == (said.tokens, len(prompt) - 1)
        other = engine.generate(prompt, max_tokens=12, sampling=SURE, loras=["z"])
        assert other.usage.cached_tokens == len(PROMPT)
        assert len({tuple(each.tokens) for each in (plain, said, other)}) == 3
        mixed = engine.generate(prompt, max_tokens=12, sampling=SURE, loras=["a", "y"])
        assert mixed.tokens == by_hand(letters, prompt, [a], len(PROMPT), [a, y], 12)
        assert mixed.usage.cached_tokens == 0
        first = engine.generate([*MARKS, 31, 32], max_tokens=12, sampling=SURE, loras=["y"])
        assert first.tokens == by_hand(letters, [*MARKS, 31, 32], [], 0, [y], 12)
        without = [*range(11, 31)]
        unmarked = engine.generate(without, max_tokens=12, sampling=SURE, loras=["y"]).tokens
        assert unmarked == engine.generate(without, max_tokens=12, sampling=SURE).tokens
        with pytest.raises(og.AdapterError, match="aLoRA"):
            engine.submit(prompt, loras=["y", "z"])
        engine.set_loras(["y"])
        assert engine.generate(prompt, max_tokens=12, sampling=SURE).tokens == said.tokens
        assert engine.generate(prompt, max_tokens=12, sampling=SURE, loras=[]).tokens == plain.tokens
        idle(engine)
    with make(letters, adapters=late_files, loras=["y"]) as engine:
        assert engine.generate(prompt, max_tokens=12, sampling=SURE).tokens == said.tokens


def test_a_late_one_in_pieces_and_shifts(letters: og.Model, late_files: dict[str, Path]) -> None:
    """Long prompts change adapters where the tokens say so, not where a step ends; a full sequence goes on."""
    prompt = [11 + n % 20 for n in range(100)]
    prompt[70:72] = MARKS
    with make(letters, 1, adapters=late_files, n_batch=64) as engine:
        said = engine.generate(prompt, max_tokens=12, sampling=SURE, loras=["y"]).tokens
        assert said == by_hand(letters, prompt, [], 70, [engine.adapters["y"]], 12)
        scored = engine.generate(prompt, max_tokens=2, sampling=SURE, loras=["y"], prompt_logprobs=0)
        assert scored.tokens == said[:2]
        assert scored.prompt_logprobs is not None
        assert len(scored.prompt_logprobs) == len(prompt)
        long = engine.generate(prompt, max_tokens=400, sampling=SURE, loras=["y"], n_keep=4).tokens
        assert (len(long), long[:12]) == (400, said)
    with make(letters, 2, adapters=late_files, deterministic=True) as engine:
        assert engine.generate(prompt, max_tokens=12, sampling=SURE, loras=["y"]).tokens == said


def test_a_late_one_goes_on(letters: og.Model, late_files: dict[str, Path]) -> None:
    """A text keeps it when its beginning is forgotten; another one whose beginning is computed joins it at once."""
    prompt = [11 + n % 20 for n in range(230)]
    prompt[200:202] = MARKS
    with driven(letters, 2, adapters=late_files, steps_in_a_call=1) as engine:
        first = engine.submit(prompt, max_tokens=200, sampling=SURE, loras=["y"], n_keep=4)
        while not first.tokens:
            turns(engine, 1)
        other = engine.submit(prompt, max_tokens=3, sampling=SURE, loras=["y"])
        while loop_of(engine).has_work:
            turns(engine, 1)
            assert [lora.path for lora in runner_of(engine).context.adapters.loras] == [late_files["y"]]
            assert not first.done or other.done
        assert len(first.tokens) == 200
        assert other.tokens == first.tokens[:3]


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


def test_any_schedule(
    letters: og.Model, files: dict[str, Path], late_files: dict[str, Path], pytestconfig: pytest.Config
) -> None:
    """Sixteen requests with adapters, late ones, and none, as they come: each says what it says alone; nothing is left."""
    files = {**files, **late_files}
    alone: dict[Any, list[int]] = {}
    choices: list[dict[str, float]] = [
        {},
        *({name: scale} for name in files for scale in (1.0, 0.5)),
        {"a": 1.0, "b": 1.0},
        {"a": 1.0, "y": 1.0},
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
