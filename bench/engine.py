"""The engine under load: against llama-bench, llama-batched-bench, llama-server and llama-cpp-python, in turn in one run.

    python bench/engine.py [--pairs 5] [--only SECTION] [--threads N] [--model NAME=FILE] [--no-write]

It takes some 80 minutes; sections may be run apart, each takes the place of what the report has of it.

All sides run the same libllama. Every sample is a fresh process that loads the model and warms up. The sections:

- streams: tokens a second of 1 stream (llama-bench -n 128), and of 8 and 16 (llama-batched-bench -npp 128 -ntg 128), all
  together. The peers feed tokens that they have made up, and sample nothing; the engine samples greedily and makes text.
  One stream is measured in eight times as many pairs, each of one repetition, and several in three times as many: the
  machine drifts within seconds.
- crowd: tokens a second of 8 requests of 128 tokens that arrive together and generate 64 each, from the first one to the end
  of the last, prompts and all: ours by submit(), llama-server's over HTTP with 8 slots, llama-cpp-python's one after the
  other, as its Llama serves one at a time.
- first_token: 8 requests that arrive together with a shared prefix of 1,024 tokens and 16 of their own: the time to the
  first token of the slowest, which is the 95th percentile of 8; ours by submit(), llama-server's over HTTP with 8 slots, its
  prompt cache on, streaming.
- busy: tokens a second of 1 and 8 streams beside a Python thread that computes without pause, to those beside a process.
  This, lookup and draft compare the engine with itself: five pairs by turns in each process, of which it takes the median.
- long_prompt: seven streams while a prompt of 4,000 tokens comes in: the median time between their tokens, to that before.
- lookup: tokens a second of one stream with prompt lookup, to those without: on a text that the model repeats, where it
  is also compared with llama-batched-bench: its speed with as many sequences as a guess has rows, over its speed with one;
  and on a story.
- draft: tokens a second of one stream with a draft model, to those without: of a made up llama of 24 layers, all but the
  first of which add nothing, drafted by that first one; and of the model by itself, which cannot pay, nor is it to cost.
- overhead: microseconds of Python for each token of 64 requests, with a runner that computes nothing, and 0 and 10,000
  others in the queue; and those of a look-up among 1 and 256 texts of 4,000 tokens.

llama-server is built by `python bench/peers.py --server`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from harness import MODELS
from peers import Peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

N_PROMPT, N_GEN = 128, 128
PREFIX, OWN, TOGETHER = 1024, 16, 8
CROWD_GEN = 64
REPETITIONS = 5
OURS = "offgrid_llama"


def made_up(seed: int, n: int) -> list[int]:
    """Return n token ids of no meaning that both models have as plain text."""
    choose = random.Random(seed)
    return [choose.randrange(1000, 40000) for _ in range(n)]


def endless(model: Any, **options: Any) -> Any:
    """Return greedy sampling that never ends a text."""
    import offgrid_llama as og

    return og.SamplingParams(
        temperature=0, logit_bias=dict.fromkeys(model.vocab.eog_tokens(), float("-inf")), **options
    )


# Our side ---------------------------------------------------------------------------------------------------------------


def at_once(engine: Any, n: int, n_gen: int = N_GEN) -> float:
    """Return the tokens a second of n requests that get their first tokens in one step, from then on."""
    options: dict[str, Any] = {"max_tokens": n_gen, "sampling": endless(engine.model), "lookup": False}
    completions: list[Any] = []

    def submit_all(_tokens: object, _logits: object) -> None:
        """Called in the engine's thread: the step after this one has them all."""
        prompts = (made_up(i, 1 if n == 1 else N_PROMPT) for i in range(n))
        completions.extend(engine.submit(prompt, **options) for prompt in prompts)

    engine.generate(made_up(99, 8), max_tokens=1, logits_processors=[submit_all])
    answers = [completion.result().answers[0] for completion in completions]
    begin = max(answer.first_token or 0 for answer in answers)
    end = max(answer.finished or 0 for answer in answers)
    return n * (n_gen - 1) / (end - begin)


def streams(file: str, threads: int, n: int) -> float:
    """Return the tokens a second of n requests."""
    import offgrid_llama as og

    with og.Engine(file, n_seq_max=n, n_ctx=n * (N_PROMPT + N_GEN), n_threads=threads) as engine:
        if n == 1:
            at_once(engine, n, 16)  # a warm-up, as llama-bench does
        return at_once(engine, n)


