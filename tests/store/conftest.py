"""A package index, a hub, and stores that know them."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from helpers.sources import BYTES, Server, shelf, wheel
from offgrid_llama import store
from offgrid_llama.store import hub as hub_module
from offgrid_llama.store import transfer as transfer_module

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.gate.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a folder of wheels, all that pip knows: ``whole`` and, in two pieces, ``front`` and ``back``."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    folder = tmp_path / "index"
    folder.mkdir()
    pieces = {"whole": BYTES, "front": BYTES[:1_234_567], "back": BYTES[1_234_567:]}
    for package, data in pieces.items():
        name, content = wheel(package, {f"{package}/data.bin": data})
        (folder / name).write_bytes(content)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def slow_index(index: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Serve the same wheels over HTTP, each held back after its first half until the test opens the gate."""
    server.wheels = {file.name: file.read_bytes() for file in index.iterdir()}
    server.gate.clear()
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple/")
    return server


@pytest.fixture
def online(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> store.Store:
    """Make a store whose hub is the test's server, with no pause between tries and no token of the user."""
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub_module, "RETRY_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(transfer_module, "PROGRESS_MIN_SECONDS", 0.0)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    return shelf(tmp_path, endpoint=server.address)
