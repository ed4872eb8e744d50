"""Fetching: the download of a model that a load has begun, told by events, which can be cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

from offgrid_llama.server.downloads import DownloadCancelledError
from offgrid_llama.server.model_events import ModelEvent, ModelEvents

__all__ = ["Fetching"]


class Fetching:
    """The progress callback of a download, for its thread. It has no effect where the file is there.

    Args:
        model: the name of the model.
        known_as: the store's name.
        events: are told how far it is, and how it ends.

    Attributes:
        progress: bytes so far, and in all or None; None while nothing is downloaded.
    """

    def __init__(self, model: str, known_as: str, events: ModelEvents) -> None:
        self.progress: tuple[int, int | None] | None = None
        self._model = model
        self._known_as = known_as
        self._events = events
        self._is_cancelled = False
        self._loop = asyncio.get_running_loop()

    def __call__(self, done: int, total: int | None) -> None:
        """Take how far it is, in the download's thread. Raises DownloadCancelledError."""
        if self._is_cancelled:
            raise DownloadCancelledError("the download was cancelled")
        self._loop.call_soon_threadsafe(self._take, done, total)

    def cancel(self) -> None:
        """Let the download end at its next report."""
        self._is_cancelled = True

    def end(self, error: str) -> None:
        """Tell how it has ended, if there was a download: with an error, or "" for none."""
        if self.progress is not None:
            data = {"error": error, "cancelled": self._is_cancelled} if error else None
            self._tell("download_failed" if error else "download_finished", data)
        self.progress = None
        self.cancel()

    def _take(self, done: int, total: int | None) -> None:
        if not self._is_cancelled:
            self.progress = done, total
            self._tell("download_progress", {self._known_as: {"done": done, "total": total or 0}}, replaces=True)

    def _tell(self, kind: str, data: dict[str, Any] | None, *, replaces: bool = False) -> None:
        self._events.publish(ModelEvent(self._model, kind, data, replaces))
