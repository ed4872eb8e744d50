"""Models downloaded, loaded, unloaded and deleted over HTTP, as llama-server's router has it, with the events of it all."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import pytest

from helpers.apps import Listening, ask, listening
from helpers.serving import events, wait_until
from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama import store
from offgrid_llama.errors import StoreError, UnknownModelError
from offgrid_llama.server import create_app


class Store:
    """A store whose downloads have a tiny model when a test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder = folder
        self.goes_on = threading.Event()
        self.removed: list[str] = []
        for name in ("pull", "remove", "resolve", "cached", "entry"):
            monkeypatch.setattr(store, name, getattr(self, name))

    def pull(self, name: str, *, progress: Callable[[int, int | None], object]) -> Path:
        progress(1, 2)
        while not self.goes_on.wait(0.01):
            progress(1, 2)
        write_tiny_llama(self.folder / name, more={**LETTERS, "tokenizer.ggml.add_bos_token": True})
        return self.folder / name

    def entry(self, name: str) -> None:
        if name == "nope":
            raise UnknownModelError("unknown model nope")

    def resolve(self, name: str, **_: Any) -> Path:
        if not (self.folder / name).exists():
            raise StoreError(f"{name} is not there")
        return self.folder / name

    def remove(self, name: str) -> int:
        self.removed.append(name)
        (self.folder / name).unlink()
        return 1

    def cached(self) -> dict[str, Any]:
        return {path.name: None for path in self.folder.iterdir()}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Store:
    return Store(monkeypatch, tmp_path)


@contextmanager
def managed(**settings: Any) -> Iterator[Listening]:
    """Run a server that ends as after SIGTERM: a client that has left without a reset would delay another end."""
    with listening(**{"manage_models": True, "page": False, **settings}) as server:
        yield server
        server.server.handle_exit(signal.SIGTERM, None)


