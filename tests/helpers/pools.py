"""Thread pools of a worker that tell what they do."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from offgrid_llama.worker.fair_pool import FairPool


class Watched(FairPool):
    """Notes the client of each call that has a thread, and those of all calls.

    Args:
        holds: the numbers of calls that keep the only thread until ``go_on``.
    """

    def __init__(self, *holds: int) -> None:
        super().__init__(1, "test")
        self.log: list[str] = []
        self._called: set[str] = set()
        self._holds = holds
        self._may_go_on = threading.Semaphore(0)

    async def run(self, tenant: str, function: Callable[..., Any], *arguments: Any) -> Any:
        def noted(*given: Any) -> Any:
            self.log.append(tenant)
            if len(self.log) in self._holds:
                self._may_go_on.acquire(timeout=30)
            return function(*given)

        self._called.add(tenant)
        return await super().run(tenant, noted, *arguments)

    async def reached(self, n: int) -> None:
        while len(self.log) < n:
            await asyncio.sleep(0.001)

    async def called(self, tenant: str) -> None:
        """Wait until a client's call waits for the thread."""
        while tenant not in self._called:
            await asyncio.sleep(0.001)

    def go_on(self) -> None:
        """Let the call that keeps the thread go on."""
        self._may_go_on.release()
