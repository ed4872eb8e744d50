"""Streams that are kept: clients come back for what they have missed, and nothing is kept without bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack
from typing import Any

import pytest

from offgrid_llama.server import kept_streams
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.kept_streams import EVENTS, KeptStream, KeptStreams

DATA = [b"data: a\n\n", b"", b": alive\n\n", b"event: x\ndata: b\n\ndata: c\n\n", b"data: [DONE]\n\n"]


class Held(ExitStack):
    """A resource that a stream holds; it tells whether it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_let_go = False
        self.callback(self._let_go)

    def _let_go(self) -> None:
        self.is_let_go = True


def run(check: Callable[[KeptStreams], Awaitable[None]], max_bytes: int = 10**6, share: float = 1.0) -> None:
    async def main() -> None:
        streams = KeptStreams(max_bytes, share)
        await asyncio.wait_for(check(streams), 30)
        await streams.close()

    asyncio.run(main())


def stream_of(id_: str = "i", key: str = "k", media_type: str = EVENTS) -> KeptStream:
    return KeptStream(key, id_, "m", media_type)


async def given(parts: Iterable[bytes | Exception], goes_on: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    """Yield parts, and wait at their end until a test goes on; an exception among them is raised."""
    for part in parts:
        if isinstance(part, Exception):
            raise part
        yield part
        await asyncio.sleep(0)
    if goes_on is not None:
        await goes_on.wait()


async def whole(stream: KeptStream, at: int = 0) -> bytes:
    return b"".join([part async for part in stream.read(at)])


def data_of(events: bytes) -> list[bytes]:
    return [line for line in events.split(b"\n") if line.startswith(b"data: ")]


def test_the_id_of_an_event_is_where_the_next_one_begins() -> None:
    """From each id on, and from each byte on, a reader gets exactly what it has missed."""
    parts = [*DATA[:-1], *(b"data: %d\n\n" % i for i in range(2000)), DATA[-1]]

    async def check(streams: KeptStreams) -> None:
        stream = stream_of()
        streams.start(stream, given(parts), Held())
        events = await whole(stream)
        assert data_of(events) == data_of(b"".join(parts))
        assert stream.size == len(events)
        at = 0
        for event in events.split(b"\n\n")[:-1]:
            at += len(event) + 2
            assert event.split(b"\n")[0] == b"id: %d" % at
        for at in (0, 1, 7, 100, len(events) // 2, len(events) - 1, len(events)):
            assert await whole(stream, at) == events[at:]

    run(check)


def test_ids_that_grow_by_a_digit() -> None:
    """The id counts its own digits, also where these make it longer."""

    async def check(streams: KeptStreams) -> None:
        for n in (*range(80, 100), *range(980, 1000)):
            stream = stream_of(str(n))
            streams.start(stream, given([b"data: " + b"x" * (n - 13) + b"\n\n"]), Held())
            event = await whole(stream)
            assert event.startswith(b"id: %d\n" % len(event))

    run(check)


def test_lines_have_no_ids() -> None:
    """A stream that has no server-sent events is kept as it is."""

    async def check(streams: KeptStreams) -> None:
        stream = stream_of(media_type="application/x-ndjson")
        streams.start(stream, given([b"{}\n", b"{}\n"]), Held())
        assert await whole(stream) == b"{}\n{}\n"

    run(check)


def test_a_reader_may_leave_and_come_back() -> None:
    """The stream goes on, and holds what it needs until its end. Readers get what comes meanwhile, and all get the same."""

    async def check(streams: KeptStreams) -> None:
        goes_on, held, stream = asyncio.Event(), Held(), stream_of()
        streams.start(stream, given(DATA, goes_on), held)
        reading = stream.read(0)
        first = await anext(reading)
        await reading.aclose()  # type: ignore[attr-defined]
        others = asyncio.gather(whole(stream, len(first)), whole(stream, 0))
        await asyncio.sleep(0)
        assert [held.is_let_go, stream.is_over] == [False, False]
        goes_on.set()
        rest, everything = await others
        assert first + rest == everything
        assert data_of(everything) == data_of(b"".join(DATA))
        assert [held.is_let_go, stream.is_over] == [True, True]
        assert streams.find("k", "i") is stream

    run(check)


def test_whose_stream_it_is() -> None:
    """It belongs to a key: another one finds nothing, ends nothing, and may use the same id."""

    async def check(streams: KeptStreams) -> None:
        mine, other = stream_of("i::model"), stream_of("i::model", "other")
        streams.start(mine, given(DATA, asyncio.Event()), Held())
        for key, id_ in (("other", "i::model"), ("k", "i")):
            with pytest.raises(ApiError) as refused:
                streams.find(key, id_)
            assert refused.value.status == 404
        streams.stop("other", "i::model")
        streams.start(other, given(DATA), Held())
        assert list(streams.matching("k", ["i", "i", "none"])) == [mine]
        assert list(streams.matching("k", ["i::model"])) == [mine]
        assert list(streams.matching("k", ["i::"])) == []
        assert not mine.is_over

    run(check)


@pytest.mark.parametrize("how", ["stop", "replace", "close"])
@pytest.mark.parametrize("at_once", [True, False])
def test_one_that_is_stopped(how: str, at_once: bool) -> None:
    """By its client, by a new one with its id, or with the server: its readers get an end, and nothing of it is held."""

    async def check(streams: KeptStreams) -> None:
        held, stream = Held(), stream_of()
        streams.start(stream, given(DATA, asyncio.Event()), held)
        reading = asyncio.ensure_future(whole(stream))
        if not at_once:
            await stream.begun()
        if how == "stop":
            streams.stop("k", "i")
            streams.stop("k", "i")
        elif how == "replace":
            streams.start(stream_of(), given(DATA), Held())
        else:
            await streams.close()
        told = await reading
        assert held.is_let_go
        if at_once:
            with pytest.raises(ApiError, match="cancelled"):
                await stream.begun()
        else:
            assert data_of(told)[0] == b"data: a"
            assert b'"code":"cancelled"' in data_of(told)[-1]
        if how == "replace":
            assert await whole(streams.find("k", "i")) == await whole(streams.find("k", "i"))
        else:
            assert list(streams.matching("k", ["i"])) == []

    run(check)


@pytest.mark.parametrize("error", [ApiError(503, "busy"), ValueError("a secret")])
def test_one_that_fails(error: Exception) -> None:
    """Before its first byte, its clients get the error itself, and it is not kept. After that, the last event has it."""
    status = error.status if isinstance(error, ApiError) else 500

    async def check(streams: KeptStreams) -> None:
        early, late = stream_of("a"), stream_of("b")
        streams.start(early, given([error]), Held())
        streams.start(late, given([b"data: a\n\n", error]), Held())
        with pytest.raises(ApiError) as refused:
            await early.begun()
        assert refused.value.status == status
        events = await whole(late)
        assert [line[:14] for line in data_of(events)] == [b"data: a", b'data: {"error"']
        assert b"secret" not in events
        assert list(streams.matching("k", ["a", "b"])) == [late]

    run(check)


def test_one_that_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its oldest bytes are dropped. A reader behind them gets an error as its last event, others get all that is kept."""
    monkeypatch.setattr(kept_streams, "MAX_STREAM_BYTES", 1000)

    async def check(streams: KeptStreams) -> None:
        goes_on, stream = asyncio.Event(), stream_of()
        streams.start(stream, given([b"data: %d\n\n" % i for i in range(300)], goes_on), Held())
        slow = stream.read(0)
        first = await anext(slow)
        while stream.first <= len(first):
            await asyncio.sleep(0)
        last = [part async for part in _until_error(slow)][-1]
        assert b"offset_lost" in last
        assert stream.n_bytes <= 1000
        goes_on.set()
        assert data_of(await whole(stream, stream.first))[-1] == b"data: 299"
        assert stream.size == stream.first + stream.n_bytes > 3000

    run(check)


async def _until_error(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for part in parts:
        yield part
        if b"error" in part:
            return


def test_they_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some time after their end, and not before it."""
    monkeypatch.setattr(kept_streams, "KEPT_SECONDS", 0.05)

    async def check(streams: KeptStreams) -> None:
        goes_on = asyncio.Event()
        ended, running = stream_of("a"), stream_of("b")
        streams.start(ended, given(DATA), Held())
        streams.start(running, given(DATA, goes_on), Held())
        await whole(ended)
        while list(streams.matching("k", ["a", "b"])) != [running]:
            await asyncio.sleep(0.01)
        goes_on.set()
        while list(streams.matching("k", ["b"])):
            await asyncio.sleep(0.01)

    run(check)


def test_bytes_of_all() -> None:
    """The key with the most loses its oldest that have ended, and then the beginnings of those that run."""

    async def check(streams: KeptStreams) -> None:
        part = b"data: " + b"x" * 982 + b"\n\n"

        async def kept(key: str, id_: str, n: int, goes_on: asyncio.Event | None = None) -> KeptStream:
            stream = stream_of(id_, key, "text/plain")
            streams.start(stream, given([part] * n, goes_on), Held())
            while stream.size < n * len(part) or (goes_on is None and not stream.is_over):
                await asyncio.sleep(0)
            return stream

        def ids(key: str) -> str:
            return "".join(stream.id for stream in streams.matching(key, list("abcdefg")))

        await kept("other", "a", 2)
        for id_ in "abcd":
            await kept("k", id_, 2)
        assert (ids("other"), ids("k")) == ("a", "abcd")
        await kept("k", "e", 2)
        assert (ids("other"), ids("k")) == ("a", "bcde")
        running = await kept("k", "f", 9, asyncio.Event())
        assert (ids("other"), ids("k")) == ("a", "f")
        assert running.first > 0
        assert sum(stream.n_bytes for key in ("k", "other") for stream in streams.matching(key, ["a", "f"])) <= 10_000

    run(check, 10_000)


@pytest.mark.parametrize(("share", "status"), [(1.0, 503), (0.5, 429)])
def test_the_number_of_streams(monkeypatch: pytest.MonkeyPatch, share: float, status: int) -> None:
    """Those that have ended make room for new ones; where all run, a further one is refused, and holds nothing."""
    monkeypatch.setattr(kept_streams, "MAX_STREAMS", 4)

    async def check(streams: KeptStreams) -> None:
        n = int(4 * share)
        for i in range(2 * n):
            stream = stream_of(f"ended {i}")
            streams.start(stream, given(DATA), Held())
            await whole(stream)
        kept: list[Any] = list(streams.matching("k", [f"ended {i}" for i in range(2 * n)]))
        assert len(kept) == n
        goes_on = asyncio.Event()
        for i in range(n):
            streams.start(stream_of(str(i)), given(DATA, goes_on), Held())
        held = Held()
        with pytest.raises(ApiError) as refused:
            streams.start(stream_of("more"), given(DATA), held)
        assert refused.value.status == status
        assert held.is_let_go
        if status == 429:
            streams.start(stream_of("i", "other"), given(DATA), Held())

    run(check, share=share)