def crowd(file: str, threads: int) -> float:
    """Return the tokens a second of requests that arrive together, prompts and all."""
    import offgrid_llama as og

    with og.Engine(file, n_seq_max=TOGETHER, n_ctx=TOGETHER * (N_PROMPT + N_GEN), n_threads=threads) as engine:
        sampling = endless(engine.model)
        engine.generate(made_up(99, 8), max_tokens=2)
        begin = time.perf_counter()
        completions = [
            engine.submit(made_up(i, N_PROMPT), max_tokens=CROWD_GEN, sampling=sampling) for i in range(TOGETHER)
        ]
        n = sum(len(completion.result().tokens) for completion in completions)
        return n / (time.perf_counter() - begin)


def crowd_of_llama_cpp_python(file: str, threads: int) -> float:
    """Do with llama-cpp-python what `crowd` does."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    llama = llama_cpp.Llama(
        file, n_ctx=N_PROMPT + N_GEN, n_threads=threads, n_threads_batch=threads, flash_attn=True, verbose=False
    )

    def generate(prompt: list[int], n: int) -> int:
        llama.reset()
        tokens = llama.generate(prompt, temp=0.0, top_k=1)
        return sum(1 for _, token in zip(range(n), tokens, strict=False) if llama.detokenize([token]) is not None)

    generate(made_up(99, 8), 2)
    begin = time.perf_counter()
    n = sum(generate(made_up(i, N_PROMPT), CROWD_GEN) for i in range(TOGETHER))
    return n / (time.perf_counter() - begin)


def first_token(file: str, threads: int) -> dict[str, float]:
    """Return the times to the first token of requests with a shared prefix, and how much of it was computed again."""
    import offgrid_llama as og

    n_ctx = 2048
    with og.Engine(file, n_seq_max=TOGETHER, n_ctx=TOGETHER * n_ctx, n_threads=threads) as engine:
        engine.generate(made_up(99, 8), max_tokens=2)
        before = engine.stats()
        prefix = made_up(1, PREFIX)
        completions = [engine.submit([*prefix, *made_up(2 + i, OWN)], max_tokens=8) for i in range(TOGETHER)]
        times = [completion.result().timings.first_token or 0.0 for completion in completions]
        stats = engine.stats()
        computed = stats.prompt_tokens - stats.prompt_tokens_cached - before.prompt_tokens + before.prompt_tokens_cached
        return {"slowest": max(times), "median": statistics.median(times), "computed": computed}


def in_pairs(take: Callable[[bool], float]) -> dict[str, float]:
    """Return the median of the ratios of what ``take`` gives with True and with False, by turns in one process."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for i in range(REPETITIONS):
        for side in (True, False) if i % 2 else (False, True):
            found[side].append(take(side))
    pairs = [a / b for a, b in zip(found[True], found[False], strict=True)]
    medians = {"with": statistics.median(found[True]), "without": statistics.median(found[False])}
    return {"ratio": statistics.median(pairs), **medians}


def busy(file: str, threads: int, n: int) -> dict[str, float]:
    """Return the tokens a second of n streams beside a thread that computes without pause, and beside a process."""
    import offgrid_llama as og

    go = threading.Event()

    def compute() -> None:
        while go.wait():
            sum(range(1000))

    threading.Thread(target=compute, daemon=True).start()
    other = subprocess.Popen([sys.executable, "-c", "while True: sum(range(1000))"])
    try:
        other.send_signal(signal.SIGSTOP)
        with og.Engine(file, n_seq_max=n, n_ctx=n * (N_PROMPT + N_GEN), n_threads=threads) as engine:

            def take(beside_a_thread: bool) -> float:
                if beside_a_thread:
                    go.set()
                else:
                    other.send_signal(signal.SIGCONT)
                try:
                    return at_once(engine, n, 64)
                finally:
                    go.clear()
                    other.send_signal(signal.SIGSTOP)

            return in_pairs(take)
    finally:
        other.kill()
        other.wait()


