"""``offgrid-llama transcribe``: what is said in a sound."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

import offgrid_llama as og
from helpers.commands import Cli
from helpers.projectors import tone, write_meaning

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("typer")

WORDS = (" dog", " cat")


@pytest.fixture
def folder(tmp_path: Path, smollm2: og.Model) -> Path:
    """A folder with a projector that hears, and a sound of two words."""
    write_meaning(tmp_path / "mmproj.gguf", smollm2)
    parts = [np.concatenate([0.5 * tone(word, 20), np.zeros(3200, np.float32)]) for word in WORDS]
    soundfile.write(tmp_path / "talk.wav", np.concatenate(parts), 16000)
    return tmp_path


def test_formats(cli: Cli, folder: Path) -> None:
    """Text, subtitles and JSON; to stdout, or to a file. What is no result goes to stderr."""
    asked: list[str | Path] = [
        "transcribe", folder / "talk.wav", "--projector", folder / "mmproj.gguf", "--window-seconds", "1",
        "--instruction", "Repeat this word once:", "--n-ctx", "512", "--n-parallel", "2",
    ]  # fmt: skip
    out, err = cli(*asked)
    assert out.index("dog") < out.index("cat")
    assert "talk.wav" in err
    found = json.loads(cli(*asked, "--format", "json")[0])
    assert found["text"] + "\n" == out
    assert found["seconds"] == pytest.approx(2)
    assert found["segments"][1]["start"] == pytest.approx(1, abs=0.01)
    assert cli(*asked, "-f", "srt", "-o", folder / "talk.srt")[0] == ""
    assert (folder / "talk.srt").read_text().startswith("1\n00:00:00,000 --> ")
    assert cli(*asked, "-f", "vtt")[0].startswith("WEBVTT\n")


def test_what_is_refused(cli: Cli, folder: Path) -> None:
    """A file that is no sound, and a projector that is none: exit codes, one line each, and no traceback."""
    (folder / "text.wav").write_text("no sound")
    _, err = cli("transcribe", folder / "text.wav", "--projector", folder / "mmproj.gguf", code=1)
    assert "text.wav" in err
    _, err = cli("transcribe", folder / "talk.wav", "--projector", folder / "talk.wav", code=4)
    assert "Traceback" not in err
