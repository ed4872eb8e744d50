"""Streams beside a picture: the gaps between the tokens of seven streams while a large picture is encoded and computed.

    python bench/media.py [--rounds N] [--no-write]

The projector is made for it, with random weights: a picture is one chunk of 2,025 tokens. A normal gap is the median
of the seconds before; to hold is that none of the picture's time is longer than 3 of them.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness
import numpy as np

sys.path.append(str(harness.ROOT / "tests"))

import offgrid_llama as og
from helpers.projectors import write_random

MODEL = "smollm2-135m-instruct"
N_STREAMS = 7
NORMAL_SECONDS = 5
GAP_RATIO = 3
SIDE, N_LAYER = 180, 128


def one_round(engine: og.Engine, seed: int) -> dict[str, Any]:
    """Run the streams, send a picture after some seconds, and return their gaps beside it by their normal gaps."""
    ended = threading.Event()
    times: list[list[float]] = [[] for _ in range(N_STREAMS)]

    def stream(index: int) -> None:
        options: dict[str, Any] = {"max_tokens": 4000, "ignore_eos": True, "seed": index, "cache_prompt": False}
        for _ in engine.stream(f"Story {index}: once upon a time", **options):
            times[index].append(time.perf_counter())
            if ended.is_set():
                break

    threads = [threading.Thread(target=stream, args=(index,)) for index in range(N_STREAMS)]
    for thread in threads:
        thread.start()
    time.sleep(NORMAL_SECONDS)
    picture = og.Image(np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
    begin = time.perf_counter()
    completion = engine.submit(["Look: ", picture, " What is it?"], max_tokens=1, cache_prompt=False)
    completion.result()
    end = time.perf_counter()
    ended.set()
    for thread in threads:
        thread.join()
    gaps = [(first, later - first) for each in times for first, later in pairwise(each)]
    normal = statistics.median(gap for at, gap in gaps if at + gap < begin and at > begin - NORMAL_SECONDS + 1)
    beside = sorted(gap / normal for at, gap in gaps if at + gap > begin and at < end)
    return {
        "tokens of the picture": completion.usage.prompt_tokens,
        "seconds to its first token": round(end - begin, 2),
        "normal gap, ms": round(1000 * normal, 1),
        "gaps beside it, by the normal": {
            "median": round(statistics.median(beside), 2), "99 %": round(beside[int(0.99 * len(beside))], 2),
            "largest": round(beside[-1], 2),
        },
    }  # fmt: skip


def main() -> None:
    parser = harness.parser(__doc__, "--no-write")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, og.Model(MODEL) as model:
        path = Path(folder) / "mmproj.gguf"
        write_random(path, "mlp", model.n_embd, side=SIDE, n_layer=N_LAYER)
        with og.Engine(model, projector=path, n_ctx=8 * 4096, n_seq_max=8) as engine:
            found = [one_round(engine, seed) for seed in range(options.rounds)]
    for each in found:
        print(each)
    largest = statistics.median(each["gaps beside it, by the normal"]["largest"] for each in found)
    print(
        harness.verdict(f"largest gap beside a picture {largest:.2f} of {GAP_RATIO} normal ones", largest <= GAP_RATIO)
    )


if __name__ == "__main__":
    main()
