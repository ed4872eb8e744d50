"""Idling: how long models stay loaded that nothing uses."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import monotonic

from .served_model import ServedModel

__all__ = ["Idling"]


class Idling:
    """Unloads each model when it has been idle for as long as it is kept.

    That is what the last request that said so has asked for, or else the server's ``idle_seconds``.

    Args:
        seconds: for which a model is kept, where no request has said so; 0 is for ever.
        unload: starts to unload a model.
    """

    def __init__(self, seconds: float, unload: Callable[[ServedModel], object]) -> None:
        self._seconds = seconds or math.inf
        self._unload = unload
        self._timers: dict[ServedModel, asyncio.TimerHandle] = {}

    def begin(self, model: ServedModel) -> None:
        """Take that a model may be idle from now on."""
        self._forget(model)
        seconds = self._kept(model)
        if not model.n_users and seconds < math.inf:
            self._timers[model] = asyncio.get_running_loop().call_later(seconds, self._expire, model)

    def seconds_left(self, model: ServedModel) -> float:
        """Return in how many seconds a loaded model will be unloaded, if no request comes; ``math.inf`` is never."""
        seconds = self._kept(model)
        return seconds if model.n_users else max(0.0, model.used_at + seconds - monotonic())

    def close(self) -> None:
        """Unload nothing more."""
        for model in list(self._timers):
            self._forget(model)

    def _kept(self, model: ServedModel) -> float:
        """Return for how many seconds an idle model stays loaded."""
        if model.settings.keep:
            return math.inf
        return self._seconds if model.keep_seconds is None else model.keep_seconds

    def _forget(self, model: ServedModel) -> None:
        if (timer := self._timers.pop(model, None)) is not None:
            timer.cancel()

    def _expire(self, model: ServedModel) -> None:
        del self._timers[model]
        if model.ready and not model.n_users:  # otherwise its last user begins another time
            self._unload(model)
