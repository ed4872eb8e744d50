"""The price of Engine(deterministic=True): tokens a second of 1, 4 and 8 streams and of a prompt, to the usual engine.

    python bench/deterministic.py [--pairs 5] [--threads N] [--model NAME[=FILE]] [--no-write]

Every sample is a fresh process with one engine; the two take turns. Streams generate 64 tokens each, greedily, without
prompt lookup, behind prompts of their own; the time is that between the first tokens
and the end, of the slowest. The prompt has 600
tokens, and nothing of it is cached.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import harness

SIDES = ("usual", "deterministic")
N_STREAMS = (1, 4, 8)
N_TOKENS = 64


def child(side: str, file: str, threads: int) -> dict[str, float]:
    """Return the tokens a second of each number of streams, and those of a prompt."""
    import offgrid_llama as og

    found: dict[str, float] = {}
    with og.Engine(file, n_seq_max=8, n_ctx=8192, n_threads=threads, deterministic=side == "deterministic") as engine:
        endless = dict.fromkeys(engine.model.vocab.eog_tokens(), -100.0)
        sampling = og.SamplingParams(temperature=0, logit_bias=endless)
        word = engine.model.vocab.tokenize(" mill", add_special=False)[:1]
        engine.generate(word * 16, max_tokens=16, sampling=sampling)
        for n in N_STREAMS:
            prompts = [[at + 300, *word * 20] for at in range(n)]
            asked = [engine.submit(each, max_tokens=N_TOKENS, sampling=sampling, lookup=False) for each in prompts]
            seconds = max(each.result().timings.decode or 0.0 for each in asked)
            found[f"{n} stream{'s' * (n > 1)}"] = n * (N_TOKENS - 1) / seconds
        since = time.perf_counter()
        engine.generate([7, *word * 599], max_tokens=1, sampling=sampling)
        found["prompt of 600"] = 600 / (time.perf_counter() - since)
    return found


def main() -> None:
    parser = harness.parser(__doc__, "--threads", "--model", "--no-write")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--child", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(child(args.child, args.file, args.threads)))
        return
    name, file = next(iter(harness.resolve(args.model or ["smollm2-135m-instruct"]).items()))
    command = [sys.executable, __file__, "--file", str(file), "--threads", str(args.threads), "--child"]
    samples, quiet = harness.in_turn(SIDES, args.pairs, lambda side: harness.run_json([*command, side], os.environ))
    rows, ratios = [], {}
    for what in samples["usual"][0]:
        ours, theirs = ([each[what] for each in samples[side]] for side in ("deterministic", "usual"))
        ratios[what] = harness.ratios(ours, theirs)
        usual, price = harness.median_range(theirs), ratios[what]
        rows.append([what, f"{usual['median']:.0f}", f"{harness.median_range(ours)['median']:.0f}",
                     f"{price['median']:.2f} ({price['min']:.2f} to {price['max']:.2f})"])  # fmt: skip
    table = harness.table([f"{name}, tokens a second", "usual", "deterministic", "ratio, median (range)"], rows)
    data = {
        "environment": {**harness.environment(), "pairs": args.pairs, **quiet},
        "samples": samples,
        "ratios": ratios,
    }
    harness.report("deterministic", "The price of deterministic=True", data, table, write=not args.no_write)


if __name__ == "__main__":
    main()
