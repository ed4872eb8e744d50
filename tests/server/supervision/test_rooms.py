"""Models that are loaded and unloaded beside each other, with workers that have no model."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from helpers.workers import FakeLauncher, FakeWorker
from offgrid_llama.server import ModelSettings, Settings
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.supervision.launch import Launched
from offgrid_llama.server.supervision.rooms import WORKER_OVERHEAD_BYTES
from offgrid_llama.server.supervision.served_model import ServedModel
from offgrid_llama.server.supervision.supervisor import Supervisor
from offgrid_llama.worker import frames

UNIT = WORKER_OVERHEAD_BYTES // 2


class Launcher(FakeLauncher):
    """Workers load at once, but for those of the models in ``stuck``.

    Attributes:
        loads: the names of the models, in the order of their loads.
        n_others: how many other workers lived when each of them began.
    """

    def __init__(self, *stuck: str) -> None:
        super().__init__(self._take, heartbeats=False)
        self.stuck = set(stuck)
        self.loads: list[str] = []
        self.n_others: list[int] = []

    def launch(self, spec: Mapping[str, Any]) -> Launched:
        self.loads.append(Path(spec["file"]).stem)
        self.n_others.append(sum(worker.poll() is None for worker in self.workers))
        return super().launch(spec)

    def _take(self, worker: FakeWorker, frame: Any) -> None:
        if isinstance(frame, frames.LoadModel) and Path(frame.spec["file"]).stem not in self.stuck:
            worker.send(frames.Loaded({}))


def with_models(
    folder: Path, launcher: Launcher, check: Callable[[Supervisor], Awaitable[None]], budget: int = 0, **sizes: int
) -> None:
    """Run a check with models of these sizes, in units, the overhead of two units included."""

    async def main() -> None:
        for name, size in sizes.items():
            with open(folder / f"{name}.gguf", "wb") as file:
                file.truncate((size - 2) * UNIT)
        models = [ModelSettings(name, str(folder / f"{name}.gguf"), keep=name == "kept") for name in sizes]
        supervisor = Supervisor(Settings(models=models, memory_budget=budget * UNIT), launcher.launch)
        try:
            await asyncio.wait_for(check(supervisor), 30)
        finally:
            await supervisor.close()

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)


def has_process(model: ServedModel) -> bool:
    return model.worker is not None and model.worker.pid is not None


def test_an_unload_that_waits_holds_up_no_other_model(tmp_path: Path) -> None:
    """While a stream keeps its model from leaving, another is loaded and unloaded; a client need not wait for it."""

    async def check(supervisor: Supervisor) -> None:
        a, b = map(supervisor.find, "ab")
        async with supervisor.use(a):
            leaving = asyncio.create_task(supervisor.unload(a))
            await until(lambda: a.status == "unloading")
            await supervisor.load(b)
            await supervisor.unload(b)
            leaving.cancel()
            await asyncio.wait({leaving})
            assert (a.status, b.status) == ("unloading", "unloaded")
        await until(lambda: a.status == "unloaded")

    with_models(tmp_path, Launcher(), check, a=3, b=3)


def test_a_load_that_hangs_holds_up_no_other_model(tmp_path: Path) -> None:
    """While one model loads and loads, another is loaded."""

    async def check(supervisor: Supervisor) -> None:
        a, b = map(supervisor.find, "ab")
        loading = asyncio.create_task(supervisor.load(a))
        await until(lambda: has_process(a))
        await supervisor.load(b)
        assert (a.status, b.status) == ("loading", "ready")
        loading.cancel()
        await asyncio.wait({loading})

    with_models(tmp_path, Launcher("a"), check, a=3, b=3)


def test_room_is_given_in_the_order_of_asking(tmp_path: Path) -> None:
    """The first that lacks room gets it; one that fits beside all may pass, one that would take its room waits."""

    async def check(supervisor: Supervisor) -> None:
        a, b, c, d = map(supervisor.find, "abcd")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(supervisor.use(a))
            waiting = [asyncio.create_task(supervisor.load(b))]
            await until(lambda: a.status == "unloading")  # b's file was looked for, in a thread, and b is in line
            waiting += [asyncio.create_task(supervisor.load(model)) for model in (c, d)]
            await until(lambda: d.status == "ready")
            assert [model.status for model in (a, b, c, d)] == ["unloading", "loading", "loading", "ready"]
            assert launcher.loads == ["a", "d"]
        await asyncio.gather(*waiting)
        assert launcher.loads[2:] == ["b", "c"]

    launcher = Launcher()
    with_models(tmp_path, launcher, check, budget=10, a=5, b=7, c=5, d=3)


def test_a_model_that_is_about_to_load_has_its_room(tmp_path: Path) -> None:
    """Two that fit only alone do not load together, no matter how much each of them is reported to take while it loads."""

    async def check(supervisor: Supervisor) -> None:
        a, b = map(supervisor.find, "ab")
        loads = [asyncio.create_task(supervisor.load(model)) for model in (a, b)]
        await until(lambda: has_process(a))
        launcher.workers[0].kill()
        with pytest.raises(ApiError, match="ended unexpectedly"):
            await loads[0]
        await loads[1]
        assert launcher.n_others == [0, 0]

    launcher = Launcher("a")
    with_models(tmp_path, launcher, check, budget=5, a=4, b=4)


def test_no_room_beside_kept_models(tmp_path: Path) -> None:
    """A model that never fits is refused, and the next one in line is not held up."""

    async def check(supervisor: Supervisor) -> None:
        await supervisor.load(supervisor.find("kept"))
        with pytest.raises(ApiError, match="does not fit into memory"):
            await supervisor.load(supervisor.find("a"))
        await supervisor.load(supervisor.find("b"))

    with_models(tmp_path, Launcher(), check, budget=6, kept=3, a=4, b=3)
