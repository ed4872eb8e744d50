"""Any schedule: each request gives what it gives alone, and nothing is left."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

import offgrid_llama as og
from helpers.children import RunChild
from helpers.engines import EOS, N_CTX_SEQ, alone, always_draft, driven, idle, loop_of, on_the_edge, runner_of, turns
from helpers.estimates import MadeUpCosts, MadeUpPace, MadeUpPadding
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama.engine import Completion, FinishReason


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
        self.engine = driven(
            model, n_seq_max, n_batch=n_batch, kv_unified=unified, n_ctx=n_ctx, draft_model=small, **disk
        )
        if small is not None:
            always_draft(self.engine, rng.choice([1, 4]))
        estimates = loop_of(self.engine).scheduler.estimates  # made up, so that a seed is the same again
        estimates.pace = MadeUpPace(lambda *_: rng.choice([1, 7, n_batch]))
        if estimates.padding is not None:
            estimates.padding = MadeUpPadding(estimates.padding.limit, lambda _: rng.choice([0, 0, 1, 2, 3]))
        estimates.costs = MadeUpCosts(lambda *_: rng.choice([1.0, 3.0]))
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
        runner, slots = runner_of(self.engine), loop_of(self.engine).scheduler.slots
        for _ in range(25):
            self.disturb(0.3)
            runner.contended_gil_seconds = self.rng.choice([math.inf, -1.0])  # one step in a call, or several
            turns(self.engine, 1)
            assert slots.cells is None or slots.cells.free >= 0
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
        self.engine.close()


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
with og.Model(sys.argv[1]) as model, og.Engine(model, draft_model=model, **options) as engine:
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
