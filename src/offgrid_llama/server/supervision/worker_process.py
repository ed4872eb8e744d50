"""WorkerProcess: one model's process, from its start to its end, and the requests that it computes."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Callable, Mapping
from itertools import count
from time import monotonic
from typing import Any

from offgrid_llama.server.api_error import ApiError, busy
from offgrid_llama.worker.channel import Channel
from offgrid_llama.worker.frames import (
    Answered,
    Cancel,
    Chunk,
    Failed,
    FromWorker,
    Heartbeat,
    Loaded,
    Loading,
    Result,
    Stop,
    Threads,
)

from .exchange import Exchange
from .launch import Launched, launcher

__all__ = ["WorkerDiedError", "WorkerProcess"]

_logger = logging.getLogger("offgrid_llama.server")

STEP_TIMEOUT_FACTOR = 4.0
"""A worker with something to compute must make a step within this many times ``worker_seconds``."""
HTTP_BUSY, RETRY_SECONDS = 503, 1
"""The status of what passes, and the seconds after which a client may try again."""
STOP_SECONDS = 5.0
"""Time for a process to end after it was asked to; then it is killed."""
EXIT_SECONDS = 1.0
"""Time for a process to end after its socket closed. The socket closes a moment before the process ends."""
POLL_SECONDS = 0.01
"""Time between two looks at whether a process has ended."""


class WorkerDiedError(ApiError):
    """The worker ended while it had a request."""

    def __init__(self, model: str) -> None:
        super().__init__(
            503, f"the worker of {model} ended unexpectedly; it restarts", code="worker_died",
            headers={"Retry-After": "1"},
        )  # fmt: skip


class WorkerProcess:
    """A process that owns a model.

    Args:
        name: of the model, for people.
        spec: the arguments of the worker's Service.
        on_death: called when the process ends and was not asked to.
        launch: starts the process.
        on_progress: called when more of the model is loaded.

    Attributes:
        info: facts about the model, once it is loaded.
        fraction: how much of the model is loaded, from 0 to 1.
        rss_bytes: memory of the process, from its last heartbeat.
        stats: numbers of its engine, from its last heartbeat.
        n_threads: CPU threads that it was told to use; None before that.
    """

    def __init__(
        self,
        name: str,
        spec: Mapping[str, Any],
        on_death: Callable[[WorkerProcess], object],
        launch: Callable[[Mapping[str, Any]], Launched] = launcher.launch,
        on_progress: Callable[[], object] = lambda: None,
    ) -> None:
        self.name = name
        self.info: dict[str, Any] = {}
        self.fraction = 0.0
        self.rss_bytes = 0
        self.stats: dict[str, float] = {}
        self.n_threads: int | None = None
        self._spec = spec
        self._on_death = on_death
        self._launch = launch
        self._on_progress = on_progress
        self._ids = count(1)
        self._exchanges: dict[int, Exchange] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._alive_at = self._stepped_at = monotonic()

    @property
    def pid(self) -> int | None:
        """The id of the process, or None when there is none."""
        return None if self._process is None else self._process.pid

    # Start and end ------------------------------------------------------------------------------------------------------

    async def start(self, load_seconds: float, worker_seconds: float) -> None:
        """Start the process, and wait until its model is loaded.

        Args:
            load_seconds: time for that; raises ApiError when it is over, or when the model cannot be loaded.
            worker_seconds: time after which a process that does not respond is killed, from then on.
        """
        launching = asyncio.ensure_future(asyncio.to_thread(self._launch, self._spec))
        try:
            self._process, ours = await asyncio.shield(launching)
        except asyncio.CancelledError:
            launching.add_done_callback(_end_unused)
            raise
        except OSError as error:
            raise ApiError(503, f"{self.name} cannot be started: {error}", code="worker_not_started") from error
        reader, writer = await asyncio.open_connection(sock=ours)
        self._channel = Channel(reader, writer, FromWorker)
        self._alive_at = monotonic()
        self._tasks = [
            asyncio.create_task(self._listen(self._channel)),
            asyncio.create_task(self._kill_when_stuck(worker_seconds)),
        ]
        try:
            await asyncio.wait_for(asyncio.shield(self._loaded), load_seconds)
        except asyncio.TimeoutError:
            await self.stop()
            raise busy(503, f"{self.name} was not loaded within {load_seconds:g} s", "load_timeout", 30) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End the process: ask it to, then kill it. Its requests fail."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        if self._channel is not None:
            self._channel.send(Stop())
            self._channel.flush()
        await _ended(process, STOP_SECONDS)
        self._end()

    def kill(self) -> None:
        """Kill the process because it does not respond. This counts as a death."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def _kill_when_stuck(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            now = monotonic()
            if now - self._alive_at > seconds or now - self._stepped_at > STEP_TIMEOUT_FACTOR * seconds:
                _logger.error("the worker of %s (pid %s) does not respond and is killed", self.name, self.pid)
                self.kill()

    def _end(self) -> None:
        """Note that the process has ended: fail its requests, and report a death unless it was asked to end."""
        process, self._process = self._process, None
        if process is None:
            return
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()
        if self._channel is not None:
            self._channel.close()
        self._settle(WorkerDiedError(self.name))
        exchanges, self._exchanges = self._exchanges, {}
        for exchange in exchanges.values():
            exchange.fail(WorkerDiedError(self.name))
        if not self._stopping:
            self._on_death(self)

    # Requests -----------------------------------------------------------------------------------------------------------

    def ask(self, make: Callable[[int], Any]) -> Exchange:
        """Send a request, which ``make`` returns as a frame with the given id."""
        exchange = Exchange(next(self._ids))
        if self._channel is None or self._stopping or self._process is None:
            exchange.fail(WorkerDiedError(self.name))
            return exchange
        self._exchanges[exchange.id] = exchange
        self._channel.send(make(exchange.id))
        return exchange

    def cancel(self, exchange: Exchange) -> None:
        """Cancel a request, unless it has ended."""
        if self._exchanges.pop(exchange.id, None) is not None and self._channel is not None:
            self._channel.send(Cancel(exchange.id))

    def set_n_threads(self, n: int) -> None:
        """Let the worker compute with up to ``n`` threads."""
        if n != self.n_threads and self._channel is not None:
            self.n_threads = n
            self._channel.send(Threads(n))

    # Frames of the worker -----------------------------------------------------------------------------------------------

    async def _listen(self, channel: Channel) -> None:
        while (received := await channel.receive()) is not None:
            self._alive_at = monotonic()
            for frame in received:
                self._take(frame)
        process = self._process
        if process is not None and not self._stopping:
            await _ended(process, EXIT_SECONDS)
            _logger.error("the worker of %s (pid %d) ended with %s", self.name, process.pid, process.returncode)
        if not self._stopping:
            self._end()

    def _take(self, frame: Any) -> None:
        if isinstance(frame, Chunk):
            if (exchange := self._exchanges.get(frame.id)) is not None:
                exchange.put(frame)
        elif isinstance(frame, (Answered, Result)):
            if (exchange := self._exchanges.pop(frame.id, None)) is not None:
                exchange.put(frame)
        elif isinstance(frame, Heartbeat):
            self._take_heartbeat(frame)
        elif isinstance(frame, Failed):
            self._take_failure(frame)
        elif isinstance(frame, Loading):
            self.fraction = frame.fraction
            self._on_progress()
        elif isinstance(frame, Loaded):
            self.info, self.fraction = frame.info, 1.0
            self._settle(None)

    def _take_heartbeat(self, frame: Heartbeat) -> None:
        if frame.stats.get("n_steps") != self.stats.get("n_steps") or not frame.stats.get("n_running"):
            self._stepped_at = monotonic()
        self.rss_bytes, self.stats = frame.rss_bytes, frame.stats

    def _take_failure(self, frame: Failed) -> None:
        if frame.id == 0:  # the load failed: the process ends by itself, which is no death
            self._stopping = True
            self._settle(busy(503, f"{self.name} cannot be loaded: {frame.message}", "model_not_loaded", 10))
        elif (exchange := self._exchanges.pop(frame.id, None)) is not None:
            headers = {"Retry-After": str(RETRY_SECONDS)} if frame.status == HTTP_BUSY else None
            error = ApiError(
                frame.status, frame.message, code=frame.code, param=frame.param, headers=headers, details=frame.details
            )
            exchange.fail(error)

    def _settle(self, error: ApiError | None) -> None:
        """End the wait for the load."""
        if self._loaded.done():
            return
        if error is None:
            self._loaded.set_result(None)
        else:
            self._loaded.set_exception(error)
            self._loaded.exception()  # it is retrieved, also when start() no longer waits


def _end_unused(launching: asyncio.Future[Launched]) -> None:
    """End a process that was launched for a load which has been given up meanwhile."""
    if not launching.cancelled() and launching.exception() is None:
        process, ours = launching.result()
        ours.close()
        process.kill()
        process.wait()


async def _ended(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait until a process has ended, and kill it when the time is over."""
    until = monotonic() + seconds
    while process.poll() is None:
        if monotonic() > until:
            process.kill()
            await asyncio.to_thread(process.wait)
            return
        await asyncio.sleep(POLL_SECONDS)
