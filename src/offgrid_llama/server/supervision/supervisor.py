"""Supervisor: loads and unloads models, gives requests their workers, and restarts workers that die.

The first request that needs a model loads it. When memory is short, the model that was used least recently is unloaded
once its requests have ended (``rooms``). Each model is loaded and unloaded by tasks of its own: one that waits holds up no
other, unless that needs its memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

from offgrid_llama.errors import StoreError
from offgrid_llama.server.api_error import ApiError, busy, stopping, without_folders
from offgrid_llama.server.downloads import DownloadCancelledError
from offgrid_llama.server.model_events import ModelEvents
from offgrid_llama.server.settings import ModelSettings, Settings
from offgrid_llama.worker.frames import Call

from .fetching import Fetching
from .idling import Idling
from .inspector import Inspector
from .launch import Launched, launcher
from .names import Names
from .presets import Preset, Presets
from .rooms import Rooms
from .served_model import ServedModel
from .specs import worker_spec
from .suspects import MAX_DEATHS, Suspects
from .worker_process import WorkerDiedError, WorkerProcess

__all__ = ["Supervisor"]

_logger = logging.getLogger("offgrid_llama.server")

MAX_WAIT_FOR_RESTART_SECONDS = 5.0
"""Requests wait for a restart that is this near. Before a later one they get an error with Retry-After."""
STATS_TIMEOUT_SECONDS = 0.5
"""Time for a worker to send its numbers."""


class Supervisor:
    """The models of a server, and their workers.

    Args:
        settings: of the server.
        launch: starts a worker's process.
        events: are told what happens to the models; None is new ones.

    Attributes:
        settings: as given.
        models: by name.
        names: the names that clients use for them and their presets.
        presets: of the models.
        inspector: tells what their files say.
        events: see above.
        n_restarts: workers that have died.
        closed: whether the server is stopping.
    """

    def __init__(
        self,
        settings: Settings,
        launch: Callable[[Mapping[str, Any]], Launched] = launcher.launch,
        events: ModelEvents | None = None,
    ) -> None:
        self.models: dict[str, ServedModel] = {}
        self.n_restarts = 0
        self.closed = False
        self.settings = settings
        self._launch = launch
        self.events = events or ModelEvents()
        self.inspector = Inspector()
        self.names = Names()
        for model in settings.models:
            self.add(model)
        self.presets = Presets(self.names)
        for preset in settings.presets:
            served = self.find(preset.model)
            self.presets.add(Preset(preset, served.settings))
            self.names.add(preset.name, served)
        self._idling = Idling(settings.idle_seconds, self._leave)
        self._rooms = Rooms(settings.memory_budget or 3 * _memory_bytes() // 4, self.models.values(), self._leave)
        self._n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._suspects = Suspects()
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self) -> None:
        """Load the models that are preloaded."""
        for model in self.models.values():
            if model.settings.preload:
                self._spawn(self._load_until_ready(model))

    async def close(self) -> None:
        """End all workers."""
        self.closed = True
        self._idling.close()
        for task in list(self._tasks):
            task.cancel()
        workers = [model.worker for model in self.models.values() if model.worker is not None]
        await asyncio.gather(*(worker.stop() for worker in workers), return_exceptions=True)

    def add(self, settings: ModelSettings) -> ServedModel:
        """Offer a further model, and return it."""
        model = self.models[settings.name] = ServedModel(settings)
        for name in (model.name, *settings.aliases):
            self.names.add(name, model)
        return model

    async def remove(self, model: ServedModel) -> None:
        """Offer a model no longer, and unload it once its requests have ended."""
        del self.models[model.name]
        for name in (model.name, *model.settings.aliases):
            self.names.remove(name)
        await self.unload(model)

    def find(self, name: str) -> ServedModel:
        """Return the model with a name or an alias. Raises ApiError that tells all of them."""
        model = self.names.find(name)
        if model is None:
            known = ", ".join(self.names) or "the server has no model"
            raise ApiError(
                404, f"the model {name!r:.140} does not exist here ({known})", code="model_not_found", param="model"
            )
        return model

    def find_to_answer(self, name: str | None) -> ServedModel:
        """Return the model that answers a request: the first one, if it names none, or with ``any_model`` an unknown one.

        Raises as ``find`` does.
        """
        first = next(iter(self.models.values()), None)
        if first is not None and (name is None or (self.settings.any_model and name not in self.names)):
            return first
        return self.find(name or "")

    @property
    def ready(self) -> bool:
        """Whether all preloaded models are ready."""
        return all(model.ready for model in self.models.values() if model.settings.preload)

    # Requests -----------------------------------------------------------------------------------------------------------

    async def ask(
        self, model: ServedModel, make: Callable[[int], Any], fingerprint: bytes, keep_alive: float | None = None
    ) -> AsyncIterator[Any]:
        """Send a request to a model's worker, and yield the frames that come back.

        When the worker dies before the first frame, the request is retried once. A request that was with a worker at two
        deaths is refused. Leaving the iteration cancels the request.

        Args:
            model: from ``find``.
            make: returns the request as a frame, given its id.
            fingerprint: of the request.
            keep_alive: see ``use``.
        """
        for attempt in range(MAX_DEATHS):
            self._suspects.refuse(fingerprint)
            async with self.use(model, keep_alive) as worker:
                exchange = worker.ask(make)
                try:
                    async for frame in exchange.frames():
                        yield frame
                    self._suspects.clear(fingerprint)
                    return
                except WorkerDiedError:
                    if self.closed:
                        raise stopping() from None  # its time to end was over
                    self._suspects.count_death(fingerprint)
                    if exchange.begun or attempt == MAX_DEATHS - 1:
                        raise
                finally:
                    worker.cancel(exchange)

    @asynccontextmanager
    async def use(self, model: ServedModel, keep_alive: float | None = None) -> AsyncIterator[WorkerProcess]:
        """Give the worker of a model, once it is loaded, and keep it loaded until the block ends.

        From then on it stays loaded for ``keep_alive`` seconds while nothing uses it; None leaves that as it is.
        """
        worker = model.admit() if model.ready else await self._wait_for(model)
        if keep_alive is not None:
            model.keep_seconds = keep_alive
        self._share_cores()
        try:
            yield worker
        finally:
            self._leave_worker(model)
            self._share_cores()

    def _leave_worker(self, model: ServedModel) -> None:
        """Count a request as done with a model's worker, which may be idle from now on."""
        model.leave()
        self._idling.begin(model)

    def _share_cores(self) -> None:
        """Give each worker with requests its share of the cores. With more, their threads wait for each other."""
        busy_workers = [model.worker for model in self.models.values() if model.n_users and model.worker is not None]
        for worker in busy_workers:
            worker.set_n_threads(max(1, self._n_cores // len(busy_workers)))

    async def _wait_for(self, model: ServedModel) -> WorkerProcess:
        """Return the worker of a model once it is loaded, with its user counted."""
        waiter = model.enqueue()
        try:
            self.begin_load(model)
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._leave_worker(model)  # it was admitted just now
            raise
        finally:
            model.dequeue(waiter)

    async def refresh_stats(self) -> None:
        """Ask all workers for their numbers. A worker that does not answer at once keeps those of its last heartbeat."""

        async def ask(worker: WorkerProcess) -> None:
            exchange = worker.ask(lambda id_: Call(id_, "stats", {}))
            try:
                worker.stats = (await asyncio.wait_for(exchange.result(), STATS_TIMEOUT_SECONDS)).value
            except (ApiError, asyncio.TimeoutError):
                worker.cancel(exchange)

        await asyncio.gather(*(ask(model.worker) for model in self.models.values() if model.ready and model.worker))

    # Loading and unloading ----------------------------------------------------------------------------------------------

    def seconds_left(self, model: ServedModel) -> float:
        """Return in how many seconds a loaded model will be unloaded, if no request comes; ``math.inf`` is never."""
        return self._idling.seconds_left(model)

    async def load(self, model: ServedModel, keep_alive: float | None = None) -> None:
        """Load a model, unless it is loaded. ``keep_alive`` is that of ``use``."""
        async with self.use(model, keep_alive):
            pass

    async def unload(self, model: ServedModel) -> None:
        """Unload a model once its requests have ended, also where the caller does not wait for that."""
        if model.fetching is not None:
            model.fetching.cancel()
        if model.loading is not None and model.leaving is None:
            await asyncio.wait({model.loading})
        if model.worker is not None:
            await asyncio.shield(self._leave(model))

    def begin_unload(self, model: ServedModel) -> None:
        """Start to unload a model, as ``unload`` does."""
        self._spawn(self.unload(model))

    def begin_load(self, model: ServedModel) -> None:
        """Start the task that loads a model, unless it runs. Raises ApiError when the model must rest longer."""
        if self.closed:
            raise stopping()
        if model.loading is not None:
            return
        rest = model.backoff.seconds_left()
        if rest > MAX_WAIT_FOR_RESTART_SECONDS:
            reason = f": {model.error.message}" if model.error is not None else ""
            raise busy(503, f"{model.name} failed{reason}; it is loaded again later", "model_failed", rest)
        model.loading = self._spawn(self._load_after(model, rest))
        self._tell(model)

    async def _load_after(self, model: ServedModel, rest: float) -> None:
        """Load a model after a rest, when it is its turn, and tell the requests that wait for it how that went."""
        try:
            await asyncio.sleep(rest)
            if model.leaving is not None:
                await asyncio.wait({model.leaving})
            spec = await self._spec(model)  # which may download the file
            async with self._rooms.claimed(model):
                await self._load(model, spec)
        except ApiError as error:
            told = without_folders(error)
            model.error, model.loading = told, None
            model.backoff.count_death()
            _logger.error("%s", error.message)
            self._tell(model)
            model.fail_waiting(told)
        except BaseException as error:
            model.loading = None
            self._tell(model)
            model.fail_waiting(ApiError(500, f"{model.name} cannot be loaded: {error!r}", code="internal_error"))
            raise

    async def _load(self, model: ServedModel, spec: Mapping[str, Any]) -> None:
        worker = WorkerProcess(model.name, spec, self._on_death, self._launch, lambda: self._tell(model))
        model.worker = worker
        begin = monotonic()
        _logger.info("loading %s", model.name)
        try:
            await worker.start(self.settings.load_seconds, self.settings.worker_seconds)
        except BaseException:
            model.worker = None
            raise
        model.error, model.loading = None, None
        model.n_bytes = worker.rss_bytes or None
        model.used_at = monotonic()
        self._tell(model)
        _logger.info("%s is ready after %.2f s (pid %s)", model.name, monotonic() - begin, worker.pid)
        model.admit_waiting()
        self._idling.begin(model)

    def _leave(self, model: ServedModel) -> asyncio.Task[None]:
        """Return the task that unloads a model once its requests have ended; from now on none begins."""
        if model.leaving is None:
            model.leaving = self._spawn(self._unload(model))
            self._tell(model)
        return model.leaving

    async def _unload(self, model: ServedModel) -> None:
        worker = model.worker
        try:
            await model.idle.wait()
            if worker is not None and model.worker is worker:
                await worker.stop()
                model.worker = model.keep_seconds = None
                _logger.info("%s was unloaded", model.name)
        finally:
            model.leaving = None
            self._tell(model)
            self._rooms.changed()

    async def _spec(self, model: ServedModel) -> dict[str, Any]:
        """Return the arguments of the worker's Service. Raises ApiError for a file that does not exist."""
        settings, told = model.settings, "the load was cancelled"
        fetching = model.fetching = Fetching(model.name, settings.model or settings.name, self.events)
        try:
            spec = await asyncio.to_thread(worker_spec, settings, self.settings.max_queue, fetching)
            told = ""
        except (StoreError, OSError, DownloadCancelledError) as failed:
            error = ApiError(503, f"{model.name} cannot be loaded: {failed}", code="model_not_loaded")
            told = without_folders(error).message
            raise error from failed
        finally:
            model.fetching = None
            fetching.end(told)
        return spec

    # Restarting ---------------------------------------------------------------------------------------------------------

    def _on_death(self, worker: WorkerProcess) -> None:
        """Restart a worker that has died. One that dies while it loads is an error of its load."""
        model = next((each for each in self.models.values() if each.worker is worker), None)
        if model is None:
            return
        model.worker = None
        self.n_restarts += 1
        self._rooms.changed()
        if model.loading is None:
            model.backoff.count_death()
            self._tell(model)
            if not self.closed and model.leaving is None:
                self._spawn(self._load_until_ready(model))

    async def _load_until_ready(self, model: ServedModel) -> None:
        """Load a model, and retry after each failure when the model has rested."""
        while not self.closed and not model.ready:
            await asyncio.sleep(max(0.0, model.backoff.seconds_left() - MAX_WAIT_FOR_RESTART_SECONDS))
            with suppress(ApiError):
                await self.load(model)

    def _tell(self, model: ServedModel) -> None:
        """Tell subscribers the status of a model."""
        self.events.status(model.name, model.told)

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        """Return a task that runs until it ends or the supervisor is closed."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 2**63
