"""Audio: what is read of a file without decoding it, and what is refused."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.twin import Array
from offgrid_llama.media.audio_header import read_header

RATE = 16000
TONE: Array = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)
FORMATS = ["WAV", "FLAC", "MP3"]


def encoded(kind: str, samples: Array = TONE, rate: int = RATE, **options: Any) -> bytes:
    """Return samples as a file, as libsndfile writes it."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, **options)
    return file.getvalue()


def wav(samples: int = 100, rate: int = RATE, claimed: int | None = None, bytes_a_frame: int = 2) -> bytes:
    """Return a WAV file of 16 bits that claims what it is told to."""
    body = bytes(2 * samples)
    layout = struct.pack("<HHIIHH", 1, 1, rate, rate * 2, bytes_a_frame, 16)
    length = len(body) if claimed is None else claimed
    return b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 16) + layout + b"data" + struct.pack("<I", length) + body


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_file_tells_its_length(kind: str, rate: int) -> None:
    """The length and the rate are known without a sample decoded; an encoder of MP3 fills up its frames."""
    audio = og.Audio(encoded(kind, np.tile(TONE, 3), rate))
    assert audio.sample_rate == rate
    assert audio.seconds == pytest.approx(3 * len(TONE) / rate, abs=0.2 if kind == "MP3" else 1e-6)


def test_every_kind_of_source(tmp_path: Path) -> None:
    """Bytes, a path and an open file are one sound; an array is one of its own."""
    data = encoded("WAV")
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with path.open("rb") as file:
        sounds = [og.Audio(source) for source in (data, path, str(path), file)]
    assert len({sound.id for sound in sounds}) == 1
    of_array = og.Audio(TONE, sample_rate=RATE)
    assert (of_array.seconds, of_array.sample_rate) == (1.0, RATE)
    assert og.Audio(TONE.tolist(), sample_rate=RATE).id == of_array.id
    assert og.Audio(-TONE, sample_rate=RATE).id != of_array.id
    assert og.Audio(np.stack([TONE, TONE], axis=1), sample_rate=RATE).seconds == 1.0
    assert og.Audio((TONE * 32767).astype(np.int16), sample_rate=RATE).seconds == 1.0


def test_a_stream_that_did_not_know_its_length() -> None:
    """A WAV file whose writer could not go back claims 0 or 4 GiB: it has what it has."""
    whole = og.Audio(wav(100))
    for claimed in (0, 0xFFFFFFFF):
        audio = og.Audio(wav(100, claimed=claimed))
        assert audio.seconds == whole.seconds == 100 / RATE
        assert read_header(audio.data) == read_header(whole.data)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no WAV, FLAC or MP3"),
        (b"OggS" + bytes(100), "no WAV, FLAC or MP3"),
        (b"RIFF\0\0\0\0WAVE", "no WAV, FLAC or MP3"),
        (wav(0), "no samples"),
        (wav(100, claimed=10_000), "cut off"),
        (wav(100_000, rate=1), "more than 3600"),
        (wav(100, rate=400_000), "samples a second"),
        (wav(100, bytes_a_frame=0), "no WAV, FLAC or MP3"),
        (encoded("FLAC")[:18] + (16000 << 44 | 2**36 - 1).to_bytes(8, "big") + encoded("FLAC")[26:], "more than 3600"),
    ],
)
def test_files_that_are_refused(data: bytes, said: str) -> None:
    """A file that is no sound, is cut off, or would take memory without end is refused before it is decoded."""
    with pytest.raises(og.MediaError, match=said):
        og.Audio(data)


def test_a_file_that_claims_two_rates() -> None:
    """The first one counts, as it does for the decoder: no later one hides a sound that takes memory without end."""
    slow = wav(10_000, rate=1)
    second = slow[12:36].replace(struct.pack("<I", 1), struct.pack("<I", RATE))
    with pytest.raises(og.MediaError, match="more than 3600"):
        og.Audio(slow[:36] + second + slow[36:])


def test_max_seconds() -> None:
    """The bound is the caller's."""
    assert og.Audio(TONE, sample_rate=RATE, max_seconds=1).seconds == 1
    with pytest.raises(og.MediaError, match=r"more than 0\.5"):
        og.Audio(TONE, sample_rate=RATE, max_seconds=0.5)


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"source": 3}, TypeError, "must be bytes, a path"),
        ({"source": TONE}, ValueError, "sample_rate is needed"),
        ({"source": wav(), "sample_rate": RATE}, ValueError, "sample_rate is for arrays"),
        ({"source": TONE, "sample_rate": 0}, ValueError, "sample_rate"),
        ({"source": TONE.astype(complex), "sample_rate": RATE}, ValueError, "floats"),
        ({"source": np.zeros((2, 2, 2)), "sample_rate": RATE}, ValueError, "n_samples"),
        ({"source": TONE[:0], "sample_rate": RATE}, ValueError, "n_samples"),
        ({"source": np.full(9, np.nan), "sample_rate": RATE}, ValueError, "finite"),
        ({"source": "no/such/file.wav"}, FileNotFoundError, "file.wav"),
    ],
)
def test_sources_that_are_refused(arguments: dict[str, Any], kind: type[Exception], said: str) -> None:
    """What is no sound at all is refused by its kind or its shape."""
    with pytest.raises(kind, match=said):
        og.Audio(**arguments)


@settings(max_examples=300)
@given(st.sampled_from(FORMATS), st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=8))
def test_headers_of_mutated_files(kind: str, changes: list[tuple[int, int]]) -> None:
    """Whatever bytes change, a file is a sound within the bounds, or refused."""
    data = bytearray(encoded(kind, TONE[:2000]))
    for at, value in changes:
        data[at % min(len(data), 80)] = value
    with suppress(og.MediaError):
        assert 0 < og.Audio(bytes(data), max_seconds=60).seconds <= 60


@pytest.mark.parametrize("kind", [b"Xing", b"Info"])
@pytest.mark.parametrize("n_frames", [2**32 - 1, 1000])
def test_frames_that_an_mp3_claims(kind: bytes, n_frames: int) -> None:
    """Miniaudio makes room for the frames that the first one claims: a file of 2 kB may be one of ten hours then."""
    samples = (0.3 * np.sin(np.arange(16000) / 9)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, 16000, format="MP3")
    data = file.getvalue()
    at = max(data.find(b"Xing"), data.find(b"Info"))
    assert at > 0
    assert og.Audio(data).seconds == pytest.approx(1, abs=0.2)
    claimed = data[:at] + kind + b"\0\0\0\x01" + n_frames.to_bytes(4, "big") + data[at + 12 :]
    with pytest.raises(og.MediaError, match="cut off"):
        og.Audio(claimed)
