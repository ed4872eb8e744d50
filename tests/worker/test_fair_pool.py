"""Threads that clients use in turn."""

from __future__ import annotations

import asyncio
import threading
from itertools import count

import pytest

from offgrid_llama.worker import fair_pool
from offgrid_llama.worker.fair_pool import FairPool


def test_clients_have_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that comes after a hundred calls of another waits for the one that runs, and then for every second one."""
    monkeypatch.setattr(fair_pool, "perf_counter", count().__next__)  # all calls take the same time
    made: list[str] = []
    gate = threading.Event()

    def work(tenant: str) -> str:
        made.append(tenant)
        if len(made) == 5:
            gate.wait(30)
        return tenant

    async def main() -> None:
        pool = FairPool(1, "test")
        first = [asyncio.create_task(pool.run("a", work, "a")) for _ in range(100)]
        while len(made) < 5:
            await asyncio.sleep(0)
        others = [asyncio.create_task(pool.run("b", work, "b")) for _ in range(5)]
        await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*others) == ["b"] * 5
        await asyncio.gather(*first)
        assert len(made) - made[::-1].index("b") < 5 + 5 + 20
        pool.shutdown()

    asyncio.run(main())


def test_a_call_that_is_cancelled_while_it_waits_is_never_made() -> None:
    """The next one is; results and exceptions come back to their own callers."""
    made: list[int] = []
    gate = threading.Event()

    def work(i: int) -> int:
        gate.wait(30)
        made.append(i)
        return 10 // i

    async def main() -> None:
        pool = FairPool(1, "test")
        calls = [asyncio.create_task(pool.run("", work, i)) for i in (1, 2, 0, 5)]
        await asyncio.sleep(0)
        calls[0].cancel()  # it has its thread
        calls[1].cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(ZeroDivisionError):
            await calls[2]
        assert await calls[3] == 2
        assert made == [1, 0, 5]
        pool.shutdown()

    asyncio.run(main())