def long_prompt(file: str, threads: int) -> dict[str, float]:
    """Return how much longer seven streams wait for a token while a prompt of 4,000 is computed."""
    import offgrid_llama as og

    arrivals: list[list[float]] = [[] for _ in range(7)]
    n_ctx = 4352
    with og.Engine(file, n_seq_max=8, n_ctx=8 * n_ctx, n_threads=threads) as engine:
        sampling = endless(engine.model)

        def read(i: int) -> None:
            for piece in engine.stream(made_up(i, 64), max_tokens=4000, sampling=sampling):
                arrivals[i] += [time.perf_counter()] * len(piece.tokens)

        for i in range(7):
            threading.Thread(target=read, args=(i,), daemon=True).start()
        while min(map(len, arrivals)) < 40:
            time.sleep(0.01)
        begin = time.perf_counter()
        engine.generate(made_up(50, 4000), max_tokens=1)
        end = time.perf_counter()
        while min(sum(at > end for at in each) for each in arrivals) < 20:
            time.sleep(0.01)

    def between(low: float, high: float) -> list[float]:
        return [b - a for each in arrivals for a, b in pairwise(each) if low < a and b <= high]

    # Normal is before and after: the streams have grown meanwhile.
    normal = statistics.median([*between(begin - 1e9, begin)[-200:], *between(end, end + 1e9)])
    during = between(begin, end)
    return {
        "median": statistics.median(during) / normal,
        "95th percentile": statistics.quantiles(during, n=20)[-1] / normal,
        "seconds": end - begin,
    }


TEXT = """The harbour of the old town lies between two hills, and every morning the fishing boats come back with the tide.
In the market hall women sell bread, onions and smoked fish, while children run between the stalls. An old clock above the
gate has shown ten past four for as long as anyone remembers, and nobody thinks of repairing it. When the rain comes from
the west, the streets smell of salt and tar, and the lamps are lit early.
"""


def lookup(file: str, threads: int, task: str) -> dict[str, float]:
    """Return the tokens a second of a text that repeats its prompt, or of a story, to those without; and rows of a step."""
    import offgrid_llama as og

    again = "The same text again:\n"
    prompt = f"Text:\n{TEXT}\n{again}{TEXT}\n{again}" if task == "repeat" else "Once upon a time there was"
    with og.Engine(file, n_seq_max=1, n_ctx=1024, n_threads=threads) as engine:
        sampling = endless(engine.model)
        rows = []

        def take(on: bool) -> float:
            completion = engine.generate(prompt, max_tokens=100, sampling=sampling, lookup=on)
            request = completion.answers[0].request
            if on:
                rows.append(1 + request.n_guessed / (99 - request.n_right))
            return 99 / (completion.timings.decode or 1.0)

        take(False)
        take(True)  # it learns what rows cost
        return in_pairs(take) | {"rows": statistics.median(rows)}


def deep_and_first(folder: Path) -> tuple[Path, Path]:
    """Write a llama of 24 layers, all but the first of which add nothing, and one that is its first layer."""
    import numpy as np

    sys.path.append(str(harness.ROOT / "tests"))
    from helpers.twin import LETTERS, N_VOCAB, tiny_llama, write_gguf

    n_embd, n_ff, n_head = 512, 1408, 8
    paths = []
    for name, n_layers in (("deep", 24), ("first", 1)):
        rng = np.random.default_rng(1)

        def matrix(rows: int, columns: int, rng: Any = rng) -> Any:
            return (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)

        sizes = {
            "block_count": n_layers, "embedding_length": n_embd, "feed_forward_length": n_ff,
            "attention.head_count": n_head, "attention.head_count_kv": n_head, "rope.dimension_count": n_embd // n_head,
        }  # fmt: skip
        tensors = {
            "token_embd.weight": 20 * matrix(N_VOCAB, n_embd), "output.weight": matrix(N_VOCAB, n_embd),
            "output_norm.weight": np.ones(n_embd, np.float32),
        }  # fmt: skip
        for i in range(n_layers):
            adds = np.float32(i == 0)
            for each in ("q", "k", "v"):
                tensors[f"blk.{i}.attn_{each}.weight"] = matrix(n_embd, n_embd)
            tensors[f"blk.{i}.attn_output.weight"] = adds * matrix(n_embd, n_embd)
            tensors[f"blk.{i}.ffn_gate.weight"] = matrix(n_ff, n_embd)
            tensors[f"blk.{i}.ffn_up.weight"] = matrix(n_ff, n_embd)
            tensors[f"blk.{i}.ffn_down.weight"] = adds * matrix(n_embd, n_ff)
            for each in ("attn", "ffn"):
                tensors[f"blk.{i}.{each}_norm.weight"] = np.ones(n_embd, np.float32)
        paths.append(folder / f"{name}.gguf")
        keys = {**tiny_llama()[0], **LETTERS, **{f"llama.{key}": value for key, value in sizes.items()}}
        write_gguf(paths[-1], keys, tensors)
    return paths[0], paths[1]


