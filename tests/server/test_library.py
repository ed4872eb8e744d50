"""Models that clients pull, copy and delete, without a network and without workers."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from ollama import ProgressResponse

from helpers.official import check
from offgrid_llama import store
from offgrid_llama.errors import DownloadError, UnknownModelError
from offgrid_llama.server import ModelSettings, Settings, downloads
from offgrid_llama.server.admission import Admission
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.library import Library
from offgrid_llama.server.supervision.supervisor import Supervisor

Progress = Callable[[int, "int | None"], object]


def both_halves(progress: Progress) -> None:
    progress(5, 10)
    progress(10, 10)


class Store:
    """A store that downloads what a test says, by the functions of ``offgrid_llama.store``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.pulled: list[str] = []
        self.removed: list[str] = []
        self.in_cache = ["a", "hf:org/repo/b.gguf@main"]
        self.steps: Callable[[Progress], None] = both_halves
        for name in ("pull", "remove", "resolve", "cached"):
            monkeypatch.setattr(store, name, getattr(self, name))

    def pull(self, name: str, *, progress: Progress) -> Path:
        self.steps(progress)
        self.pulled.append(name)
        path = self.folder / f"{name.replace('/', '-')}.gguf"
        path.touch()
        return path

    def resolve(self, name: str, **_: Any) -> Path:
        path = self.folder / f"{name.replace('/', '-')}.gguf"
        if not path.exists():
            raise UnknownModelError(f"unknown model {name}")
        return path

    def entry(self, name: str) -> None:
        if name == "nope":
            raise UnknownModelError("unknown model")

    def remove(self, name: str) -> int:
        self.removed.append(name)
        return 0

    def cached(self) -> dict[str, Any]:
        return dict.fromkeys(self.in_cache)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    monkeypatch.setattr(downloads, "PROGRESS_SECONDS", 0.01)
    return Store(monkeypatch, tmp_path)


def with_library(check_it: Callable[[Library, Supervisor, Admission], Any], **settings: Any) -> None:
    """Run a check with a library that is allowed."""

    async def main() -> None:
        made = Settings(**{"manage_models": True, "models": [ModelSettings("own")], **settings})
        supervisor, admission = Supervisor(made), Admission(made)
        await asyncio.wait_for(check_it(Library(made, supervisor, admission), supervisor, admission), 30)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "of_store", "offered"),
    [
        ("smollm2:360m", "smollm2:360m", "smollm2:360m"), ("x:latest", "x", "x:latest"),
        ("hf:org/repo/b.gguf@main", "hf:org/repo/b.gguf@main", "hf:org/repo/b.gguf"),
        ("hf.co/org/repo/b.gguf", "hf:org/repo/b.gguf", "hf.co/org/repo/b.gguf"),
        ("HuggingFace.co/org/repo/b.gguf", "hf:org/repo/b.gguf", "HuggingFace.co/org/repo/b.gguf"),
    ],
)  # fmt: skip
def test_a_pull(fake: Store, monkeypatch: pytest.MonkeyPatch, name: str, of_store: str, offered: str) -> None:
    """It tells how far it is, in Ollama's words, and then the model is there under the name that was asked for."""
    monkeypatch.setattr(
        downloads, "PROGRESS_SECONDS", 60.0
    )  # the second half replaces the first, however late it comes

    async def check_it(models: Library, supervisor: Supervisor, admission: Admission) -> None:
        reports = [report async for report in models.pull(name)]
        for report in reports:
            check(ProgressResponse, report)
        assert [report["status"].split()[0] for report in reports] == ["pulling", "pulling", "success"]
        assert (reports[1]["completed"], reports[1]["total"]) == (10, 10)
        assert reports[1]["digest"].startswith("sha256:")
        assert fake.pulled == [of_store]
        model = supervisor.find(offered)
        assert (model.settings.model, model.settings.n_parallel) == (of_store, 8)
        with admission.request("", model.name, 8):
            pass
        assert [report["status"] async for report in models.pull(name)][-1] == "success"
        assert len(supervisor.models) == 2

    with_library(check_it, max_queue=1)


@pytest.mark.parametrize(
    ("error", "status"), [(UnknownModelError("unknown"), 404), (DownloadError("broken"), 500), (OSError("full"), 500)]
)
def test_a_pull_that_fails(fake: Store, error: Exception, status: int) -> None:
    """It is told why, and no model is offered."""

    def fail(_: Progress) -> None:
        raise error

    async def check_it(models: Library, supervisor: Supervisor, _: Admission) -> None:
        fake.steps = fail
        with pytest.raises(ApiError) as caught:
            [report async for report in models.pull("x")]
        assert caught.value.status == status
        assert list(supervisor.models) == ["own"]

    with_library(check_it)


