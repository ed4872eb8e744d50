"""``offgrid-llama speak``: a text as a WAV file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import soundfile

from helpers.commands import Cli
from helpers.speech import SAMPLE_RATE, write_speaker

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("typer")


def test_speak(cli: Cli, tmp_path: Path) -> None:
    """To a file; the same seed gives the same one, and a voice another. What was cut is said."""
    write_speaker(tmp_path / "model.gguf", tmp_path / "mmproj.gguf", eos_bias=-100.0)
    asked: list[str | Path] = [
        "speak",
        "hello you",
        "-m",
        tmp_path / "model.gguf",
        "--mmproj",
        tmp_path / "mmproj.gguf",
    ]
    out, err = cli(*asked, "--seed", "1", "-o", tmp_path / "a.wav")
    assert out == ""
    assert "speaking" in err
    sound, rate = soundfile.read(tmp_path / "a.wav")
    assert rate == SAMPLE_RATE
    assert len(sound) > 4 * SAMPLE_RATE
    cli(*asked, "--seed", "1", "-o", tmp_path / "b.wav")
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "a.wav").read_bytes()
    soundfile.write(tmp_path / "voice.wav", np.sin(np.arange(SAMPLE_RATE) / 20) / 3, SAMPLE_RATE)
    cli(*asked, "--seed", "1", "--voice", tmp_path / "voice.wav", "-o", tmp_path / "c.wav")
    assert (tmp_path / "c.wav").read_bytes() != (tmp_path / "a.wav").read_bytes()
    _, err = cli(*asked, "--max-seconds", "1", "-o", tmp_path / "d.wav")
    assert "was cut after 1.0 s" in err


def test_what_is_refused(cli: Cli, tmp_path: Path) -> None:
    """A text of nothing, a language that the model does not know, a projector that is none: one line each."""
    write_speaker(tmp_path / "model.gguf", tmp_path / "mmproj.gguf")
    asked: list[str | Path] = ["-m", tmp_path / "model.gguf", "--mmproj", tmp_path / "mmproj.gguf"]
    _, err = cli("speak", " ", *asked, code=2)
    assert "nothing to say" in err
    _, err = cli("speak", "hello", *asked, "--language", "de", code=2)
    assert "language" in err
    _, err = cli("speak", "hello", "-m", tmp_path / "model.gguf", "--mmproj", tmp_path / "model.gguf", code=4)
    assert "Traceback" not in err
