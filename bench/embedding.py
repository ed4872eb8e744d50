"""1,000 short texts to vectors: Embedder, and create_embedding of llama-cpp-python, on the same libllama in turn.

    python bench/embedding.py [--pairs 5] [--threads N] [--model NAME=FILE] [--no-write]

Every sample is a fresh process that loads the model, embeds ten of the texts as a warm-up, and then times all of them
in one call. The model is all-MiniLM-L6-v2 in F16, as the tests convert it. The texts are made of English words, 4 to 24
of them, always the same. All pool by the mean. llama-cpp-python runs as its README has it (`Llama(embedding=True)`, which
puts up to 256 texts into a batch), and once more with flash attention, which it leaves off and offgrid_llama lets
llama.cpp choose.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
from peers import ROOT, Peers

if TYPE_CHECKING:
    from collections.abc import Callable

OURS, DEFAULT, TUNED = "offgrid_llama", "llama-cpp-python", "llama-cpp-python, flash_attn=True"
SIDES = (OURS, DEFAULT, TUNED)
N_TEXTS, LIMIT = 1000, 2.0
WORDS = (
    "the a of to and in that it was for on are as with they be at one have this from by hot but some what there we "
    "can out other were all your when up use word how said each she which do their time if will way about many then "
    "them would write like so these her long make thing see him two has look more day could go come did my sound no "
    "most number who over know water than call first people may down side been now find"
)


def texts() -> list[str]:
    """Return the texts."""
    choose, words = random.Random(3), WORDS.split()
    return [" ".join(choose.choices(words, k=choose.randint(4, 24))) for _ in range(N_TEXTS)]


def child(side: str, file: str, threads: int) -> dict[str, Any]:
    """Embed everything once and return the texts a second, and one vector as proof."""
    embed: Callable[[list[str]], Any]
    if side == OURS:
        import offgrid_llama as og

        embed = og.Embedder(og.Model(file), n_threads=threads).embed
    else:
        llama_cpp: Any = importlib.import_module("llama_cpp")
        llama: Any = llama_cpp.Llama(
            file, embedding=True, n_ctx=512, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
            flash_attn=side == TUNED, verbose=False,
        )  # fmt: skip

        def embed(some: list[str]) -> Any:
            return [entry["embedding"] for entry in llama.create_embedding(some)["data"]]

    everything = texts()
    embed(everything[:10])
    start = time.perf_counter_ns()
    vectors = embed(everything)
    taken = time.perf_counter_ns() - start
    vector = [float(value) for value in vectors[-1]]
    length = sum(value * value for value in vector) ** 0.5
    return {"texts_per_second": N_TEXTS * 1e9 / taken, "vector": [value / length for value in vector]}


def main() -> None:
    parser = harness.parser(__doc__, "--threads", "--peers", "--no-write")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--model", metavar="NAME=FILE")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.model, args.threads)), flush=True)
        os._exit(0)  # the other side's finalizers are not what is measured

    name, _, file = (args.model or "").partition("=")
    if not file:
        sys.path.append(str(ROOT / "tests"))
        name, file = "all-MiniLM-L6-v2.F16", str(importlib.import_module("helpers.minilm").path())
    peers = Peers(args.peers.resolve())
    peers.check()
    env = peers.environment()
    found: dict[str, list[float]] = {}

    def take(side: str) -> float:
        command = [sys.executable, Path(__file__), "--child", side, "--model", file, "--threads", str(args.threads)]
        sample = harness.run_json(command, env)
        found[side] = sample["vector"]
        print(f"{side}: {sample['texts_per_second']:.0f} texts/s", file=sys.stderr)
        return float(sample["texts_per_second"])

    samples, quiet = harness.in_turn(SIDES, args.pairs, take)
    about = harness.environment() | {"model": name, "threads": args.threads, "pairs": args.pairs, "quiet": quiet}
    rows: list[list[str]] = []
    results: dict[str, dict[str, Any]] = {}
    for side, values in samples.items():
        speed, ratio = harness.median_range(values), harness.ratios(samples[OURS], values)
        cosine = sum(a * b for a, b in zip(found[OURS], found[side], strict=True))
        results[side] = {"texts_per_second": speed, "ours_to_it": ratio, "cosine": cosine}
        ours = "" if side == OURS else "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
        rows.append([side, "{median:.0f} ({min:.0f} to {max:.0f})".format(**speed), ours, f"{cosine:.5f}"])
    held = results[DEFAULT]["ours_to_it"]["median"]
    header = ["side", "texts/s, median (range)", "ours to it, median of pairs (range)", "cosine to ours"]
    body = harness.table(header, rows) + "\n\n## Figures to hold\n\n"
    body += harness.verdict(f"{held:.2f} times create_embedding, {LIMIT} asked", held >= LIMIT)
    data = {"environment": about, "samples": samples, "results": results}
    harness.report("embedding", "1,000 short texts to vectors", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()
