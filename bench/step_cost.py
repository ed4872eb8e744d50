"""Time that a binding adds to each step of one stream: between two calls of llama_decode, beside the time in them.

    python bench/step_cost.py [--rounds 5] [--threads N] [--model NAME[=FILE]]... [--no-write]

`single_stream.py` compares whole runs, whose samples scatter by a tenth on a machine with neighbours. Here llama_decode,
which is the same function of the same library for all, is timed apart from the code around it. That code is
measured in the real loop, between two decodes that push everything else out of the caches; in a loop of its own the
same Python takes a tenth of that.

llama-bench has next to nothing around it. So `share`, the part of a step that is spent in llama_decode, is how fast
the binding is compared with it. `decode` and `generate` are the loops of `single_stream.py`.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import harness
import single_stream
from peers import Peers
from single_stream import N_DECODE, OURS, PYTHON

if TYPE_CHECKING:
    from collections.abc import Callable

SIDES, TESTS = (OURS, PYTHON), ("decode", "generate")
LIMIT = 0.97


def child(side: str, test: str, file: str, threads: int) -> dict[str, float]:
    """Run the loop three times; return the median step's microseconds in llama_decode and outside of it."""
    calls: list[tuple[int, int]] = []

    def timed(decode: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            begin = time.perf_counter_ns()
            code = decode(*arguments)
            calls.append((begin, time.perf_counter_ns()))
            return code

        return call

    if side == OURS:
        context: Any = importlib.import_module("offgrid_llama.context.context").Context
        decode = timed(importlib.import_module("offgrid_llama._capi").lib.llama_decode)
        context.decode = lambda self, batch: self.decode_with(batch, decode)
        run = single_stream.child_ours(test, file, threads)
    else:
        llama_cpp: Any = importlib.import_module("llama_cpp")
        internals: Any = importlib.import_module("llama_cpp._internals")
        internals.llama_cpp.llama_decode = timed(llama_cpp.llama_decode)
        run = single_stream.child_python(test, file, threads)
    run(True)
    inside, outside = [], []
    for _ in range(3):
        calls.clear()
        run(False)
        inside += [end - begin for begin, end in calls[:N_DECODE]]
        outside += [after[0] - before[1] for before, after in itertools.pairwise(calls)]
    return {"inside_us": statistics.median(inside) / 1e3, "outside_us": statistics.median(outside) / 1e3}


def main() -> None:
    parser = harness.parser(__doc__, "--model", "--threads", "--peers", "--no-write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--child", nargs=2, metavar=("SIDE", "TEST"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        side, test = args.child
        print(json.dumps(child(side, test, args.model[0], args.threads)), flush=True)
        os._exit(0)  # the other side's finalizers are not what is measured

    peers = Peers(args.peers.resolve())
    peers.check()
    env, about = peers.environment(), harness.environment() | {"threads": args.threads, "rounds": args.rounds}
    rows, verdicts, samples = [], [], {}
    for model, file in harness.resolve(args.model).items():
        for test in TESTS:

            def take(side: str, test: str = test, file: Path = file) -> dict[str, float]:
                options = ["--child", side, test, "--threads", str(args.threads), "--model", str(file)]
                found: dict[str, float] = harness.run_json([sys.executable, __file__, *options], env)
                return found

            found, about[f"{model}, {test}"] = harness.in_turn(SIDES, args.rounds, take)
            samples[f"{model}/{test}"] = found
            costs = {}
            for side, values in found.items():
                inside, outside = ([value[key] for value in values] for key in ("inside_us", "outside_us"))
                costs[side] = statistics.median(outside)
                share = statistics.median(i / (i + o) for i, o in zip(inside, outside, strict=True))
                cost = f"{costs[side]:.0f} ({min(outside):.0f} to {max(outside):.0f})"
                rows.append([model, test, side, f"{statistics.median(inside):,.0f}", cost, f"{share:.4f}"])
                if side == OURS:
                    verdicts.append(
                        harness.verdict(f"{model} {test}: share {share:.4f}, {LIMIT} asked", share >= LIMIT)
                    )
            ratio = costs[OURS] / costs[PYTHON]
            verdicts.append(
                harness.verdict(f"{model} {test}: {ratio:.2f} of {PYTHON}'s cost, under 1 asked", ratio < 1)
            )
    header = ["model", "test", "side", "in llama_decode, us", "outside, us, median (range)", "share"]
    body = "\n".join([harness.table(header, rows), "", "## Figures to hold", "", *verdicts])
    data = {"environment": about, "samples": samples}
    harness.report("step_cost", "What a step costs besides llama_decode", data, body, write=not args.no_write)


if __name__ == "__main__":
    main()