def draft(file: str, threads: int, what: str) -> dict[str, float]:
    """Return the tokens a second of one stream with a draft model to those without, and how many guesses were right."""
    import offgrid_llama as og

    with tempfile.TemporaryDirectory() as folder:
        model, small = deep_and_first(Path(folder)) if what == "deep" else (file, file)
        with og.Engine(model, draft_model=small, n_seq_max=1, n_ctx=2048, n_threads=threads) as engine:
            options: dict[str, Any] = {"sampling": endless(engine.model), "lookup": False}
            prompt = made_up(3, 20) if what != "deep" else list(range(10, 30))

            def take(on: bool, n: int = 200) -> float:
                completion = engine.generate(prompt, max_tokens=n, draft=on, **options)
                return (n - 1) / (completion.timings.decode or 1.0)

            take(False, 50)
            take(True)  # it learns what that costs
            found = in_pairs(take)
            stats = engine.stats()
            right = stats.guessed_tokens_right / max(stats.guessed_tokens, 1)
            return found | {"guessed": stats.guessed_tokens, "right": right}


def overhead() -> dict[str, float]:
    """Return what the engine's Python takes for each token, and for a look-up."""
    from offgrid_llama.engine.completion import Answer, Events
    from offgrid_llama.engine.loop import Loop
    from offgrid_llama.engine.planning.estimates import Estimates
    from offgrid_llama.engine.planning.limits import Limits
    from offgrid_llama.engine.planning.prefixes import PrefixIndex
    from offgrid_llama.engine.planning.scheduler import Scheduler
    from offgrid_llama.engine.planning.slots import Slots
    from offgrid_llama.engine.request import EngineRequest
    from offgrid_llama.sampling.step import Sampled
    from offgrid_llama.sampling.token_sampler import TokenSampler
    from offgrid_llama.text.text_stream import TextStream

    class Nothing:
        seconds, n_steps, n_guessed, spent = 0.01, 1, 0, 0.0
        draft_seconds = None
        saved: tuple[()] = ()

        def run(self, plan: Any, _n_steps: int) -> Any:
            begin = time.perf_counter()
            sampled = [Sampled([7], [b" the"], []) if rows.sample else None for rows in plan.rows]
            self.spent += time.perf_counter() - begin
            return sampled

        def interrupt(self, on: bool = True) -> None: ...
        def close(self) -> None: ...

    def per_token(n_waiting: int, n: int = 64, n_tokens: int = 200) -> float:
        runner, sampler = Nothing(), TokenSampler()
        limits = Limits(n, n_batch=512, n_ctx_seq=4096, eog=frozenset([2]))
        scheduler: Scheduler[EngineRequest] = Scheduler(limits, Slots(limits), Estimates.of(limits))
        loop = Loop("bench", runner, scheduler, max_queue=20_000)  # type: ignore[arg-type]

        def submit(prompt: list[int], max_tokens: int) -> Events:
            events = Events(len(prompt), 0.0)
            request = EngineRequest(prompt, max_tokens, sampler=sampler, stream=TextStream("</s>"), events=events)
            request.answer = Answer(0, 1, request)
            events.answers.append(request.answer)
            events.n_unfinished = 1
            loop.submit([request])
            return events

        running = [submit([i + 10] * 20, n_tokens + 50) for i in range(n)]
        for _ in range(n_waiting):
            submit([9] * 20, 1)
        while not all(events.pieces for events in running):
            loop.turn()
        runner.spent, begin = 0.0, time.perf_counter()
        for _ in range(n_tokens):
            loop.turn()
        return (time.perf_counter() - begin - runner.spent) / (n_tokens * n) * 1e6

    def look_up(n_texts: int) -> float:
        index: PrefixIndex[int] = PrefixIndex()
        for i in range(n_texts):
            index.extend(i, [*made_up(1, 2000), *made_up(2 + i, 2000)])
        wanted = [*made_up(1, 2000), *made_up(2, 2000)]
        times = []
        for _ in range(50):
            begin = time.perf_counter()
            index.longest(wanted)
            times.append(time.perf_counter() - begin)
        return statistics.median(times) * 1e6

    return {
        "us_per_token": per_token(0), "us_per_token_10000_waiting": per_token(10_000), "us_look_up_1": look_up(1),
        "us_look_up_256": look_up(256),
    }  # fmt: skip


