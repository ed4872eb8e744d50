"""How long models stay loaded that nothing uses, with workers that have no model."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.workers import FakeLauncher, FakeWorker
from offgrid_llama.server import ModelSettings, Settings
from offgrid_llama.server.supervision.served_model import ServedModel
from offgrid_llama.server.supervision.supervisor import Supervisor
from offgrid_llama.worker import frames

SOON = 0.02
LATE = 3600.0


def answer(worker: FakeWorker, frame: Any) -> None:
    if isinstance(frame, frames.LoadModel):
        worker.send(frames.Loaded({}))


def with_model(
    folder: Path, check: Callable[[Supervisor, ServedModel], Awaitable[None]], idle: float = 0, **settings: Any
) -> None:
    """Run a check with a model that is not loaded yet."""

    async def main() -> None:
        (folder / "a.gguf").write_bytes(b"GGUF")
        models = [ModelSettings("a", str(folder / "a.gguf"), **settings)]
        supervisor = Supervisor(Settings(models=models, idle_seconds=idle), FakeLauncher(answer).launch)
        try:
            await asyncio.wait_for(check(supervisor, supervisor.models["a"]), 30)
        finally:
            await supervisor.close()

    asyncio.run(main())


async def unloaded(model: ServedModel) -> None:
    """Wait until a model is unloaded."""
    while model.worker is not None:
        await asyncio.sleep(0.005)


async def stays(model: ServedModel) -> None:
    """Wait for longer than any time of these tests that ends, and see that a model is still loaded."""
    await asyncio.sleep(10 * SOON)
    assert model.status == "ready"


def test_the_servers_own_time(tmp_path: Path) -> None:
    """A model is unloaded after the server's idle seconds, each time anew."""

    async def check(supervisor: Supervisor, model: ServedModel) -> None:
        for _ in range(2):
            await supervisor.load(model)
            assert supervisor.seconds_left(model) <= SOON
            await unloaded(model)

    with_model(tmp_path, check, idle=SOON)


@pytest.mark.parametrize("idle", [0, LATE])
def test_what_a_request_asks_for(tmp_path: Path, idle: float) -> None:
    """A model stays for as long as the last request asked, until it is unloaded: then the server's own time counts."""

    async def check(supervisor: Supervisor, model: ServedModel) -> None:
        await supervisor.load(model, LATE)
        await supervisor.load(model)
        assert LATE - 60 < supervisor.seconds_left(model) <= LATE
        await supervisor.load(model, SOON)
        await unloaded(model)
        await supervisor.load(model)
        assert supervisor.seconds_left(model) > LATE - 60
        await supervisor.load(model, 0)
        await unloaded(model)

    with_model(tmp_path, check, idle=idle)


def test_for_ever(tmp_path: Path) -> None:
    """A request can keep a model that the server would unload."""

    async def check(supervisor: Supervisor, model: ServedModel) -> None:
        await supervisor.load(model, math.inf)
        assert supervisor.seconds_left(model) == math.inf
        await stays(model)

    with_model(tmp_path, check, idle=SOON)


def test_a_model_in_use(tmp_path: Path) -> None:
    """It is not unloaded, and its time begins when its last request ends."""

    async def check(supervisor: Supervisor, model: ServedModel) -> None:
        async with supervisor.use(model):
            async with supervisor.use(model, SOON):
                pass
            await stays(model)
            assert supervisor.seconds_left(model) == SOON
        await unloaded(model)

    with_model(tmp_path, check)


def test_a_model_that_is_used_again(tmp_path: Path) -> None:
    """A time that ends while a request uses the model unloads nothing, and keeps no other request waiting."""

    async def check(supervisor: Supervisor, model: ServedModel) -> None:
        await supervisor.load(model, SOON)
        async with supervisor.use(model, LATE):
            await stays(model)
        await stays(model)

    with_model(tmp_path, check)


def test_a_kept_model(tmp_path: Path) -> None:
    """The settings of a model count more than what a request asks for."""

    async def check(supervisor: Supervisor, model: ServedModel) -> None:
        await supervisor.load(model, 0)
        await stays(model)

    with_model(tmp_path, check, idle=SOON, keep=True)


def test_a_request_that_gives_up(tmp_path: Path) -> None:
    """A model that is loaded for a request that has left meanwhile is idle, too."""

    async def check(supervisor: Supervisor, model: ServedModel) -> None:
        loading = asyncio.ensure_future(supervisor.load(model))
        while model.loading is None:
            await asyncio.sleep(0)
        loading.cancel()
        while model.status == "loading":
            await asyncio.sleep(0.005)
        await unloaded(model)

    with_model(tmp_path, check, idle=SOON)
