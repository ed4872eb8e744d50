"""Access: what is kept, beside the event loop where it is on disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from offgrid_llama.server.api_error import ApiError

from .record import Backend

__all__ = ["Access"]

_logger = logging.getLogger("offgrid_llama.server")
_T = TypeVar("_T")


class Access:
    """Calls a backend: at once if it is in memory, and in a thread of its own if it is on disk.

    Args:
        backend: where records are kept.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._thread = ThreadPoolExecutor(1, "offgrid_llama responses") if backend.on_disk else None

    async def run(self, work: Callable[[Backend], _T]) -> _T:
        """Return what a function makes of the backend. Raises ApiError where that cannot be read or written."""
        if self._thread is None:
            return work(self._backend)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, self._backend)
        except OSError as error:
            _logger.error("responses cannot be stored or read: %s", error)
            raise ApiError(
                500, "responses cannot be stored or read; the log has the reason", code="storage_failed"
            ) from error

    async def close(self) -> None:
        """Let go of what is held."""
        await self.run(lambda backend: backend.close())
        if self._thread is not None:
            self._thread.shutdown()