CHILDREN: dict[str, Callable[..., Any]] = {
    "streams": streams, "crowd": crowd, "first_token": first_token, "busy": busy, "long_prompt": long_prompt,
    "lookup": lookup, "draft": draft, "llama-cpp-python": crowd_of_llama_cpp_python,
}  # fmt: skip


ORDER = ("streams", "crowd", "first_token", "busy", "long_prompt", "lookup", "draft")


# The peers --------------------------------------------------------------------------------------------------------------


class Sides:
    """Starts the processes of all sides alike."""

    def __init__(self, peers: Peers, threads: int) -> None:
        self.peers = peers
        self.env = peers.environment()
        self.threads = threads

    def ours(self, section: str, file: Path, *arguments: object) -> Any:
        """Return what one of CHILDREN gives in a process of its own."""
        command = [sys.executable, __file__, "--child", section, "--file", str(file), "--threads", str(self.threads)]
        return harness.run_json([*command, *map(str, arguments)], self.env)

    def llama_bench(self, file: Path) -> float:
        """Return the tokens a second of one stream."""
        flags = f"-t {self.threads} -p 0 -n {N_GEN} -r 1 -fa 1 -o json"
        found = harness.run_json([self.peers.bin / "llama-bench", "-m", file, *flags.split()], self.env)
        return float(statistics.median(found[0]["samples_ts"]))

    def batched_bench(self, file: Path, n: int) -> float:
        """Return the tokens a second of n streams."""
        shape = f"-npp {N_PROMPT} -ntg {N_GEN} -npl {n} -c {n * (N_PROMPT + N_GEN)}"
        flags = f"-t {self.threads} {shape} -b 2048 -ub 512 -fa on"
        command: list[str | Path] = [
            self.peers.bin / "llama-batched-bench",
            "-m",
            file,
            *flags.split(),
            "--output-format",
            "jsonl",
        ]
        done = subprocess.run(
            command, env=self.env, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        )
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                return float(json.loads(line)["speed_tg"])
        sys.exit(f"llama-batched-bench gave no result:\n{done.stderr[-2000:]}")

    @contextmanager
    def server(self, file: Path, n_ctx: int) -> Iterator[str]:
        """Run llama-server with 8 slots of ``n_ctx`` tokens each, and give its address once it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = (
            f"-t {self.threads} -c {TOGETHER * n_ctx} -np {TOGETHER} -b 2048 -ub 512 -fa on --port {port} --no-webui"
        )
        command: list[str | Path] = [self.peers.bin / "llama-server", "-m", file, "--host", "127.0.0.1", *flags.split()]
        server = subprocess.Popen(command, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    if urllib.request.urlopen(f"{url}/health", timeout=5).status == 200:
                        break
                except OSError:
                    time.sleep(0.05)
                if server.poll() is not None:
                    sys.exit(f"llama-server ended with {server.returncode}")
            list(stream_from(url, made_up(99, 8), 2))
            yield url
        finally:
            server.terminate()
            server.wait()

    def server_first_token(self, file: Path) -> dict[str, float]:
        """Do with llama-server what `first_token` does."""
        with self.server(file, 2048) as url:
            prefix, times = made_up(1, PREFIX), []

            def ask(i: int) -> None:
                begin = time.perf_counter()
                times.append(next(stream_from(url, [*prefix, *made_up(2 + i, OWN)], 8)) - begin)

            together(ask)
            return {"slowest": max(times), "median": statistics.median(times)}

    def server_crowd(self, file: Path) -> float:
        """Do with llama-server what `crowd` does."""
        with self.server(file, N_PROMPT + N_GEN) as url:
            counts = []

            def ask(i: int) -> None:
                counts.append(
                    sum(1 for _ in stream_from(url, made_up(i, N_PROMPT), CROWD_GEN)) - 1
                )  # the last has none

            begin = time.perf_counter()
            together(ask)
            return sum(counts) / (time.perf_counter() - begin)


def together(ask: Callable[[int], object]) -> None:
    """Call a function for each of the requests, each in its thread."""
    askers = [threading.Thread(target=ask, args=(i,)) for i in range(TOGETHER)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()


def stream_from(url: str, prompt: list[int], n_predict: int) -> Iterator[float]:
    """Yield when each token came from llama-server's own endpoint."""
    asked = {
        "prompt": prompt,
        "n_predict": n_predict,
        "stream": True,
        "cache_prompt": True,
        "temperature": 0,
        "ignore_eos": True,
    }
    body = json.dumps(asked).encode()
    request = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        for line in response:
            if line.startswith(b"data:"):
                yield time.perf_counter()


