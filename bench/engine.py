"""The engine under load: against llama-bench, llama-batched-bench and llama-server on the same libllama, in turn in one run.

    python bench/engine.py [--pairs 5] [--only SECTION] [--threads N] [--model NAME=FILE] [--no-write]

Every sample is a fresh process that loads the model and warms up. The sections:

- streams: tokens a second of 1 stream (llama-bench -n 128), and of 8 and 16 (llama-batched-bench -npp 128 -ntg 128), all
  together. The peers feed tokens that they have made up, and sample nothing; the engine samples greedily and makes text.
- first_token: 8 requests that arrive together with a shared prefix of 1,024 tokens and 16 of their own: the time to the
  first token of the slowest, which is the 95th percentile of 8; ours by submit(), llama-server's over HTTP with 8 slots, its
  prompt cache on, streaming.
- busy: tokens a second of 1 and 8 streams beside a Python thread that computes without pause, to those beside a process.
- long_prompt: seven streams while a prompt of 4,000 tokens comes in: the median time between their tokens, to that before.
- lookup: tokens a second of one stream with prompt lookup, to those without: on a text that is to be repeated, where it is
  also compared with what llama-batched-bench decodes at as many sequences as a guess has rows over what it decodes at one;
  and on a story.
- overhead: microseconds of Python for each token of 64 requests, with a runner that computes nothing, and 0 and 10,000
  others in the queue; and those of a look-up among 1 and 256 texts of 4,000 tokens.

llama-server is built by `python bench/peers.py --server`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from peers import Peers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

N_PROMPT, N_GEN = 128, 128
PREFIX, OWN, TOGETHER = 1024, 16, 8
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


def streams(file: str, threads: int, n: int, n_gen: int = N_GEN) -> float:
    """Return the tokens a second of n requests from the moment when all have their first token."""
    import offgrid_llama as og

    with og.Engine(file, n_seq_max=n, n_ctx=n * (N_PROMPT + N_GEN), n_threads=threads) as engine:
        sampling = endless(engine.model)
        engine.generate(made_up(99, 8), max_tokens=2)
        n_prompt = 1 if n == 1 else N_PROMPT
        completions = [engine.submit(made_up(i, n_prompt), max_tokens=n_gen, sampling=sampling) for i in range(n)]
        answers = [completion.result().answers[0] for completion in completions]
        begin = max(answer.first_token or 0 for answer in answers)
        end = max(answer.finished or 0 for answer in answers)
        return n * (n_gen - 1) / (end - begin)


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


def busy(file: str, threads: int, n: int, where: str) -> float:
    """Return the tokens a second of n streams beside a thread, or a process, that computes without pause."""
    code = "while True: sum(range(1000))"
    if where == "process":
        other = subprocess.Popen([sys.executable, "-c", code])
        try:
            return streams(file, threads, n, 64)
        finally:
            other.kill()
            other.wait()
    threading.Thread(target=lambda: exec(code), daemon=True).start()
    return streams(file, threads, n, 64)


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


def lookup(file: str, threads: int, task: str, on: int) -> dict[str, float]:
    """Return the tokens a second of a text that repeats its prompt, or of a story, and the rows of its steps."""
    import offgrid_llama as og

    again = "The same text again:\n"
    prompt = f"Text:\n{TEXT}\n{again}{TEXT}\n{again}" if task == "repeat" else "Once upon a time there was"
    with og.Engine(file, n_seq_max=1, n_ctx=1024, n_threads=threads) as engine:
        sampling = endless(engine.model)
        engine.generate(prompt, max_tokens=24, sampling=sampling, lookup=bool(on))  # it learns what rows cost
        speeds = []
        for _ in range(3):
            completion = engine.generate(prompt, max_tokens=100, sampling=sampling, lookup=bool(on))
            speeds.append(99 / (completion.timings.decode or 1.0))
        request = completion.answers[0].request
        return {"speed": statistics.median(speeds), "rows": 1 + request.n_guessed / (99 - request.n_right)}


def overhead() -> dict[str, float]:
    """Return what the engine's Python takes for each token, and for a look-up."""
    from offgrid_llama.engine.completion import Answer, Events
    from offgrid_llama.engine.loop import Loop
    from offgrid_llama.engine.prefixes import PrefixIndex
    from offgrid_llama.engine.request import Request
    from offgrid_llama.step import Sampled
    from offgrid_llama.text import TextStream

    class Nothing:
        seconds, n_steps, spent = 0.01, 1, 0.0
        saved: tuple[()] = ()

        def run(self, plan: Any) -> Any:
            begin = time.perf_counter()
            sampled = {rows.request: Sampled([7], [b" the"], []) for rows in plan.rows if rows.sample}
            self.spent += time.perf_counter() - begin
            return sampled

        def interrupt(self, on: bool = True) -> None: ...
        def close(self) -> None: ...

    def per_token(n_waiting: int, n: int = 64, n_tokens: int = 200) -> float:
        runner = Nothing()
        loop = Loop("bench", runner, n_seq_max=n, n_batch=512, n_ctx_seq=4096, eog=[2], max_queue=20_000)  # type: ignore[arg-type]

        def submit(prompt: list[int], max_tokens: int) -> Events:
            events = Events(len(prompt), 0.0)
            request = Request(prompt, max_tokens, 0, runner)
            request.answer = Answer(0, 1, request, TextStream("</s>"), events)
            events.answers.append(request.answer)
            events.n_unfinished = 1
            loop.submit([request])
            return events

        running = [submit([i + 10] * 20, n_tokens + 50) for i in range(n)]
        for _ in range(n_waiting):
            submit([9] * 20, 1)
        while not all(events.pieces for events in running):
            loop._turn()
        runner.spent, begin = 0.0, time.perf_counter()
        for _ in range(n_tokens):
            loop._turn()
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
    "streams": streams, "first_token": first_token, "busy": busy, "long_prompt": long_prompt,
    "lookup": lookup,
}  # fmt: skip


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
        return float(found[0]["avg_ts"])

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

    def server_first_token(self, file: Path) -> dict[str, float]:
        """Do with llama-server what `first_token` does."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        flags = f"-t {self.threads} -c {TOGETHER * 2048} -np {TOGETHER} -b 2048 -ub 512 -fa on --port {port}"
        command: list[str | Path] = [
            self.peers.bin / "llama-server",
            "-m",
            file,
            *flags.split(),
            "--host",
            "127.0.0.1",
            "--no-webui",
        ]
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
            prefix, times = made_up(1, PREFIX), []

            def ask(i: int) -> None:
                begin = time.perf_counter()
                times.append(next(stream_from(url, [*prefix, *made_up(2 + i, OWN)], 8)) - begin)

            askers = [threading.Thread(target=ask, args=(i,)) for i in range(TOGETHER)]
            for asker in askers:
                asker.start()
            for asker in askers:
                asker.join()
            return {"slowest": max(times), "median": statistics.median(times)}
        finally:
            server.terminate()
            server.wait()


def stream_from(url: str, prompt: list[int], n_predict: int) -> Iterator[float]:
    """Yield when each token came from llama-server's own endpoint."""
    body = json.dumps({"prompt": prompt, "n_predict": n_predict, "stream": True, "cache_prompt": True}).encode()
    request = urllib.request.Request(f"{url}/completion", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as response:
        for line in response:
            if line.startswith(b"data:"):
                yield time.perf_counter()


# The report -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """Two sides to compare, or one that gives a ratio by itself, and what the ratio is to be."""

    section: str
    name: str
    sides: dict[str, Callable[[], Any]]
    limit: float
    low: bool = False
    key: str = ""

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

        samples, quiet = harness.in_turn(tuple(self.sides), n_pairs, take)
        numbers = [[self.value(sample) for sample in each] for each in samples.values()]
        ratio = harness.ratios(*numbers) if len(numbers) == 2 else harness.median_range(*numbers)
        held = ratio["median"] <= self.limit if self.low else ratio["median"] >= self.limit
        asked = f"{'at most' if self.low else 'at least'} {self.limit}"
        name = f"{self.section}: {self.name}"
        return {"figure": name, "samples": samples, "ratio": ratio, "asked": asked, "held": held, "quiet": quiet}


def figures(sides: Sides, file: Path) -> Iterator[Figure]:
    """Yield what is measured of a model."""

    def ours(section: str, *arguments: object) -> Callable[[], Any]:
        return lambda: sides.ours(section, file, *arguments)

    both: dict[str, Callable[[], Any]] = {
        OURS: ours("first_token"),
        "llama-server": partial(sides.server_first_token, file),
    }
    yield Figure("streams", "1", {OURS: ours("streams", 1), "llama-bench": lambda: sides.llama_bench(file)}, 0.97)
    for n in (8, 16):
        peer = partial(sides.batched_bench, file, n)
        yield Figure("streams", str(n), {OURS: ours("streams", n), "llama-batched-bench": peer}, 0.95)
    yield Figure("first_token", "slowest of 8 with a shared prefix", both, 0.35, low=True, key="slowest")
    for n in (1, 8):
        both = {f"beside a {where}": ours("busy", n, where) for where in ("thread", "process")}
        yield Figure("busy", str(n), both, 0.85)
    for task, limit in (("repeat", 1.5 if "gemma" in file.name else 1.0), ("story", 0.97)):
        both = {"with lookup": ours("lookup", task, 1), "without": ours("lookup", task, 0)}
        yield Figure("lookup", task, both, limit, key="speed")

    rows: list[int] = []

    def gain() -> float:
        guessed = ours("lookup", "repeat", 1)()
        rows.append(max(2, round(guessed["rows"])))
        return float(guessed["speed"] / ours("lookup", "repeat", 0)()["speed"])

    def ceiling() -> float:
        return sides.batched_bench(file, rows[-1] if rows else 8) / sides.batched_bench(file, 1)

    yield Figure("lookup", "gain, to its ceiling", {OURS: gain, "llama-batched-bench": ceiling}, 0.75)
    yield Figure(
        "long_prompt",
        "time between tokens, to the normal one",
        {OURS: ours("long_prompt")},
        3.0,
        low=True,
        key="median",
    )


def summary(results: dict[str, list[dict[str, Any]]], python: list[dict[str, float]]) -> str:
    """Return the tables."""
    rows: list[Sequence[str]] = []
    verdicts = []
    for model, figures_ in results.items():
        for each in figures_:
            ratio = "{median:.3f} ({min:.3f} to {max:.3f})".format(**each["ratio"])
            rows.append([model, each["figure"], ratio, each["asked"], " to ".join(each["samples"])])
            text = f"{model}, {each['figure']}: {each['ratio']['median']:.3f}, {each['asked']} asked"
            verdicts.append(harness.verdict(text, each["held"]))
            if each["figure"].startswith("first_token"):
                computed = {sample["computed"] for sample in each["samples"][OURS]}
                text = f"{model}: tokens computed for 8 prompts of {PREFIX} + {OWN}: {sorted(computed)}"
                verdicts.append(harness.verdict(text, computed == {PREFIX + TOGETHER * OWN}))
    if python:
        medians = {key: statistics.median(each[key] for each in python) for key in python[0]}
        for key, value in medians.items():
            rows.append(["", f"overhead: {key}", f"{value:.1f}", "at most 15" if "token" in key else "", ""])
        held = all(value <= 15 for key, value in medians.items() if "token" in key)
        verdicts.append(harness.verdict("overhead: at most 15 us for each token, also while 10,000 wait", held))
    header = ["model", "figure", "median of pairs (range)", "asked", "ratio of"]
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
    data = {"environment": about, "results": results, "overhead": python}
    harness.report("engine", "The engine", data, summary(results, python), write=not args.no_write)


if __name__ == "__main__":
    main()
