"""``offgrid-llama models``, ``pull`` and ``remove``."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING

import pytest

from helpers.commands import Cli
from offgrid_llama import store

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("typer")


def test_models_are_listed(cli: Cli) -> None:
    """The catalog and the cache, for people and for programs."""
    out, _ = cli("models")
    assert re.search(r"^smollm2-135m-instruct +98\.4 MB +Q4_1 +8,192 +Apache-2\.0 +PyPI +yes$", out, re.MULTILINE)
    listed = json.loads(cli("models", "--json")[0])
    assert listed["default"] == store.DEFAULT_MODEL
    assert listed["cache_dir"] == str(store.cache_dir())
    assert {model["name"] for model in listed["models"]} >= {entry.name for entry in store.catalog()}
    (default,) = (model for model in listed["models"] if model["name"] == store.DEFAULT_MODEL)
    assert default["path"] == str(store.resolve())


def test_pull_and_remove(cli: Cli, tmp_path: Path, smollm2_path: Path) -> None:
    """Pull prints the path, remove deletes the file and refuses to do it twice."""
    there = tmp_path / "models" / "smollm2-135m-instruct.gguf"
    there.parent.mkdir()
    shutil.copy(smollm2_path, there)  # right bytes at the right place: pull takes them
    env = {"OFFGRID_LLAMA_CACHE": str(tmp_path)}
    assert cli("pull", env=env)[0] == f"{there}\n"
    assert json.loads(cli("pull", "smollm2-135m", "--json", env=env)[0])["size"] == smollm2_path.stat().st_size
    assert cli("remove", "smollm2-135m", env=env)[0] == "removed smollm2-135m: 98.4 MB\n"
    assert not there.exists()
    assert "is not in the cache" in cli("remove", "smollm2-135m", code=3, env=env)[1]
