"""Facts from the files of models."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helpers.twin import LETTERS, write_tiny_llama
from offgrid_llama import start
from offgrid_llama.server import ModelSettings
from offgrid_llama.server.supervision import inspector
from offgrid_llama.server.supervision.inspector import Inspector


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Three small models, the second of which is none."""
    paths = {name: tmp_path / f"{name}.gguf" for name in "abc"}
    for path in paths.values():
        write_tiny_llama(path, more=LETTERS)
    paths["b"].write_bytes(b"GGUF")
    return paths


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The processes that are run."""
    found: list[Any] = []
    run: Callable[..., Any] = subprocess.run

    def noted(*args: Any, **options: Any) -> Any:
        found.append(options["input"])
        return run(*args, **options)

    monkeypatch.setattr(subprocess, "run", noted)
    return found


def settings(files: dict[str, Path], **more: Any) -> list[ModelSettings]:
    return [ModelSettings(name, str(path), **more) for name, path in files.items()]


def test_each_file_is_read_once(files: dict[str, Path], runs: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    """Also one that is no model, of which the log tells; a file that changes, or gets another template, is read again."""

    async def main() -> None:
        known = Inspector()
        models = [*settings(files), ModelSettings("nothing", str(files["a"].parent / "nothing.gguf"))]
        for _ in range(2):
            found = await known.facts(models)
            assert [facts is None for facts in found] == [False, True, False, True]
        assert len(runs) == 1
        write_tiny_llama(files["b"], more={**LETTERS, "general.name": "B"})
        (facts,) = await known.facts(models[1:2])
        assert facts is not None
        assert facts.metadata["general.name"] == "B"
        (facts,) = await known.facts(settings({"a": files["a"]}, template="{{ messages }}"))
        assert facts is not None
        assert facts.chats
        assert len(runs) == 3

    with caplog.at_level(logging.WARNING, "offgrid_llama.server"):
        asyncio.run(main())
    (told,) = caplog.messages
    assert "b.gguf is no model" in told


def test_a_file_that_ends_the_process(
    files: dict[str, Path], runs: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are read by further processes, and it is not tried again."""
    program = (
        "import os, runpy, sys, offgrid_llama.worker.facts as facts\n"
        "read = facts.facts_of\n"
        "facts.facts_of = lambda file, *more: os._exit(7) if file.endswith('b.gguf') else read(file, *more)\n"
        "facts.main()"
    )
    monkeypatch.setattr(start, "command", lambda *_: [sys.executable, "-c", program])

    async def main() -> None:
        known = Inspector()
        for _ in range(2):
            found = await known.facts(settings(files))
            assert [facts is None for facts in found] == [False, True, False]
        assert len(runs) == 2

    with caplog.at_level(logging.ERROR, "offgrid_llama.server"):
        asyncio.run(main())
    (told,) = caplog.messages
    assert "the header of" in told
    assert "b.gguf" in told


def test_a_process_that_hangs(files: dict[str, Path], runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, and what it has told counts."""
    program = "import time, sys; sys.stdin.read(); print('\"no\"', flush=True); time.sleep(60)"
    monkeypatch.setattr(start, "command", lambda *_: [sys.executable, "-c", program])
    monkeypatch.setattr(inspector, "START_SECONDS", 1.0)
    monkeypatch.setattr(inspector, "FILE_SECONDS", 0.1)
    assert asyncio.run(Inspector().facts(settings(files))) == [None] * 3
    assert len(runs) == 2
