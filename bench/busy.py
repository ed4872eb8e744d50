"""One stream beside other programs: decode, against llama_decode by itself, and against one thread.

    python bench/busy.py [--rounds 7] [--threads N] [--model NAME[=FILE]] [--no-write]

A sample is a fresh process that decodes token by token for two seconds, beside 0, 1, 2 or 4 endless loops, or for ten beside
one that comes and goes each second. `decode` watches whether its threads wait for cores (`_capi/thread_team.cpp`);
`llama_decode`, called without that, does not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import harness

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDES = ("decode", "llama_decode", "one thread")
BESIDE = ("0 loops", "1 loops", "2 loops", "4 loops", "a loop now and then")
SECONDS = {"a loop now and then": 10.0}
LOOP = "while True: pass"
NOW_AND_THEN = (
    "import time\nwhile True:\n    end = time.time() + 1\n    while time.time() < end: pass\n    time.sleep(1)"
)
QUIET_RATIO = 0.98
BEST_RATIO = 0.9
NOW_AND_THEN_RATIO = 0.85


def child(file: str, side: str, threads: int, seconds: float) -> dict[str, float]:
    """Return the tokens a second of one side."""
    import offgrid_llama as og
    from offgrid_llama._capi import lib

    function = lib.llama_decode if side == "llama_decode" else lib.og_decode
    n_threads = 1 if side == "one thread" else threads
    with og.Model(file) as model, og.Context(model, n_ctx=512, n_threads=n_threads) as context:
        batch = og.Batch(1)

        def rate(seconds: float) -> float:
            n, begin = 0, time.perf_counter()
            while time.perf_counter() < begin + seconds:
                if n % 256 == 0:
                    context.memory.clear(data=False)
                batch.clear()
                batch.add(100 + n % 256, pos=n % 256, seq_ids=[0], logits=True)
                context.decode_with(batch, function)
                n += 1
            return n / (time.perf_counter() - begin)

        rate(0.5)
        return {"tokens a second": rate(seconds)}


@contextmanager
def beside(what: str) -> Iterator[None]:
    """Run other programs."""
    loops = [NOW_AND_THEN] if what in SECONDS else [LOOP] * int(what.split(maxsplit=1)[0])
    with ExitStack() as stack:
        for loop in loops:
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", loop]))
            stack.callback(process.kill)
        yield


def measure(file: str, rounds: int, threads: int) -> dict[str, dict[str, list[float]]]:
    """Return the samples of each side beside each of the other programs."""
    samples: dict[str, dict[str, list[float]]] = {what: {side: [] for side in SIDES} for what in BESIDE}
    for what in BESIDE:
        for _, side in harness.rotated(SIDES, rounds):
            command = [sys.executable, __file__, "--child", side, "--model", f"the model={file}"]
            command += ["--threads", str(threads), "--seconds", str(SECONDS.get(what, 2.0))]
            with beside(what):
                samples[what][side].append(harness.run_json(command, os.environ)["tokens a second"])
        print(what, samples[what], file=sys.stderr)
    return samples


def main() -> None:
    parser = harness.parser(__doc__, "--threads", "--model", "--no-write")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", choices=SIDES)
    parser.add_argument("--seconds", type=float)
    options = parser.parse_args()
    models = harness.resolve(options.model)
    if options.child:
        (file,) = models.values()
        print(json.dumps(child(str(file), options.child, options.threads, options.seconds)))
        return
    data: dict[str, Any] = {"environment": harness.environment(), "samples": {}}
    rows, verdicts = [], []
    for name, file in models.items():
        samples = data["samples"][name] = measure(str(file), options.rounds, options.threads)
        for what, sides in samples.items():
            medians = {side: harness.median_range(values)["median"] for side, values in sides.items()}
            pairs = {side: harness.ratios(sides["decode"], sides[side]) for side in SIDES[1:]}
            rows.append(
                [name, what, *(round(medians[side]) for side in SIDES)]
                + ["{median:.2f} ({min:.2f} to {max:.2f})".format(**found) for found in pairs.values()]
            )
            best = min(found["median"] for found in pairs.values())
            ratio, words = (
                (QUIET_RATIO, "of llama_decode") if what == "0 loops"
                else (NOW_AND_THEN_RATIO, "of the better of the two") if what in SECONDS
                else (BEST_RATIO, "of the better of the two")
            )  # fmt: skip
            found = pairs["llama_decode"]["median"] if what == "0 loops" else best
            verdicts.append(harness.verdict(f"{name}, {what}: {found:.2f}, {ratio} {words}", found >= ratio))
    body = "\n".join(
        [
            f"Tokens a second, medians of {options.rounds} fresh processes in turn, and the ratios of `decode` in a round.",
            "",
            harness.table(["model", "beside", *SIDES, *(f"decode / {side}" for side in SIDES[1:])], rows),
            "", *verdicts,
        ]
    )  # fmt: skip
    harness.report("busy", "One stream beside other programs", data, body, not options.no_write)


if __name__ == "__main__":
    main()
