"""Workers that die, hang or cannot load: what the supervisor makes of it, with workers that have no model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.workers import FakeLauncher, FakeWorker
from offgrid_llama.server import ModelSettings, Settings
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.supervision.backoff import Backoff
from offgrid_llama.server.supervision.launch import Launched
from offgrid_llama.server.supervision.supervisor import Supervisor
from offgrid_llama.server.supervision.worker_process import WorkerProcess
from offgrid_llama.worker import frames

Check = Callable[[Supervisor], Coroutine[Any, Any, None]]


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., None]:
    """Run a check with the supervisor of a model whose workers are given."""
    file = tmp_path / "m.gguf"
    file.touch()

    def run(launcher: FakeLauncher, check: Check, **settings: Any) -> None:
        async def main() -> None:
            models = [ModelSettings("m", str(file))]
            supervisor = Supervisor(Settings(models=models, **settings), launcher.launch)
            try:
                await asyncio.wait_for(check(supervisor), 30)
            finally:
                await supervisor.close()

        asyncio.run(main())

    return run


async def asked(supervisor: Supervisor, fingerprint: bytes = b"a") -> list[Any]:
    """Return what comes of a request."""
    model = supervisor.find("m")
    asking = supervisor.ask(model, lambda id_: frames.Call(id_, "tokenize", {}), fingerprint)
    return [frame async for frame in asking]


def answering(*deaths: str) -> Callable[[FakeWorker, Any], None]:
    """Return what workers do: load, die once for each word, "before" or "after" the first frame, and then answer."""
    left = list(deaths)

    def answer(worker: FakeWorker, frame: Any) -> None:
        if isinstance(frame, frames.LoadModel):
            worker.send(frames.Loaded({}))
        elif isinstance(frame, frames.Call) and left:
            if left.pop(0) == "after":
                worker.send(frames.Chunk(frame.id, 0, "half"))
            worker.die()
        elif isinstance(frame, frames.Call):
            worker.send(frames.Result(frame.id, "whole"))

    return answer


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_what_is_told(run: Callable[..., None]) -> None:
    """Events tell each status of a model: how a load goes on and ends, a death, and the unload."""
    fails = [True]

    def load_in_parts(worker: FakeWorker, frame: Any) -> None:
        if isinstance(frame, frames.LoadModel):
            worker.send(frames.Loading(0.5))
            if fails.pop(0):
                worker.send(frames.Failed(0, 503, "it is /home/x/broken.gguf"))
            else:
                worker.send(frames.Loaded({"n_ctx": 8}))
        elif isinstance(frame, frames.Call):
            worker.send(frames.Chunk(frame.id, 0, "half"))
            worker.die()

    half = {"stages": ["text_model"], "current": "text_model", "value": 0.5}
    loaded = [
        {"status": "loading"}, {"status": "loading", "progress": half},
        {"status": "loaded", "info": {"meta": {"n_ctx": 8}}},
    ]  # fmt: skip

    async def check(supervisor: Supervisor) -> None:
        model = supervisor.find("m")
        found: list[Any] = []
        with supervisor.events.heard("m") as events:

            async def hear(status: str) -> list[Any]:
                found.clear()
                while not found or found[-1]["status"] != status:
                    found.extend(event.data for event in await events.next())
                return found

            supervisor.begin_load(model)
            *first, failed = await hear("unloaded")
            assert first == loaded[:2]
            assert failed["failed"] is True
            assert failed["error"] == "m cannot be loaded: it is broken.gguf"
            model.backoff = Backoff()
            fails.extend([False, False])
            supervisor.begin_load(model)
            assert await hear("loaded") == loaded
            model.backoff = Backoff()
            with pytest.raises(ApiError):
                await asked(supervisor)
            assert await hear("unloaded") == [{"status": "unloaded"}]
            await hear("loaded")
            supervisor.begin_unload(model)
            assert await hear("unloaded") == [{"status": "unloading"}, {"status": "unloaded"}]

    run(FakeLauncher(load_in_parts), check)


def test_a_request_without_output_is_retried(run: Callable[..., None]) -> None:
    """Its worker dies before it has sent anything: a new one is started, and answers it."""
    launcher = FakeLauncher(answering("before"))

    async def check(supervisor: Supervisor) -> None:
        (frame,) = await asked(supervisor)
        assert frame.value == "whole"
        assert (len(launcher.workers), supervisor.n_restarts) == (2, 1)

    run(launcher, check)


def test_a_request_with_output_is_not_retried(run: Callable[..., None]) -> None:
    """Its worker dies in the middle: what has come is there, then the error; the model restarts by itself."""
    launcher = FakeLauncher(answering("after"))

    async def check(supervisor: Supervisor) -> None:
        model = supervisor.find("m")
        asking = supervisor.ask(model, lambda id_: frames.Call(id_, "tokenize", {}), b"a")
        assert (await anext(asking)).content == "half"
        with pytest.raises(ApiError) as died:
            await anext(asking)
        assert (died.value.status, died.value.code) == (503, "worker_died")
        await until(lambda: model.ready)
        assert len(launcher.workers) == 2

    run(launcher, check)


def test_a_request_at_two_deaths_is_refused(run: Callable[..., None]) -> None:
    """It gets an error after the second death, and is refused from then on; other requests are answered."""
    launcher = FakeLauncher(answering("before", "before"))

    async def check(supervisor: Supervisor) -> None:
        for code in ("worker_died", "request_quarantined"):
            with pytest.raises(ApiError) as refused:
                await asked(supervisor)
            assert refused.value.code == code
        (frame,) = await asked(supervisor, b"other")
        assert frame.value == "whole"
        assert supervisor.n_restarts == 2

    run(launcher, check)


def test_a_worker_that_does_not_respond_is_killed(run: Callable[..., None]) -> None:
    """Without a heartbeat for ``worker_seconds`` it is killed, which counts as a death, and restarted."""
    launcher = FakeLauncher(answering(), heartbeats=False)

    async def check(supervisor: Supervisor) -> None:
        await supervisor.load(supervisor.find("m"))
        await until(lambda: len(launcher.workers) == 2)
        assert launcher.workers[0].killed
        assert supervisor.n_restarts >= 1

    run(launcher, check, worker_seconds=0.5)


def test_a_model_that_cannot_be_loaded(run: Callable[..., None]) -> None:
    """Each request is told why; after some failures it is told to come later, and no worker is started for it."""

    def answer(worker: FakeWorker, frame: Any) -> None:
        worker.send(frames.Failed(0, 500, "no such thing"))

    launcher = FakeLauncher(answer)

    async def check(supervisor: Supervisor) -> None:
        model = supervisor.find("m")
        for _ in range(2):
            with pytest.raises(ApiError, match="no such thing") as refused:
                await asked(supervisor)
            assert (refused.value.status, refused.value.code) == (503, "model_not_loaded")
        assert model.status == "failed"
        for _ in range(3):
            model.backoff.count_death()
        with pytest.raises(ApiError, match="no such thing") as later:
            await asked(supervisor)
        assert later.value.code == "model_failed"
        assert 5 <= int(later.value.headers["Retry-After"]) <= 8
        assert len(launcher.workers) == 2
        assert supervisor.n_restarts == 0

    run(launcher, check)


def test_a_load_that_takes_too_long(run: Callable[..., None]) -> None:
    """It is given up after ``load_seconds``, and its process is ended."""
    launcher = FakeLauncher(lambda _worker, _frame: None)

    async def check(supervisor: Supervisor) -> None:
        with pytest.raises(ApiError) as late:
            await asked(supervisor)
        assert (late.value.status, late.value.code) == (503, "load_timeout")
        await until(lambda: launcher.workers[0].poll() is not None)

    run(launcher, check, load_seconds=0.2)


def test_a_load_that_is_given_up_while_its_process_starts(run: Callable[..., None]) -> None:
    """The process is ended when it is there."""
    launcher = FakeLauncher(answering())
    gate, is_launching = threading.Event(), threading.Event()

    def launch(spec: Mapping[str, Any]) -> Launched:
        is_launching.set()
        gate.wait(30)
        return launcher.launch(spec)

    async def check(supervisor: Supervisor) -> None:
        del supervisor
        worker = WorkerProcess("m", {}, lambda _worker: None, launch)
        starting = asyncio.create_task(worker.start(30, 30))
        await until(is_launching.is_set)
        starting.cancel()
        await asyncio.wait({starting})
        gate.set()
        await until(lambda: bool(launcher.workers) and launcher.workers[0].poll() is not None)

    run(launcher, check)


def test_what_passes_is_told_when_to_come_again(run: Callable[..., None]) -> None:
    """A failure with 503 that a worker sends has Retry-After, as those of the server have; one with 400 has not."""

    def answer(worker: FakeWorker, frame: Any) -> None:
        if isinstance(frame, frames.LoadModel):
            worker.send(frames.Loaded({}))
        elif isinstance(frame, frames.Call):
            worker.send(frames.Failed(frame.id, 503 if frame.arguments else 400, "no"))

    async def check(supervisor: Supervisor) -> None:
        for arguments, headers in (({"a": 1}, {"Retry-After": "1"}), ({}, {})):
            asking = supervisor.ask(supervisor.find("m"), lambda id_: frames.Call(id_, "embed", arguments), b"a")  # noqa: B023
            with pytest.raises(ApiError) as refused:
                await anext(asking)
            assert refused.value.headers == headers

    run(FakeLauncher(answer), check)
