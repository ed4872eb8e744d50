"""Processes of ours, started in a folder with files that have the names of modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from offgrid_llama import start
from offgrid_llama.server.supervision.launch import Launcher

TRAP = "import os; os.write(2, b'imported ' + __name__.encode() + b'\\n'); os._exit(99)\n"


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which every module of the standard library and some packages have a false copy."""
    for name in (*sys.stdlib_module_names, "msgspec", "numpy", "cffi", "jinja2", "typer", "rich", "fastapi", "pip"):
        (tmp_path / f"{name}.py").write_text(TRAP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_a_worker_imports_nothing_from_the_working_folder(trapped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts and ends as elsewhere, also where the server has the working folder on its own path."""
    monkeypatch.syspath_prepend(str(trapped))
    monkeypatch.syspath_prepend("")
    process, ours = Launcher().prepare()
    ours.close()
    assert process.wait(60) == 0


def test_a_program_of_ours_imports_nothing_from_the_working_folder(trapped: Path) -> None:
    """``start.command`` runs modules with their arguments, and ``pip`` is the one that is installed."""
    del trapped
    found = run(*start.command("pip", "--version"), PYTHONPATH=os.pathsep.join(start.named_path()))
    assert found.stdout.startswith("pip "), found.stderr
    found = run(*start.command("offgrid_llama.cli", "--help"))
    assert "serve" in found.stdout, found.stderr


def test_python_m_forgets_the_working_folder(trapped: Path) -> None:
    """``python -m offgrid_llama.cli`` imports from there at most what Python itself needs before the first line of ours."""
    own = run(sys.executable, "-I", "-c", "import runpy, sys; print(*sys.modules)").stdout.split()
    for name in own:
        (trapped / f"{name}.py").unlink(missing_ok=True)
    for option in ("-m offgrid_llama.cli", "-Wignore -moffgrid_llama.cli"):
        found = run(sys.executable, *option.split(), "--help")
        assert "serve" in found.stdout, found.stderr


def test_the_user_may_name_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PYTHONPATH counts as it is given, but for its empty entries, by which Python means the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", str(tmp_path), "/elsewhere"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "/elsewhere"]))
    assert start.named_path() == ["/elsewhere"]
    assert start.search_path() == ["/elsewhere"]
    monkeypatch.setenv("PYTHONPATH", ".")
    assert start.search_path() == [str(tmp_path), "/elsewhere"]
    (tmp_path / "mine.py").write_text("print('mine')")
    package = str(Path(start.__file__).parents[1])
    assert run(*start.command("mine"), PYTHONPATH=os.pathsep.join([".", package])).stdout == "mine\n"
