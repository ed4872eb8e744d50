"""WAV files of 16 bits, as other programs read them."""

from __future__ import annotations

import io
import wave

import numpy as np
import soundfile

from offgrid_llama.media import wav

SAMPLES = np.asarray([0, 0.5, -0.5, 1, -1, 2, -2], np.float32)


def test_wav() -> None:
    """A whole file: its length, and samples that are cut off at the loudest."""
    data = wav.wav(SAMPLES, 24000)
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels(), file.getsampwidth()) == (7, 24000, 1, 2)
        read = np.frombuffer(file.readframes(7), "<i2")
    assert read.tolist() == [0, 16383, -16383, 32767, -32767, 32767, -32767]
    assert len(data) == 44 + 14
    assert int.from_bytes(data[4:8], "little") == len(data) - 8


def test_streams() -> None:
    """A file that does not tell its length, by which readers read to the end."""
    data = wav.header(8000) + wav.pcm16(SAMPLES)
    read, rate = soundfile.read(io.BytesIO(data))
    assert rate == 8000
    assert np.abs(read - np.clip(SAMPLES, -1, 1)).max() < 1e-3
