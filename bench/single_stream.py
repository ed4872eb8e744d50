"""One stream of tokens: offgrid_llama, llama-bench and llama-cpp-python, all on the same libllama, in turn in one run.

    python bench/single_stream.py [--pairs 5] [--repetitions 5] [--model NAME[=FILE]]... [--threads N] [--no-write]

Every sample is the median of the repetitions of a fresh process that loads the model and warms up, as `llama-bench -r 5`:
- `decode`: 128 single-token steps from an empty context (`-n 128 -p 0`), after a warm-up of one step;
- `prefill`: 512 tokens in one batch into an empty context (`-p 512 -n 0`), after a warm-up of the same.
The sides of a round run one after another and each round starts with the next side, so ratios within a round are pairs.

`decode` does what llama-bench does: random tokens, nothing sampled, and after each step `llama_synchronize`, when the
step's logits are ready.
`generate` is decode as a user writes it: each step's greedy token is sampled, turned into text and fed back.
llama-bench has no such test: there it stands with one that samples nothing, which favours it.

llama-bench's own defaults hold for all sides: n_batch 2048, n_ubatch 512, KV in f16, swa_full off, n_ctx as long as the
test, load by mmap, weights repacked where the CPU has kernels for it. Its flash attention is `auto`, which is on for a
CPU; llama-cpp-python knows no `auto`, so all are told `on`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import harness
from peers import Peers

if TYPE_CHECKING:
    from collections.abc import Callable

N_DECODE, N_PREFILL, N_BATCH, N_UBATCH = 128, 512, 2048, 512
OURS, BENCH, PYTHON = "offgrid_llama", "llama-bench", "llama-cpp-python"
SIDES = (OURS, BENCH, PYTHON)
TESTS = ("decode", "generate", "prefill")
FIRST_TOKEN = 1000  # where the model has no BOS, as llama-bench's is random there


def child_ours(test: str, file: str, threads: int) -> Callable[[bool], None]:
    """Return a function that runs the test, or its warm-up, once through offgrid_llama."""
    import offgrid_llama as og

    n = N_PREFILL if test == "prefill" else N_DECODE
    model = og.Model(file)
    ctx = og.Context(
        model, n_ctx=n, n_batch=N_BATCH, n_ubatch=N_UBATCH, n_threads=threads, n_threads_batch=threads,
        flash_attn_type="enabled", swa_full=False,
    )  # fmt: skip
    vocab, batch = model.vocab, og.Batch(n)
    sampler = og.SamplerChain([og.samplers.greedy()])
    tokens = random_tokens(n, vocab.n_tokens, vocab.bos if vocab.add_bos and vocab.bos is not None else FIRST_TOKEN)

    def prefill(_warm_up: bool) -> None:
        batch.clear()
        batch.add_sequence(tokens)
        ctx.decode(batch)
        ctx.synchronize()

    def decode(warm_up: bool) -> None:
        for i, token in enumerate(tokens[: 1 if warm_up else n]):
            batch.clear()
            batch.add(token, i, [0], logits=True)
            ctx.decode(batch)
            ctx.synchronize()

    def generate(warm_up: bool) -> None:
        token, text = tokens[0], bytearray()
        for i in range(1 if warm_up else n):
            batch.clear()
            batch.add(token, i, [0], logits=True)
            ctx.decode(batch)
            token = sampler.sample(ctx, 0)
            text += vocab.piece(token)

    def run(warm_up: bool) -> None:
        ctx.memory.clear(data=False)
        {"prefill": prefill, "decode": decode, "generate": generate}[test](warm_up)

    return run


def child_python(test: str, file: str, threads: int) -> Callable[[bool], None]:
    """Return a function that runs the test, or its warm-up, once through llama-cpp-python."""
    llama_cpp: Any = importlib.import_module("llama_cpp")
    n = N_PREFILL if test == "prefill" else N_DECODE
    llama: Any = llama_cpp.Llama(
        file, n_ctx=n, n_batch=N_BATCH, n_ubatch=N_UBATCH, n_threads=threads, n_threads_batch=threads,
        n_gpu_layers=-1, flash_attn=True, swa_full=False, logits_all=False, verbose=False,
    )  # fmt: skip
    add_bos = llama_cpp.llama_vocab_get_add_bos(llama_cpp.llama_model_get_vocab(llama.model))
    tokens = random_tokens(n, llama.n_vocab(), llama.token_bos() if add_bos else FIRST_TOKEN)

    def prefill(_warm_up: bool) -> None:
        llama.eval(tokens)
        llama_cpp.llama_synchronize(llama.ctx)

    def decode(warm_up: bool) -> None:
        for token in tokens[: 1 if warm_up else n]:
            llama.eval([token])
            llama_cpp.llama_synchronize(llama.ctx)

    def generate(warm_up: bool) -> None:
        text, left = bytearray(), 1 if warm_up else n
        for token in llama.generate(tokens[:1], temp=0.0, top_k=1):
            text += llama.detokenize([token])
            left -= 1
            if not left:
                break

    def run(warm_up: bool) -> None:
        llama.reset()
        {"prefill": prefill, "decode": decode, "generate": generate}[test](warm_up)

    return run


def random_tokens(n: int, n_vocab: int, first: int) -> list[int]:
    """Return n token ids of no meaning, always the same."""
    import random

    choose = random.Random(1)
    return [first, *(choose.randrange(n_vocab) for _ in range(n - 1))]


def child(side: str, test: str, file: str, threads: int, repetitions: int) -> NoReturn:
    """Warm up, time the repetitions, and print them as JSON."""
    run = {OURS: child_ours, PYTHON: child_python}[side](test, file, threads)
    run(True)
    tokens, speeds = N_PREFILL if test == "prefill" else N_DECODE, []
    for _ in range(repetitions):
        start = time.perf_counter_ns()
        run(False)
        speeds.append(tokens * 1e9 / (time.perf_counter_ns() - start))
    print(json.dumps({"samples_ts": speeds, "libraries": harness.libraries()}), flush=True)
    os._exit(0)  # the other side's finalizers are not what is measured


@dataclass(frozen=True)
class Runner:
    """Starts the processes of all sides alike."""

    peers: Peers
    env: dict[str, str]
    threads: int
    repetitions: int

    def command(self, side: str, test: str, file: Path) -> list[str | Path]:
        """Return the command of a side's process."""
        if side != BENCH:
            options = ["--child", side, test, "--threads", str(self.threads), "--repetitions", str(self.repetitions)]
            return [sys.executable, Path(__file__), *options, "--model", file]
        lengths = f"-p {N_PREFILL} -n 0" if test == "prefill" else f"-p 0 -n {N_DECODE}"
        flags = f"{lengths} -b {N_BATCH} -ub {N_UBATCH} -t {self.threads} -fa on -ctk f16 -ctv f16"
        flags += f" -r {self.repetitions} -o json"
        return [self.peers.bin / "llama-bench", "-m", file, *flags.split()]

    def sample(self, side: str, test: str, file: Path) -> float:
        """Take one sample, in tokens per second."""
        found = harness.run_json(self.command(side, test, file), self.env)
        return float(statistics.median((found[0] if side == BENCH else found)["samples_ts"]))

    def libraries(self, side: str, file: Path) -> dict[str, str]:
        """Return the libraries that a side's process has mapped while it runs."""
        if side != BENCH:
            return dict(harness.run_json(self.command(side, "decode", file), self.env)["libraries"])
        seen: dict[str, str] = {}
        quiet = subprocess.DEVNULL
        with subprocess.Popen(self.command(side, "decode", file), env=self.env, stdout=quiet, stderr=quiet) as process:
            while process.poll() is None:
                seen = max(seen, harness.libraries(process.pid), key=len)
                time.sleep(0.02)
        return seen


