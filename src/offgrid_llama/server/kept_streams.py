"""KeptStreams: streams that go on without their clients, and are kept for a while for clients that come back.

A client asks for one with the header ``X-Conversation-Id``. A place in it is an offset in bytes, from its beginning. Each
server-sent event has the offset behind itself as its ``id``, which clients send back as ``Last-Event-ID``.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, aclosing
from time import time
from typing import Any

import msgspec

from .api_error import ApiError, busy

__all__ = ["EVENTS", "MAX_ID_CHARACTERS", "KeptStream", "KeptStreams", "offset_lost", "status_of"]

_logger = logging.getLogger("offgrid_llama.server")

EVENTS = "text/event-stream"
MAX_ID_CHARACTERS = 256
MAX_STREAMS = 256
"""Streams that are kept, at most."""
MAX_STREAM_BYTES = 4 * 2**20
"""Bytes that are kept of one stream, its last ones, at most."""
KEPT_SECONDS = 300.0
"""Time for which a stream is kept when it has ended."""
READ_BYTES = 64 * 2**10
"""Bytes that one reader gets at a time, at most."""
RETRY_SECONDS = 5


class KeptStream:
    """A stream, as far as it has come.

    Args:
        key: of the client that it belongs to.
        id_: that the client has chosen.
        model: that generates it.
        media_type: of it.

    Attributes:
        first: the offset of the first byte that is kept.
        started_at, ended_at: seconds of Unix time; 0 for one that has not ended.
        is_over: whether it has ended.
        task: that generates it.
        timer: that forgets it.
    """

    def __init__(self, key: str, id_: str, model: str, media_type: str) -> None:
        self.key = key
        self.id = id_
        self.model = model
        self.media_type = media_type
        self.first = 0
        self.started_at, self.ended_at = int(time()), 0
        self.is_over = False
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._error: ApiError | None = None
        self._data = bytearray()
        self._news = asyncio.Event()

    @property
    def size(self) -> int:
        """The offset of its end, so far."""
        return self.first + len(self._data)

    @property
    def n_bytes(self) -> int:
        """How many bytes are kept."""
        return len(self._data)

    def append(self, data: bytes) -> None:
        """Add events. The oldest bytes are dropped where there are too many."""
        self._data += _numbered(data, self.size) if self.media_type == EVENTS else data
        self.drop(len(self._data) - MAX_STREAM_BYTES)
        self._tell()

    def drop(self, n: int) -> None:
        """Keep the oldest ``n`` bytes no longer."""
        n = min(n, len(self._data))
        if n > 0:
            del self._data[:n]
            self.first += n

    def end(self, error: ApiError | None = None) -> None:
        """Add nothing more. An error is that of a stream that did not begin."""
        self.is_over, self._error = True, error
        self.ended_at = int(time())
        self._tell()

    async def begun(self) -> None:
        """Wait for the first byte. Raises the ApiError of a stream that ends without one."""
        while not self.size and not self.is_over:
            await self._news.wait()
        if not self.size and self._error is not None:
            raise self._error

    async def read(self, at: int) -> AsyncIterator[bytes]:
        """Yield what comes from an offset on. For a reader that has fallen behind, an error is the last event."""
        while True:
            news = self._news
            if at < self.first:
                yield self.failed(offset_lost(self.first))
                return
            data = bytes(self._data[at - self.first : at - self.first + READ_BYTES])
            at += len(data)
            if data:
                yield data
            elif self.is_over:
                return
            else:
                await news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def failed(self, error: ApiError) -> bytes:
        """Return what tells readers of an error, where the stream itself cannot."""
        told = msgspec.json.encode(error.as_dict())
        return b"event: error\ndata: " + told + b"\n\n" if self.media_type == EVENTS else told + b"\n"


class KeptStreams:
    """The streams that are kept, each by its client's key and id.

    Args:
        max_bytes: of all of them together, at most. 0 keeps none.
        share: of the streams that one key may have.

    Attributes:
        are_kept: whether clients can ask for any.
    """

    def __init__(self, max_bytes: int, share: float = 1.0) -> None:
        self.are_kept = max_bytes > 0
        self._max_bytes = max_bytes
        self._max_of_key = max(1, int(share * MAX_STREAMS))
        self._streams: dict[tuple[str, str], KeptStream] = {}  # the oldest first
        self._bytes_of_key: Counter[str] = Counter()

    def find(self, key: str, id_: str) -> KeptStream:
        """Return the stream with an id, if it belongs to this key. Raises ApiError 404."""
        stream = self._streams.get((key, id_))
        if stream is None:
            raise ApiError(404, f"there is no stream of {id_!r:.140}, or no longer", code="stream_not_found")
        return stream

    def matching(self, key: str, ids: Sequence[str]) -> Iterator[KeptStream]:
        """Yield this key's streams with one of these ids, also where ``::`` and a model's name follow."""
        for id_ in dict.fromkeys(ids):
            for stream in self._streams.values():
                if stream.key == key and (stream.id == id_ or stream.id.startswith(f"{id_}::")):
                    yield stream

    def start(self, stream: KeptStream, events: AsyncIterator[bytes], held: ExitStack) -> None:
        """Keep what comes of a stream from now on, in place of one with its id, which ends.

        Args:
            stream: a new one.
            events: of it. They are closed in any case.
            held: what it holds until its end; it is closed in any case.

        Raises ApiError 429 or 503 where too many streams run.
        """
        try:
            self.stop(stream.key, stream.id)
            self._make_room_for(stream.key)
        except ApiError:
            held.close()
            raise
        self._streams[stream.key, stream.id] = stream
        stream.task = asyncio.create_task(self._run(stream, events))
        stream.task.add_done_callback(lambda task: self._ended(stream, held, task))  # also of a task that did not begin

    def stop(self, key: str, id_: str) -> None:
        """End and forget the stream with an id, if there is one of this key."""
        stream = self._streams.get((key, id_))
        if stream is None:
            return
        self._forget(stream)
        if stream.task is not None:
            stream.task.cancel()

    async def close(self) -> None:
        """End and forget all."""
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        for key, id_ in list(self._streams):
            self.stop(key, id_)
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, stream: KeptStream, events: AsyncIterator[bytes]) -> None:
        async with aclosing(events) as found:  # type: ignore[type-var]
            async for data in found:
                self._append(stream, data)

    def _ended(self, stream: KeptStream, held: ExitStack, task: asyncio.Task[None]) -> None:
        held.close()
        error = _error_of(task)
        if error is not None and stream.size:
            self._append(stream, stream.failed(error))
        stream.end(error)
        if not self._is_kept(stream):
            return
        if stream.size:
            stream.timer = asyncio.get_running_loop().call_later(KEPT_SECONDS, self._forget, stream)
        else:
            self._forget(stream)

    def _append(self, stream: KeptStream, data: bytes) -> None:
        before = stream.n_bytes
        stream.append(data)
        if self._is_kept(stream):
            self._count(stream.key, stream.n_bytes - before)
            while self._bytes_of_key.total() > self._max_bytes:
                self._drop_some()

    def _drop_some(self) -> None:
        """Forget the oldest stream that has ended, of the key with the most bytes; or drop half of one that runs."""
        key = max(self._bytes_of_key, key=self._bytes_of_key.__getitem__)
        of_key = [stream for stream in self._streams.values() if stream.key == key]
        ended = next((stream for stream in of_key if stream.is_over), None)
        if ended is not None:
            self._forget(ended)
            return
        largest = max(of_key, key=lambda stream: stream.n_bytes)
        before = largest.n_bytes
        largest.drop((before + 1) // 2)
        self._count(key, largest.n_bytes - before)

    def _make_room_for(self, key: str) -> None:
        """Forget streams that have ended until there is room for another one of a key. Raises ApiError."""
        if len(self._streams) >= MAX_STREAMS:
            counts = Counter(stream.key for stream in self._streams.values())
            streams = sorted(self._streams.values(), key=lambda stream: -counts[stream.key])
            self._forget_one(streams, busy(503, "too many streams run", "server_full", RETRY_SECONDS))
        of_key = [stream for stream in self._streams.values() if stream.key == key]
        if len(of_key) >= self._max_of_key:
            self._forget_one(of_key, busy(429, "too many streams of this key run", "too_many_requests", RETRY_SECONDS))

    def _forget_one(self, streams: Sequence[KeptStream], error: ApiError) -> None:
        ended = next((stream for stream in streams if stream.is_over), None)
        if ended is None:
            raise error
        self._forget(ended)

    def _is_kept(self, stream: KeptStream) -> bool:
        return self._streams.get((stream.key, stream.id)) is stream

    def _forget(self, stream: KeptStream) -> None:
        """Keep a stream no longer. Those that read it read it to its end."""
        if stream.timer is not None:
            stream.timer.cancel()
        del self._streams[stream.key, stream.id]
        self._count(stream.key, -stream.n_bytes)

    def _count(self, key: str, n_bytes: int) -> None:
        self._bytes_of_key[key] += n_bytes
        if not self._bytes_of_key[key]:
            del self._bytes_of_key[key]


def offset_lost(first: int) -> ApiError:
    """Return the error for an offset before the first byte that is kept."""
    return ApiError(400, f"the stream is kept from offset {first} on", code="offset_lost", param="from")


def _error_of(task: asyncio.Task[None]) -> ApiError | None:
    """Return why a stream ended before its end, or None."""
    if task.cancelled():
        return ApiError(400, "the request was cancelled", code="cancelled")
    failed = task.exception()
    if failed is None or isinstance(failed, ApiError):
        return failed
    _logger.error("a stream failed", exc_info=failed)
    return ApiError(500, "the server failed; its log has the reason", code="internal_error")


def _numbered(data: bytes, at: int) -> bytes:
    """Return events with their ids: the offsets behind them, of a stream in which they begin at one."""
    found = []
    for event in data.split(b"\n\n")[:-1]:
        end = at + len(b"id: \n") + len(event) + len(b"\n\n")
        n_digits = len(str(end))
        end += n_digits if len(str(end + n_digits)) == n_digits else n_digits + 1
        found.append(b"id: %d\n%b\n\n" % (end, event))
        at = end
    return b"".join(found)


def status_of(stream: KeptStream) -> dict[str, Any]:
    """Return what is known of a stream, in llama-server's shape."""
    return {
        "conversation_id": stream.id, "is_done": stream.is_over, "total_bytes": stream.size, "first_byte": stream.first,
        "started_at": stream.started_at, "completed_at": stream.ended_at,
    }  # fmt: skip
