"""The worker's process: ``python -m offgrid_llama.worker FD``. It owns one model, and ends with the server.

FD is its end of a socket pair. The first frame on it names the model to load. An abort, a segmentation fault or a lack of
memory ends this process and no other.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any

from offgrid_llama.start import SparedCollector

from . import frames
from .channel import Channel
from .failures import failure
from .service import Service

HEARTBEAT_SECONDS = 1.0
"""Time between two heartbeats. The server kills a worker without them after ``worker_seconds``."""
CLOSE_SECONDS = 5.0
"""Time for the server to read why a load has failed."""


async def main(fd: int) -> None:
    """Load a model, and answer requests until the server says to stop, or ends."""
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=fd))
    channel = Channel(reader, writer, frames.ToWorker)
    first = await channel.receive()
    if not first or not isinstance(first[0], frames.LoadModel):
        return
    spec = first[0].spec
    loop = asyncio.get_running_loop()
    service: Service | None = None

    def progress(fraction: float) -> None:
        loop.call_soon_threadsafe(channel.send, frames.Loading(fraction))

    async def beat() -> None:
        while True:
            channel.send(frames.Heartbeat(rss_bytes(), {} if service is None else service.stats()))
            await asyncio.sleep(HEARTBEAT_SECONDS)

    beating = asyncio.create_task(beat())
    loading = loop.run_in_executor(None, lambda: Service(**spec, progress=progress))
    listening = asyncio.ensure_future(channel.receive())
    either: set[asyncio.Future[Any]] = {loading, listening}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not loading.done():  # the server has ended, or has given up
        channel.close()
        _exit()
    try:
        service = loading.result()
    except Exception as error:
        channel.send(failure(0, error))
        channel.close()
        await asyncio.wait_for(writer.wait_closed(), CLOSE_SECONDS)
        return
    channel.send(frames.Loaded(service.info()))
    channel.send(frames.Heartbeat(rss_bytes(), service.stats()))
    try:
        with SparedCollector():
            await _serve(service, channel, listening)
    finally:
        beating.cancel()
        channel.close()
        service.close()


async def _serve(service: Service, channel: Channel, listening: asyncio.Future[Any]) -> None:
    tasks: dict[int, asyncio.Task[None]] = {}
    while (received := await listening) is not None:
        for frame in received:
            if isinstance(frame, frames.Stop):
                return
            if isinstance(frame, frames.Threads):
                service.set_n_threads(frame.n)
            elif isinstance(frame, frames.Cancel):
                if frame.id in tasks:
                    tasks[frame.id].cancel()
            else:
                answer = service.generate if isinstance(frame, frames.Generate) else service.call
                task = asyncio.create_task(answer(frame, channel))
                tasks[frame.id] = task
                task.add_done_callback(partial(_forget, tasks, frame.id))
        listening = asyncio.ensure_future(channel.receive())


def _forget(tasks: dict[int, asyncio.Task[None]], id_: int, _: asyncio.Task[None]) -> None:
    tasks.pop(id_, None)


def rss_bytes() -> int:
    """Return the memory of this process, in bytes."""
    with suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _exit() -> None:
    """End at once, without waiting for the load that is under way."""
    os._exit(0)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # what it logs on the server's terminal must not stop it
    asyncio.run(main(int(sys.argv[1])))
