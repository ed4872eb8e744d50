"""How the threads of a decode wait for each other, and the threads that a context leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.serving import wait_until
from offgrid_llama._capi import lib

TASKS = Path("/proc/self/task")

pytestmark = pytest.mark.skipif(
    not TASKS.with_name("schedstat").exists() or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores, and a system that tells how long a thread had none",
)


@contextmanager
def busy_programs() -> Iterator[None]:
    """Run two endless loops on each core."""
    with ExitStack() as stack:
        for _ in range(2 * len(os.sched_getaffinity(0))):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        yield


def test_threads_sleep_while_other_programs_need_the_cores(smollm2: og.Model) -> None:
    """The numbers are the same as when they spin. ``bench/busy.py`` sees them spin again: this machine may stay busy."""
    with og.Context(smollm2, n_ctx=64, n_threads=2) as context:
        found = []
        batch = og.Batch(4)
        batch.add_sequence([1, 2, 3, 4], logits="last")

        def decode() -> bool:
            context.memory.clear()
            context.decode(batch)
            found.append(context.logits(-1).copy().tobytes())
            return bool(lib.og_threads_sleep())

        decode()
        with busy_programs():
            wait_until(decode, 300)
    assert len(set(found)) == 1


def test_embedding_leaves_no_threads(smollm2: og.Model) -> None:
    """Threads that wait for a context's next decode would slow down those of all others."""
    before = set(os.listdir(TASKS))
    with og.Embedder(smollm2, pooling_type="mean", n_threads=2) as embedder:

        def leaves_none() -> bool:  # on a busy machine there are more for some time
            embedder.embed(["a"])
            return before.issuperset(os.listdir(TASKS))

        wait_until(leaves_none, 300)
