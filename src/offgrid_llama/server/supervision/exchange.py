"""Exchange: one request to a worker, and the frames that come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.worker.frames import Answered, Result

__all__ = ["Exchange"]


class Exchange:
    """The frames of one request, from the worker's connection to the request's coroutine.

    Args:
        id_: of the request, in all its frames.

    Attributes:
        begun: whether the worker has sent a frame. From then on the request cannot be retried.
    """

    __slots__ = ("_error", "_frames", "_ready", "begun", "id")

    def __init__(self, id_: int) -> None:
        self.id = id_
        self.begun = False
        self._frames: list[Any] = []
        self._error: ApiError | None = None
        self._ready = asyncio.Event()

    def put(self, frame: Any) -> None:
        """Take a frame from the worker."""
        self.begun = True
        self._frames.append(frame)
        self._ready.set()

    def fail(self, error: ApiError) -> None:
        """End the exchange with an error, which is raised after the frames that came before it."""
        self._error = error
        self._ready.set()

    async def frames(self) -> AsyncIterator[Any]:
        """Yield frames as they come, up to the one that ends the request. Raises the error it failed with."""
        while True:
            for frame in await self._next():
                yield frame
                if isinstance(frame, (Answered, Result)):
                    return

    async def result(self) -> Any:
        """Wait for the frame that ends a request with one frame. Raises the error it failed with."""
        return (await self._next())[-1]

    async def _next(self) -> list[Any]:
        """Wait for frames, and return all that are there."""
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._ready.clear()
            await self._ready.wait()
        frames, self._frames = self._frames, []
        return frames
