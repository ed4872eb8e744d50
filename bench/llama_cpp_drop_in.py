"""The drop-in against llama-cpp-python: the same calls of `Llama`, on the same libllama in turn.

    python bench/llama_cpp_drop_in.py [--pairs 3] [--threads N] [--no-write]

Every sample is a fresh process that loads the models, makes each call once as a warm-up, and then times it: a completion of
128 tokens; ten conversations whose answers fit a JSON Schema; vectors of 1,000 texts, by MiniLM; and 128 tokens for each of
eight threads. llama-cpp-python takes one call at a time, so its threads wait for each other at a lock. Both compute with the
same number of threads. SmolLM2 writes, greedily; what both have written is compared.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
import threading
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import harness
from embedding import WORDS
from peers import Peers

if TYPE_CHECKING:
    from collections.abc import Callable

OURS, PEER = "offgrid_llama.compat.llama_cpp", "llama-cpp-python"
SIDES = (OURS, PEER)
LIMITS = {"completion": 1.0, "schema": 3.0, "vectors": 2.0, "eight threads": 3.0}
PROMPT = "Once upon a time there was a miller who had three sons, his mill, a donkey and a cat."
N_TOKENS = 128
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome", "Bern", "Berlin"]},
        "country": {"type": "string", "maxLength": 20},
        "inhabitants": {"enum": [100_000, 1_000_000, 10_000_000]},
        "is_capital": {"type": "boolean"},
        "rivers": {
            "type": "array",
            "items": {"enum": ["Seine", "Tiber", "Aare", "Spree"]},
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["city", "country", "inhabitants", "is_capital", "rivers"],
}
TOPICS = [
    "the Louvre",
    "the Colosseum",
    "bears",
    "a wall",
    "croissants",
    "pasta",
    "cheese",
    "museums",
    "the Seine",
    "the Aare",
]


def child(side: str, file: str, vectors: str, threads: int) -> dict[str, Any]:
    """Time each call; return the seconds of each, and what was written."""
    llama_cpp: Any = importlib.import_module(OURS if side == OURS else "llama_cpp")
    common = {"n_threads": threads, "n_threads_batch": threads, "verbose": False}
    llama = llama_cpp.Llama(file, n_ctx=512, **common)
    embedder = llama_cpp.Llama(vectors, n_ctx=512, embedding=True, **common)
    lock: Any = threading.Lock() if side == PEER else nullcontext()
    rng, words = random.Random(1), WORDS.split()
    texts = [" ".join(rng.choices(words, k=rng.randint(8, 60))) for _ in range(1000)]

    def completion() -> Any:
        return llama.create_completion(PROMPT, max_tokens=N_TOKENS, temperature=0.0)["choices"][0]["text"]

    def schema() -> Any:
        return [
            llama.create_chat_completion(
                [{"role": "user", "content": f"A city that is known for {topic}?"}], temperature=0.0, max_tokens=120,
                response_format={"type": "json_object", "schema": SCHEMA},
            )["choices"][0]["message"]["content"]
            for topic in TOPICS
        ]  # fmt: skip

    def eight() -> Any:
        found = [""] * 8

        def run(i: int) -> None:
            with lock:
                found[i] = llama.create_completion(f"{i}. {PROMPT}", max_tokens=N_TOKENS, temperature=0.0)["choices"][
                    0
                ]["text"]

        runs = [threading.Thread(target=run, args=(i,)) for i in range(8)]
        for each in runs:
            each.start()
        for each in runs:
            each.join()
        return found

    seconds, written = {}, {}
    calls: dict[str, Callable[[], Any]] = {
        "completion": completion, "schema": schema, "eight threads": eight,
        "vectors": lambda: len(embedder.create_embedding(texts)["data"]),
    }  # fmt: skip
    for name, call in calls.items():
        call()
        start = time.perf_counter()
        written[name] = call()
        seconds[name] = time.perf_counter() - start
    return {"seconds": seconds, "written": written}


def main() -> None:
    parser = harness.parser(__doc__, "--threads", "--peers", "--no-write")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--files", nargs=2, default=[], help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.files[0], args.files[1], args.threads)), flush=True)
        os._exit(0)  # the other side's finalizers are not what is measured

    from offgrid_llama import store

    files = [store.pull("smollm2-135m-instruct"), store.cache_dir() / "tests/all-MiniLM-L6-v2.F16.gguf"]
    env = Peers(args.peers.resolve()).environment()
    written: dict[str, Any] = {}

    def take(side: str) -> dict[str, float]:
        arguments = ["--child", side, "--threads", str(args.threads), "--files", *map(str, files)]
        command = [sys.executable, __file__, *arguments]
        sample = harness.run_json(command, env)
        written[side] = sample["written"]
        print(side, {name: round(each, 2) for name, each in sample["seconds"].items()}, file=sys.stderr)
        seconds: dict[str, float] = sample["seconds"]
        return seconds

    samples, quiet = harness.in_turn(SIDES, args.pairs, take)
    about = harness.environment() | {"threads": args.threads, "pairs": args.pairs, "quiet": quiet}
    rows, results, verdicts = [], {}, []
    for name, limit in LIMITS.items():
        ours, theirs = ([sample[name] for sample in samples[side]] for side in SIDES)
        ratio = harness.ratios(theirs, ours)
        same = written[OURS][name] == written[PEER][name]
        results[name] = {"ours": harness.median_range(ours), "theirs": harness.median_range(theirs), "times": ratio}
        cells = ["{median:.2f} ({min:.2f} to {max:.2f})".format(**each) for each in results[name].values()]
        rows.append([name, *cells, "yes" if same else "no"])
        verdicts.append(
            harness.verdict(f"{name}: {ratio['median']:.2f} times, {limit} asked", ratio["median"] >= limit)
        )
    header = [
        "call",
        "ours, s: median (range)",
        f"{PEER}, s",
        "times as fast, median of pairs (range)",
        "the same texts",
    ]
    body = harness.table(header, rows) + "\n\n## Figures to hold\n\n" + "\n".join(verdicts)
    data = {"environment": about, "samples": samples, "results": results}
    harness.report("llama_cpp_drop_in", "The drop-in against llama-cpp-python", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()
