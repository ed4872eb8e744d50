"""Several processes, each with an engine of its own, as multiprocessing starts them.

    python docs/recipes/processes.py

An engine cannot be pickled, and does not survive a fork: each process makes its own when it starts. They share the model's
memory, because each maps the same file. Give each its share of the cores.

Where one process is enough, one engine is quicker than several: requests share its steps.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import offgrid_llama as og

N_PROCESSES = 2
engines: list[og.Engine] = []  # this process's one, when it has started


def start(model: str) -> None:
    """Make this process's engine."""
    engines.append(og.Engine(model, n_seq_max=1, n_threads=max(1, (os.cpu_count() or 1) // N_PROCESSES)))


def answer(question: str) -> str:
    """Answer with this process's engine."""
    return engines[0].generate(question, max_tokens=8, temperature=0).text


def main() -> None:
    """Answer some questions in several processes."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(N_PROCESSES, spawn, initializer=start, initargs=("smollm2-135m-instruct",)) as pool:
        for text in pool.map(
            answer, ["The capital of France is", "The capital of Italy is", "The capital of Japan is"]
        ):
            print(text)


if __name__ == "__main__":
    main()
