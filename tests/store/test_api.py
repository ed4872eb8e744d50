"""Paths and names: what stands for a model, and where the cache is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offgrid_llama import store
from offgrid_llama.errors import StoreError, UnknownModelError

# ------------------------------------------------------------------------------------------------------------ paths


def test_a_file_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path to an existing file works wherever a name does, and a folder of a model's name is not in the way."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OFFGRID_LLAMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tinyllama").write_bytes(b"GGUF")
    (tmp_path / "gemma-3-270m").mkdir()
    assert store.resolve("tinyllama") == tmp_path / "tinyllama"
    assert store.resolve(Path("tinyllama")) == tmp_path / "tinyllama"
    assert store.resolve("~/tinyllama") == tmp_path / "tinyllama"
    with pytest.raises(StoreError, match=r"gemma-3-270m .* is not in the cache"):
        store.resolve("gemma-3-270m", download=False)


@pytest.mark.parametrize(
    "name", ["smollm2.gguf", "dir/model", "./gemma-3-270m", Path("gemma-3-270m"), "x" * 5000 + "/y"]
)
def test_a_path_to_nothing_says_that_the_file_does_not_exist(name: str | Path) -> None:
    with pytest.raises(UnknownModelError, match="does not exist"):
        store.resolve(name)


def test_wrong_arguments_are_type_errors(tmp_path: Path) -> None:
    for bad in (None, 7, b"tiny"):
        with pytest.raises(TypeError, match="name must be"):
            store.resolve(bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be"):
        store.pull(Path("tiny"))  # type: ignore[arg-type]
    with pytest.raises(UnknownModelError, match="is a folder"):
        store.resolve(tmp_path)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OFFGRID_LLAMA_CACHE, else XDG_CACHE_HOME if absolute, else ~/.cache; read anew at each call."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OFFGRID_LLAMA_CACHE", "~/own")
    assert store.cache_dir() == tmp_path / "own"
    monkeypatch.setenv("OFFGRID_LLAMA_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert store.cache_dir() == tmp_path / "xdg" / "offgrid-llama"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert store.cache_dir() == tmp_path / ".cache" / "offgrid-llama"
    assert store.cached() == {}
    assert store.remove("tinyllama") == 0
    assert list(tmp_path.iterdir()) == []


def test_import_is_cheap() -> None:
    """The store loads what is slow, or starts something, only when it downloads."""
    code = (
        "import sys, offgrid_llama; before = set(sys.modules); import offgrid_llama.store;"
        "print(*[m for m in ('huggingface_hub', 'filelock', 'subprocess', 'zipfile', 'tempfile') if m in"
        " set(sys.modules) - before])"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout == b"\n"
    )