# The report -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """Two sides to compare, or one that gives a ratio by itself, and the bound of the ratio."""

    section: str
    name: str
    sides: dict[str, Callable[[], Any]]
    limit: float
    low: bool = False
    key: str = ""
    more: int = 1  # times as many pairs, where they scatter

    def value(self, sample: Any) -> float:
        """Return the number of a sample."""
        return float(sample[self.key] if self.key else sample)

    def measure(self, model: str, n_pairs: int) -> dict[str, Any]:
        """Take the samples in turn."""
        print(f"{model}: {self.section}, {self.name}", file=sys.stderr)

        def take(side: str) -> Any:
            sample = self.sides[side]()
            print(f"  {side}: {self.value(sample):.3f}", file=sys.stderr)
            return sample

        samples, quiet = harness.in_turn(tuple(self.sides), self.more * n_pairs, take)
        numbers = [[self.value(sample) for sample in each] for each in samples.values()]
        ratio = harness.ratios(*numbers) if len(numbers) == 2 else harness.median_range(*numbers)
        held = ratio["median"] <= self.limit if self.low else ratio["median"] >= self.limit
        asked = f"{'at most' if self.low else 'at least'} {self.limit}"
        name = f"{self.section}: {self.name}"
        pairs = [a / b for a, b in zip(*numbers, strict=True)] if len(numbers) == 2 else numbers[0]
        return {
            "figure": name, "date": datetime.now(timezone.utc).isoformat(timespec="minutes"), "samples": samples,
            "pairs": pairs, "ratio": ratio, "asked": asked, "limit": self.limit, "low": self.low, "held": held,
            "quiet": quiet,
        }  # fmt: skip


def figures(sides: Sides, file: Path) -> Iterator[Figure]:
    """Yield what is measured of a model."""

    def ours(section: str, *arguments: object) -> Callable[[], Any]:
        return lambda: sides.ours(section, file, *arguments)

    both: dict[str, Callable[[], Any]] = {
        OURS: ours("first_token"),
        "llama-server": partial(sides.server_first_token, file),
    }
    one = {OURS: ours("streams", 1), "llama-bench": lambda: sides.llama_bench(file)}
    yield Figure("streams", "1", one, 0.97, more=8)
    for n in (8, 16):
        peer = partial(sides.batched_bench, file, n)
        yield Figure("streams", str(n), {OURS: ours("streams", n), "llama-batched-bench": peer}, 0.95, more=3)
    yield Figure("first_token", "slowest of 8 with a shared prefix", both, 0.35, low=True, key="slowest")
    for name, theirs in (
        ("llama-server", partial(sides.server_crowd, file)), ("llama-cpp-python", ours("llama-cpp-python")),
    ):  # fmt: skip
        yield Figure("crowd", f"8 at once, to {name}", {OURS: ours("crowd"), name: theirs}, 1.0)
    for n in (1, 8):
        yield Figure("busy", f"{n}, beside a thread to beside a process", {OURS: ours("busy", n)}, 0.85, key="ratio")
    for task, limit in (("repeat", 1.5 if "gemma" in file.name else 1.0), ("story", 0.97)):
        yield Figure("lookup", f"{task}, to without", {OURS: ours("lookup", task)}, limit, key="ratio")

    rows: list[int] = []

    def gain() -> float:
        found = ours("lookup", "repeat")()
        rows.append(max(2, round(found["rows"])))
        return float(found["ratio"])

    def ceiling() -> float:
        return sides.batched_bench(file, rows[-1] if rows else 8) / sides.batched_bench(file, 1)

    yield Figure("lookup", "gain, to its ceiling", {OURS: gain, "llama-batched-bench": ceiling}, 0.75)
    name = "time between tokens, to the normal one"
    yield Figure("long_prompt", name, {OURS: ours("long_prompt")}, 3.0, low=True, key="median")
    for what, name, limit in (("deep", "one that pays", 1.5), ("itself", "one that cannot pay", 0.97)):
        yield Figure("draft", f"{name}, to without", {OURS: ours("draft", what)}, limit, key="ratio")