@pytest.mark.parametrize("stops", [False, True])
def test_a_pull_that_is_given_up(fake: Store, stops: bool) -> None:
    """The download ends with its client, and with the server."""
    ended = threading.Event()
    ends: list[BaseException] = []

    def for_ever(progress: Progress) -> None:
        try:
            while not ended.wait(0.01):
                progress(1, None)
        except BaseException as error:
            ends.append(error)
            ended.set()
            raise

    async def check_it(models: Library, _: Supervisor, admission: Admission) -> None:
        fake.steps = for_ever
        async with aclosing(models.pull("x")) as reports:
            assert (await anext(reports))["status"] == "pulling manifest"
            assert (await anext(reports))["completed"] == 1
            if stops:
                admission.stopping = True
                with pytest.raises(ApiError):
                    await anext(reports)
        assert await asyncio.to_thread(ended.wait, 10)
        assert len(ends) == 1

    with_library(check_it)


def test_a_download_in_the_background(fake: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on without a client, also behind one that has pulled the same model and left; it is offered at its end."""
    monkeypatch.setattr(store, "entry", fake.entry)
    goes_on = threading.Event()

    def wait(progress: Progress) -> None:
        while not goes_on.wait(0.01):
            progress(1, 2)

    async def check_it(models: Library, supervisor: Supervisor, _: Admission) -> None:
        fake.steps = wait
        with supervisor.events.heard("hf.co/org/repo/b.gguf") as events:
            models.download("hf.co/org/repo/b.gguf@main")
            with pytest.raises(ApiError) as twice:
                models.download("hf.co/org/repo/b.gguf")
            assert twice.value.code == "model_exists"
            async with aclosing(models.pull("hf.co/org/repo/b.gguf@main")) as reports:
                await anext(reports)
                assert (await anext(reports))["completed"] == 1
            goes_on.set()
            kinds: list[str] = []
            while "download_finished" not in kinds:
                kinds += [event.kind for event in await events.next()]
        assert fake.pulled == ["hf:org/repo/b.gguf@main"]
        model = supervisor.find("hf.co/org/repo/b.gguf")
        assert model.settings.model == "hf:org/repo/b.gguf@main"
        assert models.can_delete(model)
        assert not models.can_delete(supervisor.find("own"))
        for wrong, code in (("hf.co/org/repo/b.gguf", "model_exists"), ("nope", "model_not_found")):
            with pytest.raises(ApiError) as caught:
                models.download(wrong)
            assert (caught.value.status, caught.value.code) == (400, code)
        await models.close()

    with_library(check_it)


def test_copies(fake: Store) -> None:
    """A copy is a model of its own with the same file, which is deleted with the last of them."""

    async def check_it(models: Library, supervisor: Supervisor, _: Admission) -> None:
        [report async for report in models.pull("x")]
        models.copy(supervisor.find("x"), "y:1")
        models.copy(supervisor.find("y:1"), "z")
        assert {model.settings.model for name, model in supervisor.models.items() if name != "own"} == {"x"}
        for wrong in ("own", "X:latest", "a b", ""):
            with pytest.raises(ApiError):
                models.copy(supervisor.find("x"), wrong)
        for name in ("x", "y:1", "z"):
            assert fake.removed == []
            await models.delete(supervisor.find(name))
        assert fake.removed == ["x"]
        assert list(supervisor.models) == ["own"]
        with pytest.raises(ApiError) as caught:
            await models.delete(supervisor.find("own"))
        assert caught.value.status == 403

    with_library(check_it)


def test_what_is_cached(fake: Store) -> None:
    """It is offered from the start, under the names that the command line would give; without the setting it is not."""
    del fake
    for allowed, names in ((True, ["own", "a", "org/repo/b.gguf"]), (False, ["own"])):

        async def check_it(
            models: Library, supervisor: Supervisor, _: Admission, allowed: bool = allowed, names: Any = names
        ) -> None:
            models.offer_cached()
            assert list(supervisor.models) == names
            if not allowed:
                with pytest.raises(ApiError, match="pull models: its setting manage_models"):
                    models.check_allowed("pull")

        with_library(check_it, manage_models=allowed)


def test_a_reload(fake: Store) -> None:
    """Models that have come to the cache are offered, and those that are gone are not. Models of the settings stay."""

    async def check_it(models: Library, supervisor: Supervisor, _: Admission) -> None:
        for name in fake.in_cache:
            fake.pull(name, progress=lambda *_: None)
        models.offer_cached()
        (fake.folder / "a.gguf").unlink()
        fake.in_cache = ["hf:org/repo/b.gguf@main", "c"]
        fake.pull("c", progress=lambda *_: None)
        with supervisor.events.heard(None) as events:
            await models.reload()
            await models.reload()
            told = [(event.model, event.kind) for event in await events.next()]
        assert told == [("*", "models_reload"), ("a", "model_remove")]
        assert list(supervisor.models) == ["own", "org/repo/b.gguf", "c"]

    async def check_without(models: Library, supervisor: Supervisor, _: Admission) -> None:
        await models.reload()
        assert list(supervisor.models) == ["own"]

    with_library(check_it)
    with_library(check_without, manage_models=False)