@contextmanager
def subscribed(server: Listening) -> Iterator[Iterator[Any]]:
    """Subscribe to the events of a server."""
    with httpx.stream("GET", f"{server.url}/models/sse", timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        yield (msgspec.json.decode(event) for event in events(response))


def up_to(told: Iterator[Any], event: str, status: str | None = None) -> list[Any]:
    """Return the events up to one of a kind."""
    found: list[Any] = []
    for each in told:
        found.append(each)
        if each["event"] == event and status in (None, each.get("data", {}).get("status")):
            return found
    raise AssertionError(f"there is no {event} in {found}")


def asked(server: Listening, method: str, path: str, **options: Any) -> tuple[int, Any]:
    response = httpx.request(method, f"{server.url}{path}", timeout=30, **options)
    return response.status_code, response.json()


def listed(server: Listening, path: str = "/v1/models") -> dict[str, Any]:
    return {model["id"]: model for model in asked(server, "GET", path)[1]["data"]}


DONE = (200, {"success": True})


def test_the_life_of_a_model(fake: Store) -> None:
    """Downloaded, loaded, unloaded, deleted: each is begun by a request, told to all subscribers, and listed."""
    with managed() as server, subscribed(server) as told, subscribed(server) as as_well:
        assert asked(server, "POST", "/models", json={"model": "tiny"}) == DONE
        assert asked(server, "POST", "/models", json={"model": "tiny"})[0] == 400
        first = up_to(told, "download_progress")[-1]
        assert first == {"model": "tiny", "event": "download_progress", "data": {"tiny": {"done": 1, "total": 2}}}
        assert listed(server)["tiny"]["status"] == "downloading"
        assert listed(server)["tiny"]["progress"] == {"done": 1, "total": 2}
        assert asked(server, "GET", "/v1/models/tiny")[1]["status"] == "downloading"
        assert listed(server, "/models")["tiny"]["status"]["progress"] == {"tiny": {"done": 1, "total": 2}}
        fake.goes_on.set()
        assert [each["event"] for each in up_to(told, "download_finished")][-2:] == [
            "models_reload",
            "download_finished",
        ]
        assert listed(server)["tiny"]["status"] == "unloaded"
        assert listed(server, "/models")["tiny"]["status"] == {"value": "unloaded"}

        assert asked(server, "POST", "/models/unload", json={"model": "tiny"})[0] == 400
        assert asked(server, "POST", "/models/load", json={"model": "tiny"}) == DONE
        statuses = [each["data"]["status"] for each in up_to(told, "model_status", "loaded")]
        assert set(statuses[:-1]) == {"loading"}
        assert asked(server, "POST", "/models/load", json={"model": "tiny"})[0] == 400
        assert listed(server, "/models")["tiny"]["status"] == {"value": "loaded"}
        assert asked(server, "POST", "/completion", json={"model": "tiny", "prompt": "a", "n_predict": 2})[0] == 200
        assert asked(server, "POST", "/models/unload", json={"model": "tiny"}) == DONE
        assert [each["data"]["status"] for each in up_to(told, "model_status", "unloaded")] == ["unloading", "unloaded"]

        assert listed(server, "/models")["tiny"]["can_remove"] is True
        assert asked(server, "DELETE", "/models?model=tiny") == DONE
        assert up_to(told, "model_remove")[-1] == {"model": "tiny", "event": "model_remove"}
        assert (fake.removed, listed(server)) == (["tiny"], {})
        assert [each["event"] for each in up_to(as_well, "model_remove") if each["model"] == "*"] == ["models_reload"]


@pytest.mark.parametrize(
    ("method", "path", "options"),
    [
        ("POST", "/models/unload", {"json": {"model": "tiny"}}), ("POST", "/models/unload/tiny", {"json": {}}),
        ("DELETE", "/models?model=tiny", {}),
    ],
)  # fmt: skip
def test_a_download_is_cancelled(fake: Store, method: str, path: str, options: Any) -> None:
    """By an unload or a deletion of its name. No model is offered; Ollama's pull of it ends, too."""
    with managed() as server, subscribed(server) as told:
        with httpx.stream("POST", f"{server.url}/api/pull", json={"model": "tiny"}, timeout=30) as pull:
            lines = (msgspec.json.decode(line) for line in pull.iter_lines())
            assert next(lines)["status"] == "pulling manifest"
            assert next(lines)["completed"] == 1
            assert asked(server, method, path, **options)[0] == 200
            failed = up_to(told, "download_failed")[-1]["data"]
            assert failed["cancelled"] is True
            assert "cancelled" in list(lines)[-1]["error"]
        assert listed(server) == {}
        assert fake.removed == []


def test_what_is_refused(fake: Store) -> None:
    """Without the setting, each download and deletion; with it, wrong names, and the deletion of a model of the settings."""
    (fake.folder / "own").touch()
    for method, path, options in (
        ("POST", "/models", {"json": {"model": "tiny"}}), ("DELETE", "/models?model=own", {}),
    ):  # fmt: skip
        with managed(models=["own"], manage_models=False) as server:
            status, body = asked(server, method, path, **options)
            assert (status, body["error"]["code"]) == (403, "not_allowed")
            assert "manage_models" in body["error"]["message"]
    with managed(models=["own"]) as server:
        for model in ("nope", "own", "", "x" * 257):
            assert asked(server, "POST", "/models", json={"model": model})[0] == 400
        assert asked(server, "POST", "/models", json={})[0] == 400
        assert asked(server, "DELETE", "/models")[0] == 400
        assert asked(server, "DELETE", "/models?model=own")[0] == 403
        assert asked(server, "DELETE", "/models?model=nobody")[0] == 404
        assert asked(server, "POST", "/models/load", json={"model": "nobody"})[0] == 404
        assert asked(server, "POST", "/models/unload", json={"model": "nobody"})[0] == 404


def test_the_server_stops_with_subscribers(fake: Store) -> None:
    """Their streams end as whole answers; a download under way is cancelled. HEAD of the stream has an end, too."""
    ended = threading.Event()

    def read(response: httpx.Response) -> None:
        for _ in response.iter_raw():
            pass
        ended.set()

    with managed() as server:
        assert httpx.head(f"{server.url}/models/sse", timeout=30).status_code == 200
        with httpx.stream("GET", f"{server.url}/models/sse", timeout=30) as response:
            assert asked(server, "POST", "/models", json={"model": "tiny"}) == DONE
            reading = threading.Thread(target=read, args=(response,))
            reading.start()
            wait_until(lambda: listed(server)["tiny"]["progress"]["done"] == 1)
            server.server.handle_exit(signal.SIGTERM, None)
            reading.join(30)
            assert ended.is_set()
    assert not (fake.folder / "tiny").exists()


def test_a_model_that_its_load_downloads() -> None:
    """It is listed as one that is being downloaded, while it is."""
    app = create_app(models=["a"])
    model = app.state.server.supervisor.find("a")
    for progress, status in (((1, 2), "downloading"), (None, "unloaded")):
        model.fetching = SimpleNamespace(progress=progress)
        (told,) = ask(app, "GET", "/v1/models").json()["data"]
        assert told["status"] == status
        assert told.get("progress") == ({"done": 1, "total": 2} if progress else None)


def test_a_reload_of_the_list(fake: Store) -> None:
    """Models that have come to the cache are listed by either list once a client asks for that."""
    for path in ("/v1/models", "/models"):
        with managed() as server:
            (fake.folder / "came").touch()
            assert "came" not in listed(server, path)
            assert "came" in listed(server, f"{path}?reload=1")
            assert "came" in listed(server, path)
            (fake.folder / "came").unlink()
            assert "came" not in listed(server, f"{path}?reload=1")
