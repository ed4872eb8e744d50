"""WorkerProcess: one model's process, from its start to its end, and the requests that are with it."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from collections.abc import Callable, Mapping
from itertools import count
from time import monotonic
from typing import Any

from ..worker.frames import (
    Answered,
    Cancel,
    Channel,
    Failed,
    FromWorker,
    Heartbeat,
    Loaded,
    Loading,
    Result,
    Stop,
    Threads,
)
from .errors import ApiError, busy
from .launch import launch

__all__ = ["Request", "WorkerDiedError", "WorkerProcess"]

_logger = logging.getLogger("offgrid_llama.server")

STUCK = 4.0
"""Times ``worker_seconds`` in which the engine of a worker that has something to compute must make a step."""


class WorkerDiedError(ApiError):
    """The worker has ended while a request was with it."""

    def __init__(self, model: str) -> None:
        super().__init__(
            503, f"the process of {model} has ended unexpectedly; it starts again", code="worker_died",
            headers={"Retry-After": "1"},
        )  # fmt: skip


class Request:
    """What comes of something that a worker was asked, frame by frame."""

    __slots__ = ("_frames", "_ready", "begun", "id")

    def __init__(self, id_: int) -> None:
        self.id = id_
        self.begun = False  # whether anything has come
        self._frames: list[Any] = []
        self._ready = asyncio.Event()

    def put(self, frame: Any) -> None:
        """Take a frame, or an ApiError."""
        self.begun = self.begun or not isinstance(frame, ApiError)
        self._frames.append(frame)
        self._ready.set()

    async def next(self) -> list[Any]:
        """Wait for frames, and return all that have come. Raises the ApiError that the request has ended with."""
        while not self._frames:
            self._ready.clear()
            await self._ready.wait()
        found, self._frames = self._frames, []
        if isinstance(found[0], ApiError):
            raise found[0]
        if isinstance(found[-1], ApiError):  # first what was before it
            self._frames = [found.pop()]
        return found

    async def result(self) -> Any:
        """Wait for the one frame that ends it."""
        return (await self.next())[-1]


class WorkerProcess:
    """A process that owns a model.

    Args:
        name: of the model, for people.
        spec: the arguments of the worker's Service.
        on_death: called when it has ended and was not to.

    Attributes:
        info: what it has told of the model, once it is loaded.
        fraction: how much of the model is loaded.
        rss_bytes, stats: of its last heartbeat.
        n_threads: how many it was told to compute with at most; None is nothing yet.
    """

    def __init__(self, name: str, spec: Mapping[str, Any], on_death: Callable[[WorkerProcess], object]) -> None:
        self.name = name
        self.info: dict[str, Any] = {}
        self.fraction = 0.0
        self.rss_bytes = 0
        self.stats: dict[str, float] = {}
        self.requests: dict[int, Request] = {}
        self._spec = spec
        self._on_death = on_death
        self._ids = count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._loaded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self.n_threads: int | None = None
        self._alive_at = self._stepped_at = monotonic()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return None if self._process is None else self._process.pid

    async def start(self, load_seconds: float, worker_seconds: float) -> None:
        """Start the process, and wait until its model is loaded.

        Raises ApiError where it cannot be, or not within ``load_seconds``. Later on the process is ended where it gives no
        sign of life for ``worker_seconds``.
        """
        try:
            self._process, ours = await asyncio.to_thread(launch, self._spec)
        except OSError as error:
            raise ApiError(503, f"{self.name} cannot be started: {error}", code="worker_not_started") from error
        reader, writer = await asyncio.open_connection(sock=ours)
        self._channel = Channel(reader, writer, FromWorker)
        self._alive_at = monotonic()
        self._tasks = [
            asyncio.create_task(self._listen(self._channel)),
            asyncio.create_task(self._watch(worker_seconds)),
        ]
        try:
            await asyncio.wait_for(asyncio.shield(self._loaded), load_seconds)
        except asyncio.TimeoutError:
            await self.stop()
            raise busy(503, f"{self.name} was not loaded within {load_seconds:g} s", "load_timeout", 30) from None
        except BaseException:
            await self.stop()
            raise

    def ask(self, make: Callable[[int], Any]) -> Request:
        """Send a frame, made with the id of its request, and return the Request."""
        request = Request(next(self._ids))
        if self._channel is None or self._stopping or self._process is None:
            request.put(WorkerDiedError(self.name))
            return request
        self.requests[request.id] = request
        self._channel.send(make(request.id))
        return request

    def set_n_threads(self, n: int) -> None:
        """Let it compute with so many threads."""
        if n != self.n_threads and self._channel is not None:
            self.n_threads = n
            self._channel.send(Threads(n))

    def forget(self, request: Request) -> None:
        """Stop a request, unless it has ended."""
        if self.requests.pop(request.id, None) is not None and self._channel is not None:
            self._channel.send(Cancel(request.id))

    async def stop(self, seconds: float = 5.0) -> None:
        """End the process: by asking it, then by force. Its requests fail."""
        self._stopping = True
        process = self._process
        if process is None:
            return
        if self._channel is not None:
            self._channel.send(Stop())
            self._channel.flush()
        until = monotonic() + seconds
        while process.poll() is None and monotonic() < until:
            await asyncio.sleep(0.02)
        if process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.wait)
        self._end()

    def kill(self) -> None:
        """End the process by force, for one that does not answer; it counts as one that has died."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def _listen(self, channel: Channel) -> None:
        while (received := await channel.receive()) is not None:
            self._alive_at = monotonic()
            for frame in received:
                self._take(frame)
        process = self._process
        if process is not None and not self._stopping:
            for _ in range(100):  # its end comes a moment after that of its socket
                if process.poll() is not None:
                    break
                await asyncio.sleep(0.01)
            else:
                process.kill()
                await asyncio.to_thread(process.wait)
            _logger.error("the worker of %s (pid %d) has ended with %s", self.name, process.pid, process.returncode)
        if not self._stopping:
            self._end()

    def _take(self, frame: Any) -> None:
        if isinstance(frame, Heartbeat):
            if frame.stats.get("n_steps") != self.stats.get("n_steps") or not frame.stats.get("n_running"):
                self._stepped_at = monotonic()
            self.rss_bytes, self.stats = frame.rss_bytes, frame.stats
        elif isinstance(frame, Loading):
            self.fraction = frame.fraction
        elif isinstance(frame, Loaded):
            self.info, self.fraction = frame.info, 1.0
            self._settle(None)
        elif isinstance(frame, Failed):
            error = ApiError(frame.status, frame.message, code=frame.code, param=frame.param)
            if frame.id == 0:
                self._stopping = True  # it ends by itself, which is no death
                self._settle(busy(503, f"{self.name} cannot be loaded: {frame.message}", "model_not_loaded", 10))
            elif (request := self.requests.pop(frame.id, None)) is not None:
                request.put(error)
        elif isinstance(frame, (Answered, Result)):
            if (request := self.requests.pop(frame.id, None)) is not None:
                request.put(frame)
        elif (request := self.requests.get(frame.id)) is not None:
            request.put(frame)

    def _settle(self, error: ApiError | None) -> None:
        if self._loaded.done():
            return
        if error is None:
            self._loaded.set_result(None)
        else:
            self._loaded.set_exception(error)
            self._loaded.exception()  # also where nobody waits for it any more

    async def _watch(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            now = monotonic()
            if now - self._alive_at > seconds or now - self._stepped_at > STUCK * seconds:
                _logger.error("the worker of %s (pid %s) gives no sign of life", self.name, self.pid)
                self.kill()

    def _end(self) -> None:
        """Take that the process has ended."""
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
        requests, self.requests = self.requests, {}
        for request in requests.values():
            request.put(WorkerDiedError(self.name))
        if not self._stopping:
            self._on_death(self)
