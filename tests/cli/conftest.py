"""The program with the default model in its cache, and files that are no models."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from helpers.commands import COMMAND, ENVIRONMENT, Cli

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


@pytest.fixture(scope="module")
def cli(smollm2_path: Path) -> Cli:
    """Run the program with the default model in its cache."""
    assert smollm2_path.is_file()

    def run(
        *args: str | Path, code: int = 0, stdin: bytes = b"", env: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        done = subprocess.run(
            [*COMMAND, *args],
            input=stdin,
            capture_output=True,
            timeout=120,
            env={**ENVIRONMENT, **(env or {})},
            check=False,
        )
        out, err = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == code, f"{out}\n{err}"
        assert "Traceback" not in err
        assert "\x1b" not in out + err
        return out, err

    return run


@pytest.fixture
def broken(tmp_path: Path, smollm2_path: Path) -> dict[str, Path]:
    """Files that are no models, each for a reason of its own."""
    files = {"missing": tmp_path / "missing.gguf", "folder": tmp_path}
    contents = {
        "text": b"I am no model\n",
        "empty": b"",
        "header": smollm2_path.read_bytes()[:5000],
        "cut": smollm2_path.read_bytes()[:3_000_000],
        "bad.gbnf": b'root ::= "a" (',
    }
    for name, content in contents.items():
        files[name] = tmp_path / name
        files[name].write_bytes(content)
    return files