def prove_same(runner: Runner, file: Path) -> dict[str, str]:
    """End unless all sides run on the same library files; return these files' digests."""
    loaded = {side: runner.libraries(side, file) for side in SIDES}
    for side, files in loaded.items():
        print(f"{side} runs on", *(f"  {path}  inode {inode}" for path, inode in files.items()), sep="\n")
    if not loaded[OURS] or any(files != loaded[OURS] for files in loaded.values()):
        sys.exit("the sides do not run on the same library files")
    return harness.digests(list(loaded[OURS]))


def summarize(samples: dict[str, dict[str, dict[str, list[float]]]]) -> tuple[str, dict[str, Any]]:
    """Turn the samples into the report's tables and figures to hold, and the same as data."""
    parts, verdicts, results = [], [], {}
    for model, tests in samples.items():
        rows: list[list[str]] = []
        for test, sides in tests.items():
            for side, values in sides.items():
                speed, ratio = harness.median_range(values), harness.ratios(sides[OURS], values)
                results[f"{model}/{test}/{side}"] = {"tokens_per_second": speed, "ours_to_it": ratio}
                ours = "" if side == OURS else "{median:.3f} ({min:.3f} to {max:.3f})".format(**ratio)
                rows.append([test, side, "{median:.1f} ({min:.1f} to {max:.1f})".format(**speed), ours])
            to_bench = results[f"{model}/{test}/{BENCH}"]["ours_to_it"]["median"]
            to_python = results[f"{model}/{test}/{PYTHON}"]["ours_to_it"]["median"]
            verdicts += [
                harness.verdict(f"{model} {test}: {to_bench:.3f} of llama-bench, 0.97 asked", to_bench >= 0.97),
                harness.verdict(f"{model} {test}: {to_python:.3f} of llama-cpp-python, over 1 asked", to_python > 1),
            ]
        header = ["test", "side", "tokens/s, median (range)", "ours to it, median of pairs (range)"]
        parts.append(f"## {model}\n\n{harness.table(header, rows)}\n")
    return "\n".join([*parts, "## Figures to hold\n", *verdicts]), results


def main() -> None:
    parser = harness.parser(__doc__, "--model", "--threads", "--peers", "--no-write")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--repetitions", type=int, default=5, help="in each process")
    parser.add_argument("--tests", nargs="+", default=TESTS, choices=TESTS)
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "TEST"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        side, test = args.child
        child(side, test, args.model[0], args.threads, args.repetitions)

    peers = Peers(args.peers.resolve())
    peers.check()
    runner = Runner(peers, peers.environment(), args.threads, args.repetitions)
    files, about = harness.resolve(args.model), harness.environment()
    about |= {
        "threads": args.threads,
        "pairs": args.pairs,
        "repetitions in each process": args.repetitions,
        "n_batch": N_BATCH,
        "n_ubatch": N_UBATCH,
        "flash_attn": "on",
    }
    about["libraries, the same for all sides"] = prove_same(runner, next(iter(files.values())))

    samples: dict[str, dict[str, dict[str, list[float]]]] = {}
    for model, file in files.items():
        for test in args.tests:

            def take(side: str, test: str = test, model: str = model, file: Path = file) -> float:
                speed = runner.sample(side, test, file)
                print(f"{model} {test} {side}: {speed:.1f} tokens/s", file=sys.stderr)
                return speed

            samples.setdefault(model, {})[test], about[f"{model}, {test}"] = harness.in_turn(SIDES, args.pairs, take)

    body, results = summarize(samples)
    data = {"environment": about, "samples": samples, "results": results}
    harness.report("single_stream", "One stream: decode and prefill", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()
