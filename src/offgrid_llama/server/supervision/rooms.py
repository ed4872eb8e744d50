"""Rooms: which models have room in memory, and which leave to make some."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress

from offgrid_llama import store
from offgrid_llama.errors import StoreError
from offgrid_llama.server.api_error import busy

from .served_model import ServedModel

__all__ = ["Rooms"]

WORKER_OVERHEAD_BYTES = 400 * 2**20
"""Estimate of a worker's memory besides its file, before its first load: KV cache, buffers, Python."""


class Rooms:
    """Gives models room in the memory budget, in the order in which they ask.

    The first in line lets others leave, and waits for that. One behind it gets its room earlier where both fit. So no model
    waits for another whose memory it does not need, and the first in line is never passed over for long.

    Args:
        n_bytes: the budget.
        models: all of them.
        leave: starts to unload a model.
    """

    def __init__(self, n_bytes: int, models: Collection[ServedModel], leave: Callable[[ServedModel], object]) -> None:
        self._n_bytes = n_bytes
        self._models = models
        self._leave = leave
        self._line: list[ServedModel] = []
        self._claims: set[ServedModel] = set()  # those that are about to load, or load
        self._change = asyncio.Event()

    def changed(self) -> None:
        """Take that a model has left, or has ended in another way."""
        change, self._change = self._change, asyncio.Event()
        change.set()

    @asynccontextmanager
    async def claimed(self, model: ServedModel) -> AsyncIterator[None]:
        """Wait until a model fits into the budget, or is alone; the room is kept for it until the block ends.

        Raises ApiError where it does not fit beside the models that are never unloaded.
        """
        self._line.append(model)
        try:
            while not self._fits(model):
                change = self._change
                if self._line[0] is model:
                    self._make_room(model)
                await change.wait()
            self._claims.add(model)
        finally:
            self._line.remove(model)
            self.changed()
        try:
            yield
        finally:
            self._claims.remove(model)
            self.changed()

    def _fits(self, model: ServedModel) -> bool:
        """Whether there is room now, and none of it is what the first in line waits for."""
        there = [other for other in self._models if other is not model and self._is_there(other)]
        staying = [other for other in there if other.leaving is None]
        first = [other for other in self._line[:1] if other is not model]
        return self._has_room(model, there) and self._has_room(model, [*staying, *first])

    def _make_room(self, model: ServedModel) -> None:
        """Let models leave until there will be room."""
        while True:
            there = [other for other in self._models if other is not model and self._is_there(other)]
            staying = [other for other in there if other.leaving is None]
            if self._has_room(model, staying):
                return
            candidates = [other for other in staying if other.loading is None and not other.settings.keep]
            if not candidates:
                if self._claims or len(staying) < len(there):
                    return  # one that loads may leave then
                raise busy(503, f"{model.name} does not fit into memory beside the kept models", "no_memory", 30)
            self._leave(min(candidates, key=lambda other: (other.n_users > 0, other.used_at)))

    def _is_there(self, model: ServedModel) -> bool:
        return model.worker is not None or model in self._claims

    def _has_room(self, model: ServedModel, others: list[ServedModel]) -> bool:
        return not others or sum(map(_n_taken, others)) + _expected_bytes(model) <= self._n_bytes


def _n_taken(model: ServedModel) -> int:
    """Return how many bytes a model takes, or will."""
    return max(0 if model.worker is None else model.worker.rss_bytes, _expected_bytes(model))


def _expected_bytes(model: ServedModel) -> int:
    if model.n_bytes is not None:
        return model.n_bytes
    with suppress(StoreError, OSError):
        file = store.resolve(model.settings.model or model.name, download=False)
        return file.stat().st_size + WORKER_OVERHEAD_BYTES
    return WORKER_OVERHEAD_BYTES