def summary(results: dict[str, list[dict[str, Any]]], python: list[dict[str, float]]) -> str:
    """Return the tables."""
    rows: list[Sequence[str]] = []
    verdicts = []
    for model, figures_ in results.items():
        for each in figures_:
            ratio = "{median:.3f} ({min:.3f} to {max:.3f})".format(**each["ratio"])
            n, date = len(each["pairs"]), each["date"][:10]
            rows.append([model, each["figure"], ratio, each["asked"], " to ".join(each["samples"]), f"{n}, {date}"])
            text = f"{model}, {each['figure']}: {each['ratio']['median']:.3f}, {each['asked']} asked"
            verdicts.append(harness.verdict(text, each["held"]))
            if each["figure"].startswith("first_token"):
                computed = {sample["computed"] for sample in each["samples"][OURS]}
                text = f"{model}: tokens computed for 8 prompts of {PREFIX} + {OWN}: {sorted(computed)}"
                verdicts.append(harness.verdict(text, computed == {PREFIX + TOGETHER * OWN}))
    if python:
        medians = {key: statistics.median(each[key] for each in python) for key in python[0]}
        for key, value in medians.items():
            rows.append(["", f"overhead: {key}", f"{value:.1f}", "at most 15" if "token" in key else "", "", ""])
        held = all(value <= 15 for key, value in medians.items() if "token" in key)
        verdicts.append(harness.verdict("overhead: at most 15 us for each token, also while 10,000 wait", held))
    header = ["model", "figure", "median of pairs (range)", "asked", "ratio of", "pairs"]
    return harness.table(header, rows) + "\n\n## Figures to hold\n\n" + "\n".join(verdicts)


def main() -> None:
    parser = harness.parser(__doc__, "--threads", "--model", "--peers", "--no-write")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--only", help="one section", choices=[*CHILDREN, "overhead"])
    parser.add_argument("--child", choices=CHILDREN, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        arguments = [int(each) if each.isdigit() else each for each in args.arguments]
        print(json.dumps(CHILDREN[args.child](args.file, args.threads, *arguments)), flush=True)
        os._exit(0)

    peers = Peers(args.peers.resolve())
    peers.check()
    sides = Sides(peers, args.threads)
    wanted = (args.only,) if args.only else (*CHILDREN, "overhead")
    results = {
        model: [figure.measure(model, args.pairs) for figure in figures(sides, file) if figure.section in wanted]
        for model, file in harness.resolve(args.model).items()
    }
    python = [overhead() for _ in range(args.pairs)] if "overhead" in wanted else []
    about = harness.environment() | {"threads": args.threads, "pairs": args.pairs}
    data: dict[str, Any] = {"environment": about, "results": results, "overhead": python}
    if not args.no_write:
        data = merged(data)
    body = summary(data["results"], data["overhead"]) + "\n\n![the pairs of each figure](engine.svg)"
    harness.report("engine", "The engine", data, body, write=not args.no_write)
    if not args.no_write:
        each_figure = [(model, each) for model, some in data["results"].items() for each in some]
        rows = [
            (f"{model}, {each['figure']}", each["pairs"], each["limit"], each["low"]) for model, each in each_figure
        ]
        harness.plot_ratios("engine", "The engine: each pair, and what is asked", rows)


def merged(data: dict[str, Any]) -> dict[str, Any]:
    """Return the report with the figures of the last one that were not measured now; each has its own date."""
    path = harness.REPORTS / "engine.json"
    if not path.exists():
        return data
    before = json.loads(path.read_text(encoding="utf-8"))
    results = {}
    for model in (*MODELS, *data["results"]):
        known = {each["figure"]: each for each in (*before["results"].get(model, ()), *data["results"].get(model, ()))}
        if known:
            results[model] = sorted(known.values(), key=lambda each: ORDER.index(each["figure"].partition(":")[0]))
    return {**data, "results": results, "overhead": data["overhead"] or before["overhead"]}


if __name__ == "__main__":
    main()
