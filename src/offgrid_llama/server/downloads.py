"""Downloads: models on their way into the store, each in a thread, told by events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from offgrid_llama import store
from offgrid_llama.errors import StoreError

from .admission import Admission
from .api_error import ApiError, busy, without_folders
from .model_events import ModelEvent, ModelEvents

__all__ = ["Download", "DownloadCancelledError", "Downloads"]

_logger = logging.getLogger("offgrid_llama.server")

MAX_DOWNLOADS = 4
"""Downloads at the same time, at most."""
PROGRESS_SECONDS = 0.2
"""Time between two events that tell how far a download is."""
RETRY_SECONDS = 30


class DownloadCancelledError(Exception):
    """A download was cancelled, or has lost its last client, or the server stops."""


class Download:
    """A model on its way.

    Args:
        known_as: the store's name.

    Attributes:
        names: under which clients have asked for it, and under which it will be offered.
        done: bytes so far.
        total: bytes in all; None while that is not known.
        is_cancelled: whether it ends at its next report.
        is_over: whether it has ended.
        error: why it has failed, or None.
    """

    def __init__(self, known_as: str) -> None:
        self.known_as = known_as
        self.names: list[str] = []
        self.done = 0
        self.total: int | None = None
        self.is_cancelled = False
        self.is_over = False
        self.error: Exception | None = None
        self.n_holders = 0
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def progress(self) -> dict[str, Any]:
        """How far it is, in llama-server's shape; a total of 0 is not known."""
        return {self.known_as: {"done": self.done, "total": self.total or 0}}


class Downloads:
    """The downloads under way. Clients that want the same model share one.

    Args:
        events: are told of each.
        admission: tells when the server stops.
        offer: called with a name and the store's name of each model that has come.
    """

    def __init__(self, events: ModelEvents, admission: Admission, offer: Callable[[str, str], None]) -> None:
        self._events = events
        self._admission = admission
        self._offer = offer
        self._running: dict[str, Download] = {}
        self._threads = ThreadPoolExecutor(MAX_DOWNLOADS, "offgrid_llama downloads")

    def __iter__(self) -> Iterator[Download]:
        """Yield the downloads under way."""
        return iter(self._running.values())

    def find(self, name: str) -> Download | None:
        """Return the download that was asked for under a name, or None."""
        return next((each for each in self._running.values() if name in each.names and not each.is_cancelled), None)

    def begin(self, name: str, known_as: str) -> Download:
        """Return the download of a model, which begins unless it runs. It goes on until it ends or is cancelled.

        Raises ApiError where too many run.
        """
        download = self._running.get(known_as)
        if download is not None and download.is_cancelled:
            raise busy(503, f"an earlier download of {name:.140} is about to end", "download_cancelled", 1)
        if download is None:
            if len(self._running) >= MAX_DOWNLOADS:
                raise busy(503, "the server has too many downloads", "too_many_downloads", RETRY_SECONDS)
            download = self._running[known_as] = Download(known_as)
            download.task = asyncio.create_task(self._run(download))
        if name not in download.names:
            download.names.append(name)
        download.n_holders += 1
        return download

    @contextmanager
    def held(self, name: str, known_as: str) -> Iterator[Download]:
        """Give the download of a model, which is cancelled at the end of the block unless others want it, too.

        Raises as ``begin`` does.
        """
        download = self.begin(name, known_as)
        try:
            yield download
        finally:
            download.n_holders -= 1
            if not download.n_holders:
                download.is_cancelled = True

    def cancel(self, name: str) -> bool:
        """Cancel the download that was asked for under a name; return whether there was one."""
        download = self.find(name)
        if download is None:
            return False
        download.is_cancelled = True
        return True

    async def close(self) -> None:
        """Cancel all of them."""
        tasks = [each.task for each in self._running.values() if each.task is not None]
        for each in self._running.values():
            each.is_cancelled = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, download: Download) -> None:
        loop = asyncio.get_running_loop()

        def progress(done: int, total: int | None) -> None:  # in the thread
            if download.is_cancelled or self._admission.stopping:
                raise DownloadCancelledError("it was cancelled")
            loop.call_soon_threadsafe(self._take_progress, download, done, total)

        try:
            await loop.run_in_executor(self._threads, partial(store.pull, download.known_as, progress=progress))
            self._tell_waiting_progress(download)
            for name in download.names:
                self._offer(name, download.known_as)
        except asyncio.CancelledError:
            download.error = DownloadCancelledError("it was cancelled")
            raise
        except (StoreError, OSError, DownloadCancelledError) as error:
            download.error = error
        except Exception as error:
            _logger.exception("the download of %.140s failed", download.known_as)
            download.error = error
        finally:
            download.is_over = True
            del self._running[download.known_as]
            self._tell_end(download)

    def _take_progress(self, download: Download, done: int, total: int | None) -> None:
        download.done, download.total = done, total
        if download.timer is None and not download.is_over:
            download.timer = asyncio.get_running_loop().call_later(PROGRESS_SECONDS, self._tell_progress, download)

    def _tell_progress(self, download: Download) -> None:
        download.timer = None
        self._tell(download, ModelEvent("", "download_progress", download.progress, replaces=True))

    def _tell_waiting_progress(self, download: Download) -> None:
        if download.timer is not None:
            download.timer.cancel()
            self._tell_progress(download)

    def _tell_end(self, download: Download) -> None:
        self._tell_waiting_progress(download)
        if download.error is None:
            self._tell(download, ModelEvent("", "download_finished"))
            return
        told = without_folders(ApiError(500, str(download.error))).message
        self._tell(download, ModelEvent("", "download_failed", {"error": told, "cancelled": download.is_cancelled}))

    def _tell(self, download: Download, event: ModelEvent) -> None:
        for name in download.names:
            self._events.publish(ModelEvent(name, event.kind, event.data, event.replaces))
