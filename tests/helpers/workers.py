"""Workers without a process or a model: they speak the frames of real ones, and do what a test says."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

from offgrid_llama.server.supervision.launch import Launched
from offgrid_llama.worker import frames
from offgrid_llama.worker.channel import Channel, packed

Answering = Callable[["FakeWorker", Any], None]


class FakeWorker:
    """The process of a worker, as far as its supervisor sees it, and what runs in it.

    Args:
        theirs: the worker's end of the socket.
        answer: called with the worker and each frame that it gets, on the worker's thread.
        heartbeats: whether it shows that it lives.
    """

    def __init__(self, theirs: socket.socket, answer: Answering, heartbeats: bool) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self.killed = False
        self._answer = answer
        self._heartbeats = heartbeats
        self._loop = asyncio.new_event_loop()
        self._channel: Channel | None = None
        self._main: asyncio.Task[None] | None = None
        threading.Thread(target=self._run, args=(theirs,), daemon=True).start()

    def send(self, frame: Any) -> None:
        """Send a frame; to be called by ``answer``."""
        assert self._channel is not None
        self._channel.send(frame)

    def die(self) -> None:
        """End as a crash does: what was sent before is still there."""
        self.returncode = -11
        assert self._channel is not None
        self._channel.close()

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.killed = True
        self.returncode = -9
        assert self._main is not None
        self._loop.call_soon_threadsafe(self._main.cancel)

    def wait(self, timeout: float | None = None) -> int | None:
        del timeout
        return self.returncode

    def _run(self, theirs: socket.socket) -> None:
        self._main = self._loop.create_task(self._serve(theirs))
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        finally:
            self.returncode = 0 if self.returncode is None else self.returncode
            theirs.close()
            self._loop.close()

    async def _serve(self, theirs: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=theirs)
        self._channel = Channel(reader, writer, frames.ToWorker)
        beating = asyncio.create_task(self._beat())
        try:
            while (received := await self._channel.receive()) is not None:
                for frame in received:
                    if isinstance(frame, frames.Stop):
                        return
                    self._answer(self, frame)
        finally:
            beating.cancel()
            self._channel.close()

    async def _beat(self) -> None:
        while self._heartbeats:
            self.send(frames.Heartbeat(1, {}))
            await asyncio.sleep(0.05)


class FakeLauncher:
    """Launches workers that do what a function says, and counts them."""

    def __init__(self, answer: Answering, *, heartbeats: bool = True) -> None:
        self.workers: list[FakeWorker] = []
        self._answer = answer
        self._heartbeats = heartbeats

    def launch(self, spec: Mapping[str, Any]) -> Launched:
        """Return a worker that is told to load its model, as a real launcher does."""
        ours, theirs = socket.socketpair()
        worker = FakeWorker(theirs, self._answer, self._heartbeats)
        self.workers.append(worker)
        ours.sendall(packed([frames.LoadModel(dict(spec))]))
        return cast("Launched", (worker, ours))
