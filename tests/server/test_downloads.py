"""Downloads: clients share them, they are bounded, and events tell how each goes on and ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from offgrid_llama import store
from offgrid_llama.errors import DownloadError
from offgrid_llama.server import Settings, downloads
from offgrid_llama.server.admission import Admission
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.downloads import MAX_DOWNLOADS, Downloads
from offgrid_llama.server.model_events import ModelEvents, Subscription


class World:
    """Downloads from a store that gives a half at once, and the rest or an error when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on = threading.Event()
        self.error: Exception | None = None
        self.pulled: list[str] = []
        self.offered: list[tuple[str, str]] = []
        self.events = ModelEvents()
        monkeypatch.setattr(store, "pull", self.pull)
        monkeypatch.setattr(downloads, "PROGRESS_SECONDS", 0.01)

    def pull(self, name: str, *, progress: Callable[[int, int | None], object]) -> Path:
        self.pulled.append(name)
        progress(5, 10)
        while not self.goes_on.wait(0.01):
            progress(5, 10)
        if self.error is not None:
            raise self.error
        progress(10, 10)
        return Path(name)

    def run(self, check: Callable[[Downloads], Awaitable[None]]) -> None:
        async def main() -> None:
            made = Downloads(self.events, Admission(Settings()), lambda *names: self.offered.append(names))
            try:
                await asyncio.wait_for(check(made), 30)
            finally:
                await made.close()
            assert list(made) == []

        asyncio.run(main())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


async def heard(subscription: Subscription, until: str) -> list[tuple[str, Any]]:
    """Return the events up to one of a kind."""
    found: list[tuple[str, Any]] = []
    while not found or found[-1][0] != until:
        found += [(event.kind, event.data) for event in await subscription.next()]
    return found


def test_a_download(world: World) -> None:
    """Events tell its bytes and its end, at which the model is offered already."""

    async def check(made: Downloads) -> None:
        with world.events.heard("x") as events:
            download = made.begin("x", "of-store")
            assert (await heard(events, "download_progress"))[-1][1] == {"of-store": {"done": 5, "total": 10}}
            assert made.find("x") is download
            assert made.find("of-store") is None
            assert (download.done, download.total) == (5, 10)
            world.goes_on.set()
            found = await heard(events, "download_finished")
            assert found[-2:] == [
                ("download_progress", {"of-store": {"done": 10, "total": 10}}), ("download_finished", None),
            ]  # fmt: skip
            assert world.offered == [("x", "of-store")]
            assert made.find("x") is None

    world.run(check)


@pytest.mark.parametrize("error", [DownloadError("of /home/x/y.gguf"), ValueError("of /home/x/y.gguf")])
def test_one_that_fails(world: World, error: Exception) -> None:
    """The event tells why, without the folders of this machine; nothing is offered."""

    async def check(made: Downloads) -> None:
        world.error = error
        world.goes_on.set()
        with world.events.heard("x") as events:
            made.begin("x", "x")
            told = (await heard(events, "download_failed"))[-1][1]
            assert told == {"error": "of y.gguf", "cancelled": False}
            assert world.offered == []

    world.run(check)


def test_clients_share_one(world: World) -> None:
    """It is told and offered under each of their names, and is cancelled with the last client that wants it."""

    async def check(made: Downloads) -> None:
        with world.events.heard("x") as of_x, world.events.heard("y") as of_y:
            with made.held("y", "s") as download:
                with made.held("x", "s") as same:
                    assert same is download
                assert [each.is_cancelled for each in made] == [False]
                await heard(of_y, "download_progress")
            assert download.is_cancelled
            for each in (of_x, of_y):
                assert (await heard(each, "download_failed"))[-1][1]["cancelled"]
            with made.held("x", "s"):
                made.begin("y", "s")
            world.goes_on.set()
            await heard(of_y, "download_finished")
        assert world.pulled == ["s", "s"]
        assert world.offered == [("x", "s"), ("y", "s")]

    world.run(check)


def test_one_that_is_cancelled(world: World) -> None:
    """It ends at its next report. Until then, it cannot begin again."""

    async def check(made: Downloads) -> None:
        with world.events.heard("x") as events:
            made.begin("x", "s")
            assert made.cancel("x")
            assert not made.cancel("x")
            assert not made.cancel("y")
            with pytest.raises(ApiError) as refused:
                made.begin("x", "s")
            assert refused.value.status == 503
            await heard(events, "download_failed")
            assert made.begin("x", "s").is_cancelled is False

    world.run(check)


def test_the_number_of_downloads(world: World) -> None:
    """It is limited; one that ends makes room."""

    async def check(made: Downloads) -> None:
        with world.events.heard("0") as events:
            for i in range(MAX_DOWNLOADS):
                made.begin(str(i), str(i))
            made.begin("another", "0")
            with pytest.raises(ApiError) as refused:
                made.begin("more", "more")
            assert (refused.value.status, refused.value.code) == (503, "too_many_downloads")
            world.goes_on.set()
            await heard(events, "download_finished")
            made.begin("more", "more")

    world.run(check)
