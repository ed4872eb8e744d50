"""A load that finds no file: its download is told, and ends with an unload or with the server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.workers import FakeLauncher, FakeWorker
from offgrid_llama import store
from offgrid_llama.server import ModelSettings, Settings
from offgrid_llama.server.model_events import ModelEvent
from offgrid_llama.server.supervision.supervisor import Supervisor
from offgrid_llama.worker import frames


class Slow:
    """A store that has half of a file at once, and the rest when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.goes_on, self.ended = threading.Event(), threading.Event()
        self._file = file
        monkeypatch.setattr(store, "resolve", self.resolve)

    def resolve(
        self, name: str, *, download: bool = True, progress: Callable[[int, int | None], object] | None = None
    ) -> Path:
        assert name == "of-store"
        if progress is not None and download:
            try:
                progress(1, 2)
                while not self.goes_on.wait(0.01):
                    progress(1, 2)
            finally:
                self.ended.set()
        return self._file


def load(worker: FakeWorker, frame: Any) -> None:
    if isinstance(frame, frames.LoadModel):
        worker.send(frames.Loaded({}))


@pytest.mark.parametrize("how", ["goes on", "unload", "stop"])
def test_a_download_with_which_a_load_begins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str) -> None:
    """Events tell how far it is and how it ends; then the model is loaded, or the load has failed."""
    file = tmp_path / "m.gguf"
    file.touch()
    slow = Slow(monkeypatch, file)

    async def main() -> None:
        supervisor = Supervisor(Settings(models=[ModelSettings("m", "of-store")]), FakeLauncher(load).launch)
        model = supervisor.find("m")
        heard: list[ModelEvent] = []
        with supervisor.events.heard("m") as events:

            async def hear(kind: str, status: str | None = None) -> Any:
                while True:
                    while heard:
                        event = heard.pop(0)
                        if event.kind == kind and status in (None, (event.data or {}).get("status")):
                            return event.data
                    heard.extend(await events.next())

            supervisor.begin_load(model)
            assert await hear("download_progress") == {"of-store": {"done": 1, "total": 2}}
            assert model.fetching is not None
            assert model.fetching.progress == (1, 2)
            if how == "goes on":
                slow.goes_on.set()
                assert await hear("download_finished") is None
                assert await hear("model_status", "loaded")
            elif how == "unload":
                await supervisor.unload(model)
                assert (await hear("download_failed"))["cancelled"] is True
                assert model.status == "failed"
            await supervisor.close()
            if how == "stop":
                assert (await hear("download_failed"))["error"] == "the load was cancelled"
            assert await asyncio.to_thread(slow.ended.wait, 20)
            assert model.fetching is None

    asyncio.run(asyncio.wait_for(main(), 30))
