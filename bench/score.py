"""1,000 continuations of 50 prompts: Engine.score, and one decode for each, on the same libllama in turn.

    python bench/score.py [--pairs 3] [--threads N] [--model NAME=FILE] [--no-write]

Every sample is a fresh process that loads the model, scores some pairs as a warm-up, and then times all of them. Prompts
are 30 to 120 English words, always the same, and continuations 1 to 8. The sides that decode each pair by itself
compute every tenth one, and their time counts tenfold: a Context with logits of the rows that are needed, and
llama-cpp-python with `logits_all=True`, `reset`, `eval` and `logits_to_logprobs`, as lm-evaluation-harness's users have it.
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
from embedding import WORDS
from peers import Peers

if TYPE_CHECKING:
    from collections.abc import Callable

OURS, DECODES, PEER = "Engine.score", "one decode each", "llama-cpp-python"
SIDES = (OURS, DECODES, PEER)
N_PROMPTS, N_CONTINUATIONS, EVERY, LIMIT = 50, 20, 10, 5.0
N_CTX = 512
_Pair = tuple[list[int], list[int]]


def pairs(vocab: Any) -> list[list[_Pair]]:
    """Return the token ids of each prompt's pairs."""
    rng, words = random.Random(1), WORDS.split()
    found = []
    for _ in range(N_PROMPTS):
        prompt = vocab.tokenize(" ".join(rng.choices(words, k=rng.randint(30, 120))))
        more = [" " + " ".join(rng.choices(words, k=rng.randint(1, 8))) for _ in range(N_CONTINUATIONS)]
        found.append([(prompt, vocab.tokenize(text, add_special=False)) for text in more])
    return found


def child(side: str, file: str, threads: int) -> dict[str, Any]:
    """Score everything once; return the seconds, and the scores of every tenth pair."""
    import offgrid_llama as og

    with og.Model(file) as model:
        groups = pairs(model.vocab)
        if side == OURS:
            with og.Engine(model, n_threads=threads) as engine:
                engine.score(groups[0][0][0][:30], [more for _, more in groups[0]])
                start = time.perf_counter()
                scores = [engine.score(group[0][0], [more for _, more in group]) for group in groups]
                seconds = time.perf_counter() - start
            logprobs = [score.logprob for group in scores for score in group][::EVERY]
            return {"seconds": seconds, "logprobs": logprobs}
        some = [pair for group in groups for pair in group][::EVERY]
        score = _decodes(model, threads) if side == DECODES else _peer(file, threads)
        score(*some[-1])
        start = time.perf_counter()
        logprobs = [score(*pair) for pair in some]
        return {"seconds": (time.perf_counter() - start) * EVERY, "logprobs": logprobs}


def _decodes(model: Any, threads: int) -> Callable[[list[int], list[int]], float]:
    import numpy as np

    import offgrid_llama as og

    context, batch = og.Context(model, n_ctx=N_CTX, n_batch=N_CTX, n_threads=threads), og.Batch(N_CTX)

    def score(prompt: list[int], more: list[int]) -> float:
        context.memory.clear()
        batch.clear()
        for i, token in enumerate([*prompt, *more[:-1]]):
            batch.add(token, i, [0], logits=i >= len(prompt) - 1)
        context.decode(batch)
        total = 0.0
        for i, token in enumerate(more, len(prompt) - 1):
            row = np.asarray(context.logits(i))
            top = row.max()
            total += float(row[token] - top - np.log(np.exp(row - top).sum()))
        return total

    return score


def _peer(file: str, threads: int) -> Callable[[list[int], list[int]], float]:
    llama_cpp: Any = importlib.import_module("llama_cpp")
    llama: Any = llama_cpp.Llama(
        file, n_ctx=N_CTX, n_batch=N_CTX, n_threads=threads, n_threads_batch=threads, logits_all=True, flash_attn=True,
        verbose=False,
    )  # fmt: skip

    def score(prompt: list[int], more: list[int]) -> float:
        llama.reset()
        llama.eval([*prompt, *more[:-1]])
        rows = llama.logits_to_logprobs(llama.scores[len(prompt) - 1 : len(prompt) - 1 + len(more)])
        return float(sum(rows[i, token] for i, token in enumerate(more)))

    return score


def main() -> None:
    parser = harness.parser(__doc__, "--threads", "--peers", "--no-write")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--model", metavar="NAME=FILE")
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.model, args.threads)), flush=True)
        os._exit(0)  # the other side's finalizers are not what is measured

    name, _, file = (args.model or "smollm2-135m-instruct").partition("=")
    if not file:
        from offgrid_llama import store

        file = str(store.pull(name))
    env = Peers(args.peers.resolve()).environment()
    found: dict[str, list[float]] = {}

    def take(side: str) -> float:
        command = [sys.executable, Path(__file__), "--child", side, "--model", file, "--threads", str(args.threads)]
        sample = harness.run_json(command, env)
        found[side] = sample["logprobs"]
        print(f"{side}: {sample['seconds']:.1f} s", file=sys.stderr)
        return float(sample["seconds"])

    samples, quiet = harness.in_turn(SIDES, args.pairs, take)
    about = harness.environment() | {"model": name, "threads": args.threads, "pairs": args.pairs, "quiet": quiet}
    rows: list[list[str]] = []
    results: dict[str, dict[str, Any]] = {}
    for side, values in samples.items():
        seconds, ratio = harness.median_range(values), harness.ratios(values, samples[OURS])
        apart = max(abs(a - b) for a, b in zip(found[OURS], found[side], strict=True))
        results[side] = {"seconds": seconds, "it_to_ours": ratio, "largest_difference": apart}
        times = "" if side == OURS else "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio)
        rows.append([side, "{median:.1f} ({min:.1f} to {max:.1f})".format(**seconds), times, f"{apart:.4f}"])
    held = results[DECODES]["it_to_ours"]["median"]
    header = ["side", "seconds, median (range)", "times ours, median of pairs (range)", "largest difference of a score"]
    body = harness.table(header, rows) + "\n\n## Figures to hold\n\n"
    body += harness.verdict(f"{held:.2f} times as fast as one decode each, {LIMIT} asked", held >= LIMIT)
    data = {"environment": about, "samples": samples, "results": results}
    harness.report("score", "1,000 continuations of 50 prompts", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()
