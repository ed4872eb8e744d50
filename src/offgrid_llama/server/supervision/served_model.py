"""ServedModel: one model of the server, its worker, and the requests that use it or wait for it."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.settings import ModelSettings

from .backoff import Backoff
from .fetching import Fetching
from .worker_process import WorkerDiedError, WorkerProcess

__all__ = ["ServedModel"]

_LLAMA_SERVER_STATUS = {"ready": "loaded", "failed": "unloaded"}
"""llama-server's names of some statuses; the others have the same name there, or are not there."""


class ServedModel:
    """A model that the server offers, loaded or not.

    Attributes:
        settings: of the model.
        worker: its process, or None.
        loading: the task that loads it, or None.
        fetching: the download of its file, with which a load begins that does not find it, or None.
        leaving: the task that ends the worker as soon as no request uses it, or None.
        idle: set while no request uses the worker.
        n_users: requests that use the worker.
        used_at: when the last of them ended, as ``monotonic()``.
        keep_seconds: for which it stays loaded while no request uses it, as a request has asked; None is the server's own.
        error: of the last load, or None.
        n_bytes: memory that the worker took when the model was loaded, or None.
        props: what its worker has told of its properties, once it was asked; None before.
        backoff: how long the model rests after deaths of its worker.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.worker: WorkerProcess | None = None
        self.loading: asyncio.Task[None] | None = None
        self.fetching: Fetching | None = None
        self.leaving: asyncio.Task[None] | None = None
        self.idle = asyncio.Event()
        self.idle.set()
        self.n_users = 0
        self.used_at = monotonic()
        self.keep_seconds: float | None = None
        self.error: ApiError | None = None
        self.n_bytes: int | None = None
        self.props: dict[str, Any] | None = None
        self.backoff = Backoff()
        self._waiters: list[asyncio.Future[WorkerProcess]] = []

    @property
    def name(self) -> str:
        """The name that clients use."""
        return self.settings.name

    @property
    def ready(self) -> bool:
        """Whether a request gets the worker at once."""
        return self.worker is not None and self.loading is None and self.leaving is None

    @property
    def status(self) -> str:
        """One of "ready", "loading", "unloading", "failed" and "unloaded"."""
        if self.loading is not None:
            return "loading"
        if self.worker is not None:
            return "ready" if self.leaving is None else "unloading"
        return "failed" if self.error is not None else "unloaded"

    @property
    def told(self) -> dict[str, Any]:
        """The status in llama-server's words, with what belongs to it: progress, the failure, facts about the model."""
        status = self.status
        told: dict[str, Any] = {"status": _LLAMA_SERVER_STATUS.get(status, status)}
        if status == "failed" and self.error is not None:
            told |= {"failed": True, "error": self.error.message}
        if status == "loading" and self.worker is not None:
            value = round(self.worker.fraction, 3)
            told["progress"] = {"stages": ["text_model"], "current": "text_model", "value": value}
        if status == "ready" and self.worker is not None:
            told["info"] = {"meta": self.worker.info}
        return told

    @property
    def n_waiting(self) -> int:
        """Requests that wait for the worker."""
        return len(self._waiters)

    def admit(self) -> WorkerProcess:
        """Count a request as a user of the worker, and return the worker."""
        if self.worker is None:
            raise WorkerDiedError(self.name)
        self.n_users += 1
        self.idle.clear()
        return self.worker

    def leave(self) -> None:
        """Count a request as done with the worker."""
        self.n_users -= 1
        self.used_at = monotonic()
        if not self.n_users:
            self.idle.set()

    def enqueue(self) -> asyncio.Future[WorkerProcess]:
        """Return a place in the queue: a future that gives the worker once it is ready, with its user counted."""
        waiter: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter

    def dequeue(self, waiter: asyncio.Future[WorkerProcess]) -> None:
        """Give up a place in the queue."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def admit_waiting(self) -> None:
        """Admit every request that waits, before the model can be unloaded again."""
        for waiter in self._take_waiters():
            waiter.set_result(self.admit())

    def fail_waiting(self, error: ApiError) -> None:
        """Tell every request that waits why the model is not loaded."""
        for waiter in self._take_waiters():
            waiter.set_exception(error)

    def _take_waiters(self) -> list[asyncio.Future[WorkerProcess]]:
        waiters, self._waiters = self._waiters, []
        return [waiter for waiter in waiters if not waiter.done()]
