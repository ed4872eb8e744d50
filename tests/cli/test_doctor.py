"""``offgrid-llama doctor``: the proof that it works."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

import offgrid_llama as og
from helpers.commands import Cli

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("typer")


def test_doctor_proves_that_it_works(cli: Cli, tmp_path: Path) -> None:
    """Versions, build, devices, features, models, extras and one decode; without a model it says how to get one."""
    out, _ = cli("doctor")
    assert re.search(r"^proof +smollm2-135m-instruct\.gguf: 16 tokens, [\d.]+ tokens/s$", out, re.MULTILINE)
    assert out.endswith("all is well\n")
    report = json.loads(cli("doctor", "--json", env={"OFFGRID_LLAMA_CACHE": str(tmp_path)})[0])
    assert report["ok"] is True
    assert report["proof"] == {
        "skipped": "smollm2-135m-instruct is not in the cache", "cure": "offgrid-llama pull smollm2-135m-instruct",
    }  # fmt: skip
    assert report["versions"]["offgrid_llama"] == og.__version__
    assert report["devices"][0]["memory_total"] > 0
    assert any(flag.startswith("GGML_CUDA=") for flag in report["build"]["flags"])
    assert report["extras"]["cli"]["cure"] is None


def test_doctor_fails_with_the_proof(cli: Cli, broken: dict[str, Path]) -> None:
    """A part that does not work is named, the other parts are shown, and the exit code is 1."""
    out, err = cli("doctor", "--model", broken["cut"], code=1)
    assert re.search(r"^proof +BROKEN: .* is cut off", out, re.MULTILINE)
    assert "CPU features" in out
    assert err == ""
