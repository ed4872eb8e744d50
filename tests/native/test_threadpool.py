"""Thread pools: shared by contexts, one at a time, and never smaller than a context needs."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

import offgrid_llama as og

if TYPE_CHECKING:
    from helpers.children import RunChild

TOKENS = [1, 5, 9, 12, 7]
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1


def logits(context: og.Context, seed: int = 0) -> np.ndarray:
    """Return the last row's logits after some tokens, in an empty memory."""
    context.memory.clear()
    batch = og.Batch(len(TOKENS))
    batch.add_sequence([token + seed for token in TOKENS])
    context.decode(batch)
    return np.array(context.logits(-1))


def test_two_contexts_share_a_pool(tiny: og.Model) -> None:
    """Two threads decode with one pool, each in its context, and each gets what it gets alone."""
    with og.Context(tiny, n_ctx=64, n_threads=1) as alone:
        expected = [logits(alone, seed) for seed in range(2)]
    found: list[list[np.ndarray]] = [[], []]
    with og.ThreadPool(1) as pool:
        contexts = [og.Context(tiny, n_ctx=64, threadpool=pool) for _ in range(2)]
        assert [context.params.n_threads for context in contexts] == [1, 1]

        def work(i: int) -> None:
            found[i] = [logits(contexts[i], i) for _ in range(200)]

        threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, rows in enumerate(found):
        assert len(rows) == 200
        for row in rows:
            np.testing.assert_allclose(row, expected[i], atol=1e-5)
    assert all(context.closed for context in contexts)


def test_contexts_take_turns(tiny: og.Model) -> None:
    """While another thread uses the pool, a decode waits."""
    with og.ThreadPool(1) as pool, og.Context(tiny, n_ctx=64, threadpool=pool) as context:
        done = threading.Event()

        def work() -> None:
            logits(context)
            done.set()

        with pool.handle:
            thread = threading.Thread(target=work)
            thread.start()
            assert not done.wait(0.3)
        thread.join(30)
        assert done.is_set()


def test_ownership(tiny: og.Model) -> None:
    """Closing the pool closes its contexts first, and no context can be made on it then."""
    pool = og.ThreadPool()
    context = og.Context(tiny, n_ctx=64, threadpool=pool)
    logits(context)
    pool.close()
    assert context.closed
    with pytest.raises(og.ClosedError, match="Context of"):
        logits(context)
    with pytest.raises(og.ClosedError, match="ThreadPool"):
        og.Context(tiny, n_ctx=64, threadpool=pool)


def test_more_threads_than_the_pool_has(tiny: og.Model) -> None:
    """A context cannot have more threads than its pool, when it is made or later."""
    with og.ThreadPool(1) as pool:
        for name in ("n_threads", "n_threads_batch"):
            if CPUS > 1:
                with pytest.raises(ValueError, match=f"{name} must be from 1 to 1"):
                    og.Context(tiny, n_ctx=64, threadpool=pool, **{name: 2})  # type: ignore[arg-type]
        with og.Context(tiny, n_ctx=64, threadpool=pool) as context:
            if CPUS > 1:
                with pytest.raises(ValueError, match="n_threads must be from 1 to 1"):
                    context.set_n_threads(2)
            context.set_n_threads(1)
            assert np.isfinite(logits(context)).all()


def test_arguments() -> None:
    """Threads and processors that are not there, and values out of range, are refused by name."""
    for arguments, message in (
        ({"n_threads": 0}, "n_threads must be from 1"),
        ({"n_threads": 10**6}, "n_threads must be from 1"),
        ({"cpus": [511]}, r"cpus\[0\] must be one of"),
        ({"cpus": [0, -1]}, r"cpus\[1\] must be from 0"),
        ({"poll": 101}, "poll must be from 0 to 100"),
    ):
        with pytest.raises(ValueError, match=message):
            og.ThreadPool(**arguments)
    with pytest.raises(TypeError, match="strict_cpu must be True or False"):
        og.ThreadPool(strict_cpu=1)  # type: ignore[arg-type]


@pytest.mark.skipif(CPUS < 2, reason="there is nowhere else to run")
def test_threads_run_where_they_are_told(tiny: og.Model, run_child: RunChild) -> None:
    """A decode leaves its thread bound to the pool's processors; in a child, as it stays so."""
    source = """
        import os, sys
        import offgrid_llama as og
        cpu = max(os.sched_getaffinity(0))
        with og.Model(sys.argv[1]) as model, og.ThreadPool(2, cpus=[cpu]) as pool:
            with og.Context(model, n_ctx=64, threadpool=pool) as context:
                batch = og.Batch(1)
                batch.add(1, 0, [0], logits=True)
                context.decode(batch)
        assert os.sched_getaffinity(0) == {cpu}, os.sched_getaffinity(0)
    """
    done = run_child(source, tiny.path)
    assert done.returncode == 0, done.stderr


def test_numa(tiny: og.Model, run_child: RunChild) -> None:
    """A strategy is taken, in a process of its own, and the model computes after it; an unknown one is refused."""
    source = """
        import sys
        import offgrid_llama as og
        og.numa_init("distribute")
        og.numa_init("distribute")
        with og.Model(sys.argv[1]) as model, og.Context(model, n_ctx=64) as context:
            batch = og.Batch(1)
            batch.add(1, 0, [0], logits=True)
            context.decode(batch)
            print(context.argmax(0))
    """
    done = run_child(source, tiny.path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit()
    with pytest.raises(ValueError, match="strategy must be one of 'distribute', 'isolate', 'numactl'"):
        og.numa_init("mirror")  # type: ignore[arg-type]
