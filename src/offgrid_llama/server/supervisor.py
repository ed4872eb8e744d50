"""Supervisor: which models are loaded, who waits for one, and what happens when a worker dies.

A model is loaded by the first request that needs it. Where memory is short the one used least recently leaves, once the
requests that are with it have ended; those that come for it meanwhile wait for their turn behind those who wait already.
So a switch loses nobody, and nobody starves.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

import msgspec

from .. import store
from ..errors import StoreError
from ..worker.frames import Answered, Call, Result
from .errors import ApiError, busy
from .settings import ModelSettings, Settings
from .specs import worker_spec
from .worker_process import Request, WorkerDiedError, WorkerProcess

__all__ = ["Entry", "Supervisor", "fingerprint"]

_logger = logging.getLogger("offgrid_llama.server")

QUIET = 60.0
"""Seconds after which a death is forgotten."""
LONGEST_BACKOFF = 60.0
PATIENCE = 5.0
"""Seconds of a pause after deaths that requests wait for; they are told of a longer one."""
MOST_SUSPECTS = 1024
STATS_SECONDS = 0.5
"""Most time for a worker to tell its numbers."""
STRIKES = 2
"""A request that was with a worker at so many deaths is refused from then on."""
OVERHEAD = 400 * 2**20
"""What a worker takes besides its file, as long as nobody knows better: KV cache, buffers, Python."""


class Entry:
    """A model that the server has.

    Attributes:
        settings: what was said of it.
        worker: its process, if it has one.
        leaving: whether that is to end as soon as nobody uses it.
        n_users: requests that are with it.
        waiters: who waits for it, in order.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self.settings = settings
        self.worker: WorkerProcess | None = None
        self.leaving = False
        self.n_users = 0
        self.waiters: list[asyncio.Future[WorkerProcess]] = []
        self.used_at = monotonic()
        self.n_deaths = 0  # lately
        self.died_at = 0.0
        self.error: ApiError | None = None  # of the last load
        self.n_bytes: int | None = None  # that it has taken when it was loaded
        self.loading: asyncio.Task[None] | None = None
        self.idle = asyncio.Event()
        self.idle.set()

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.settings.name

    @property
    def ready(self) -> bool:
        """Whether it answers at once."""
        return self.worker is not None and self.loading is None and not self.leaving

    @property
    def status(self) -> str:
        """One of "ready", "loading", "unloading", "failed" and "unloaded"."""
        if self.loading is not None:
            return "loading"
        if self.worker is not None:
            return "unloading" if self.leaving else "ready"
        return "failed" if self.error is not None else "unloaded"

    @property
    def n_waiting(self) -> int:
        """How many requests wait for it."""
        return len(self.waiters)

    def admit(self) -> WorkerProcess:
        """Count a user, and return the worker."""
        if self.worker is None:
            raise WorkerDiedError(self.name)
        self.n_users += 1
        self.idle.clear()
        return self.worker

    def leave(self) -> None:
        """Count one user less."""
        self.n_users -= 1
        self.used_at = monotonic()
        if not self.n_users:
            self.idle.set()

    def settle(self, error: ApiError | None = None) -> None:
        """Admit all who wait, before anybody can have the model leave again; or tell them what has failed."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(self.admit())
            else:
                waiter.set_exception(error)

    def backoff(self) -> float:
        """Return how many seconds it is to be left alone after its deaths."""
        if monotonic() - self.died_at > QUIET:
            self.n_deaths = 0
        pause = 0.0 if self.n_deaths <= 1 else min(2.0 ** (self.n_deaths - 2), LONGEST_BACKOFF)
        return max(0.0, self.died_at + pause - monotonic())


class Supervisor:
    """The models, by name.

    Args:
        settings: of the server.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.entries = {model.name: Entry(model) for model in settings.models}
        self._by_name = {
            name: self.entries[model.name] for model in settings.models for name in (model.name, *model.aliases)
        }
        self._budget = settings.memory_budget or 3 * _memory() // 4
        self._n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._switch = asyncio.Lock()
        self._suspects: OrderedDict[bytes, int] = OrderedDict()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.n_restarts = 0
        self.closed = False

    def start(self) -> None:
        """Load what is to be there from the beginning, and look for models that nobody uses."""
        for entry in self.entries.values():
            if entry.settings.preload:
                self._spawn(self._preload(entry))
        if self._settings.idle_seconds:
            self._spawn(self._unload_idle())

    def find(self, name: str | None) -> Entry:
        """Return the model that a request names, or the first one. Raises ApiError for one that there is not."""
        if name is None and self.entries:
            return next(iter(self.entries.values()))
        entry = self._by_name.get(name or "")
        if entry is None:
            known = ", ".join(self.entries) or "there is none"
            raise ApiError(
                404, f"the model {name!r:.140} does not exist here ({known})", code="model_not_found", param="model"
            )
        return entry

    @property
    def ready(self) -> bool:
        """Whether all models that are to be there are."""
        return all(entry.ready for entry in self.entries.values() if entry.settings.preload)

    # Using one ----------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def use(self, entry: Entry) -> AsyncIterator[WorkerProcess]:
        """Give the worker of a model, once it is loaded, and keep it there until the block ends."""
        worker = entry.admit() if entry.ready else await self._wait_for(entry)
        self._share()
        try:
            yield worker
        finally:
            entry.leave()
            self._share()

    def _share(self) -> None:
        """Give each worker that has something to do its share of the cores: with more they wait for each other's threads."""
        busy = [entry.worker for entry in self.entries.values() if entry.n_users and entry.worker is not None]
        for worker in busy:
            worker.set_n_threads(max(1, self._n_cores // len(busy)))

    async def _wait_for(self, entry: Entry) -> WorkerProcess:
        """Return the worker of a model once it is loaded, with its user counted."""
        waiter: asyncio.Future[WorkerProcess] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        try:
            self._load(entry)
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                entry.leave()  # it was admitted just now
            raise
        finally:
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)

    async def ask(self, entry: Entry, make: Callable[[int], Any], print_: bytes) -> AsyncIterator[Any]:
        """Send a request to a model, and give the frames that come of it.

        Where its worker dies before anything has come it is asked once more. ``print_`` is the request's fingerprint: one
        that was there at two deaths is refused. What is left when the iteration ends is cancelled.
        """
        for attempt in range(STRIKES):
            if self._suspects.get(print_, 0) >= STRIKES:
                raise ApiError(
                    500, "this request was under way at two deaths of its worker; it is not tried again",
                    code="request_quarantined",
                )  # fmt: skip
            async with self.use(entry) as worker:
                request = worker.ask(make)
                try:
                    async for frame in _frames(request):
                        yield frame
                    self._suspects.pop(print_, None)
                    return
                except WorkerDiedError:
                    self._strike(print_)
                    if request.begun or attempt == STRIKES - 1 or self.closed:
                        raise
                finally:
                    worker.forget(request)

    def _strike(self, print_: bytes) -> None:
        self._suspects[print_] = self._suspects.pop(print_, 0) + 1
        while len(self._suspects) > MOST_SUSPECTS:
            self._suspects.popitem(last=False)

    async def refresh(self) -> None:
        """Ask all workers for their numbers; what does not answer at once keeps those of its last heartbeat."""

        async def ask(worker: WorkerProcess) -> None:
            request = worker.ask(lambda id_: Call(id_, "stats", {}))
            try:
                worker.stats = (await asyncio.wait_for(request.result(), STATS_SECONDS)).value
            except (ApiError, asyncio.TimeoutError):
                worker.forget(request)

        await asyncio.gather(*(ask(entry.worker) for entry in self.entries.values() if entry.ready and entry.worker))

    # Loading and unloading ----------------------------------------------------------------------------------------------

    def _load(self, entry: Entry) -> None:
        """See to it that a model gets loaded, and those who wait for it are told. Raises ApiError where it will not be."""
        if self.closed:
            raise busy(503, "the server is stopping", "stopping", 5)
        if entry.loading is None:
            pause = entry.backoff()
            if pause > PATIENCE:
                reason = f": {entry.error.message}" if entry.error is not None else ""
                raise busy(503, f"{entry.name} has failed{reason}; it is tried again later", "model_failed", pause)
            entry.loading = asyncio.create_task(self._switch_to(entry, pause))
            self._keep(entry.loading)

    async def _switch_to(self, entry: Entry, pause: float) -> None:
        """Load a model, after a pause, when it is its turn; tell all who wait for it how that went."""
        error: ApiError | None = None
        try:
            await asyncio.sleep(pause)
            async with self._switch:
                await self._leave(entry)  # it may be on its way out itself
                await self._make_room(entry)
                worker = WorkerProcess(entry.name, await self._spec(entry), self._died)
                entry.worker = worker
                begin = monotonic()
                _logger.info("loading %s", entry.name)
                try:
                    await worker.start(self._settings.load_seconds, self._settings.worker_seconds)
                except BaseException:
                    entry.worker = None
                    raise
                entry.error, entry.loading = None, None
                entry.n_bytes = worker.rss_bytes or None
                entry.used_at = monotonic()
                _logger.info("%s is ready after %.2f s (pid %s)", entry.name, monotonic() - begin, worker.pid)
                entry.settle()
        except ApiError as failed:
            error = entry.error = failed
            self._count_death(entry)
            _logger.error("%s", failed.message)
        except BaseException as unexpected:
            error = ApiError(500, f"{entry.name} cannot be loaded: {unexpected!r}", code="internal_error")
            raise
        finally:
            entry.loading = None
            if error is not None:
                entry.settle(error)

    async def _make_room(self, entry: Entry) -> None:
        """Let models leave until there is room for one."""
        while True:
            loaded = [each for each in self.entries.values() if each.worker is not None and each is not entry]
            taken = sum(max(each.worker.rss_bytes if each.worker else 0, each.n_bytes or 0) for each in loaded)
            if not loaded or taken + self._size(entry) <= self._budget:
                return
            some = [each for each in loaded if not each.settings.keep]
            if not some:
                raise busy(503, f"there is no memory for {entry.name} beside those that stay", "no_memory", 30)
            await self._leave(min(some, key=lambda each: (each.n_users > 0, each.used_at)))

    async def _leave(self, entry: Entry) -> None:
        """Unload a model once nobody uses it."""
        worker = entry.worker
        if worker is None:
            return
        entry.leaving = True
        try:
            await entry.idle.wait()
            if entry.worker is worker:
                entry.worker = None
                await worker.stop()
                _logger.info("%s was unloaded", entry.name)
        finally:
            entry.leaving = False

    async def load(self, entry: Entry) -> None:
        """Load a model, if it is not."""
        async with self.use(entry):
            pass

    async def unload(self, entry: Entry) -> None:
        """Unload a model, once nobody uses it, if it is loaded."""
        async with self._switch:
            await self._leave(entry)

    async def _spec(self, entry: Entry) -> dict[str, Any]:
        """Return the arguments of the worker's Service. Raises ApiError where there is no such file."""
        try:
            return await asyncio.to_thread(worker_spec, entry.settings, self._settings.max_queue)
        except (StoreError, OSError) as error:
            raise ApiError(503, f"{entry.name} cannot be loaded: {error}", code="model_not_loaded") from error

    def _size(self, entry: Entry) -> int:
        if entry.n_bytes is not None:
            return entry.n_bytes
        with suppress(StoreError, OSError):
            return store.resolve(entry.settings.model or entry.name, download=False).stat().st_size + OVERHEAD
        return OVERHEAD

    # When a worker dies -------------------------------------------------------------------------------------------------

    def _died(self, worker: WorkerProcess) -> None:
        entry = next((each for each in self.entries.values() if each.worker is worker), None)
        if entry is None:
            return
        entry.worker = None
        self.n_restarts += 1
        if entry.loading is None:
            self._count_death(entry)
            if not self.closed:
                self._spawn(self._preload(entry))

    def _count_death(self, entry: Entry) -> None:
        entry.backoff()  # which forgets those of long ago
        entry.n_deaths += 1
        entry.died_at = monotonic()

    async def _preload(self, entry: Entry) -> None:
        """Load a model, and try again for as long as it takes."""
        while not self.closed and not entry.ready:
            await asyncio.sleep(max(0.0, entry.backoff() - PATIENCE))
            with suppress(ApiError):
                await self.load(entry)

    async def _unload_idle(self) -> None:
        limit = self._settings.idle_seconds
        while True:
            await asyncio.sleep(min(limit / 4, 30))
            for entry in self.entries.values():
                unused = not entry.n_users and not entry.n_waiting and monotonic() - entry.used_at > limit
                if entry.ready and unused and not entry.settings.keep:
                    await self.unload(entry)

    def _spawn(self, work: Any) -> None:
        self._keep(asyncio.create_task(work))

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """End all workers."""
        self.closed = True
        for task in list(self._tasks):
            task.cancel()
        workers = [entry.worker for entry in self.entries.values() if entry.worker is not None]
        await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True)


async def _frames(request: Request) -> AsyncIterator[Any]:
    while True:
        for frame in await request.next():
            yield frame
            if isinstance(frame, (Answered, Result)):
                return


def fingerprint(model: str, request: Any) -> bytes:
    """Return what tells a request from others. Raises ApiError for numbers that no frame has room for."""
    try:
        return hashlib.sha256(model.encode() + b"\0" + msgspec.msgpack.encode(request)).digest()
    except OverflowError as error:
        raise ApiError(400, "a whole number of the body has more than 64 bits", code="invalid_value") from error


def _memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 2**63
