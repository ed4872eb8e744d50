"""``download=``: what a caller hears of a download, and how a caller forbids or watches it."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.sources import BYTES, needs_pip, shelf
from offgrid_llama import store
from offgrid_llama.errors import StoreError, UnknownModelError


class Stream(io.StringIO):
    """A stderr that is a terminal, or is not."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@needs_pip
@pytest.mark.usefixtures("index")
@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_download_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, terminal: bool, rich: bool
) -> None:
    """By default one line of the log has name, size, licence and places; progress is shown on a terminal only."""
    stderr = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.progress", None)
    here = shelf(tmp_path)
    path = here.resolve("tiny")
    (record,) = (record for record in caplog.records if record.levelno >= logging.WARNING)
    assert record.name == "offgrid_llama.store"
    for word in ("Tiny-1.0", "3 MB", "license: ", "whole==1.0", str(path.parent)):
        assert word in record.getMessage()
    assert ("downloading Tiny-1.0" in stderr.getvalue()) == terminal
    caplog.clear()
    assert here.resolve("tiny") == path
    assert caplog.records == []


@needs_pip
@pytest.mark.usefixtures("index")
def test_a_download_is_watched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A function gets the bytes so far and in all, and nothing else is said."""
    seen: list[tuple[int, int | None]] = []
    shelf(tmp_path).resolve("tiny", download=lambda *step: seen.append(step))
    assert (seen[0], seen[-1]) == ((0, len(BYTES)), (len(BYTES), len(BYTES)))
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("download", ["never", False])
def test_a_download_is_forbidden(tmp_path: Path, download: Any) -> None:
    """Then the error names the model, its size and licence, and how to get it."""
    with pytest.raises(StoreError, match=r"Tiny-1.0 \(3 MB, license: .*`offgrid-llama pull Tiny-1.0`"):
        shelf(tmp_path).resolve("tiny", download=download)


async def never_awaited(done: int, total: int | None) -> None:
    """Stand for a callback that is async."""


WRONG = [("no", ValueError), (5, TypeError), (None, TypeError), (never_awaited, TypeError)]


@pytest.mark.parametrize(("download", "error"), WRONG)
def test_wrong_values(tmp_path: Path, download: Any, error: type[Exception]) -> None:
    """Anything else is refused by the argument's name, also where the file is there."""
    with pytest.raises(error, match="download must be"):
        shelf(tmp_path).resolve("tiny", download=download)
    (tmp_path / "file.gguf").touch()
    with pytest.raises(error, match="download must be"):
        store.resolve(tmp_path / "file.gguf", download=download)


@pytest.mark.parametrize(
    "use",
    [
        lambda name: og.Model(name, download="never"),
        lambda name: og.Engine(name, download="never"),
        lambda name: og.memory_plan(name, download="never"),
    ],
    ids=["Model", "Engine", "memory_plan"],
)
def test_every_taker_of_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Any) -> None:
    """Whatever takes a model's name takes ``download``."""
    monkeypatch.setenv("OFFGRID_LLAMA_CACHE", str(tmp_path))
    with pytest.raises(StoreError, match="may not be downloaded"):
        use("gemma-3-270m")


def test_a_draft_model_is_not_downloaded_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2: og.Model
) -> None:
    """``Engine(download=)`` is for the draft model, too."""
    monkeypatch.setenv("OFFGRID_LLAMA_CACHE", str(tmp_path))
    with pytest.raises(StoreError, match="may not be downloaded"):
        og.Engine(smollm2, draft_model="gemma-3-270m", download="never")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF/FILE.gguf"),
        ("org/repo/sub/file-Q4_0.gguf", "hf:org/repo/sub/file-Q4_0.gguf"),
        ("https://huggingface.co/org/repo/resolve/main/sub/x.gguf?download=true", "hf:org/repo/sub/x.gguf@main"),
        ("hf:org/repo", "hf:org/repo/FILE.gguf names a file of it"),
        ("./models/file.gguf", "named without"),
        ("models/", "named without"),
        ("/models/file", "named without"),
    ],
)
def test_a_name_of_the_hub(name: str, hint: str) -> None:
    """A path that may be a repository of the hub is told with the name that would find it."""
    with pytest.raises(UnknownModelError) as caught:
        store.resolve(name)
    assert hint in str(caught.value)
