"""FairPool: threads for a worker's event loop, which tenants use in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

from offgrid_llama.engine.planning.fair_queue import FairQueue, Waiting

__all__ = ["FairPool"]


class _Work(NamedTuple):
    """A call that waits for a thread, or has one."""

    done: asyncio.Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class FairPool:
    """Calls functions in threads. Where calls wait, tenants have turns, by the time that their calls have taken.

    Args:
        n_threads: calls at a time.
        name: of the threads.
    """

    def __init__(self, n_threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(n_threads, name)
        self._n_free = n_threads
        self._queue: FairQueue[_Work] = FairQueue()  # its unit is a microsecond

    async def run(self, tenant: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns. When this is cancelled, a call that waits is never made."""
        work = _Work(asyncio.get_running_loop().create_future(), function, arguments)
        self._queue.push(work, 0, tenant)
        self._start()
        return await work.done

    def shutdown(self) -> None:
        """Wait for the calls that run, and make no others."""
        self._threads.shutdown(wait=True, cancel_futures=True)

    def _start(self) -> None:
        while self._n_free and (entry := self._queue.pop()) is not None:
            work = entry.item
            if not work.done.cancelled():
                self._n_free -= 1
                call = asyncio.get_running_loop().run_in_executor(self._threads, work.function, *work.arguments)
                call.add_done_callback(partial(self._end, entry, perf_counter()))

    def _end(self, entry: Waiting[_Work], begin: float, call: asyncio.Future[Any]) -> None:
        self._n_free += 1
        self._queue.count(entry.tenant, round(1e6 * (perf_counter() - begin)))
        done = entry.item.done
        error = None if call.cancelled() else call.exception()
        if done.cancelled():
            pass
        elif call.cancelled():
            done.cancel()
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(call.result())
        if not call.cancelled():
            self._start()
