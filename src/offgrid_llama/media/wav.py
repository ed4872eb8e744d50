"""WAV files of samples, 16 bits each: whole, or as a stream whose length is not known yet."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["header", "pcm16", "wav"]

_PCM, _CHANNELS, _SAMPLE_BYTES = 1, 1, 2
_UNKNOWN = 2**32 - 1
"""The length that a stream claims, as ffmpeg writes it; readers then read to the end."""
_BEFORE_DATA = 36
"""Bytes that a RIFF's length counts beside the samples."""


def wav(samples: npt.NDArray[np.float32], sample_rate: int) -> bytes:
    """Return float32[n_samples] from -1 to 1 as a WAV file of one channel. Raises ValueError for more than 4 GiB."""
    body = pcm16(samples)
    if len(body) + _BEFORE_DATA > _UNKNOWN:
        raise ValueError(f"a WAV file has up to 4 GiB, and these samples have {len(body):,} bytes: write them in parts")
    return header(sample_rate, len(body)) + body


def header(sample_rate: int, n_bytes: int | None = None) -> bytes:
    """Return what comes before the samples: ``n_bytes`` of them, or None where it is not known yet."""
    data = _UNKNOWN if n_bytes is None else n_bytes
    riff = _UNKNOWN if n_bytes is None else n_bytes + _BEFORE_DATA
    layout = struct.pack(
        "<HHIIHH", _PCM, _CHANNELS, sample_rate, sample_rate * _SAMPLE_BYTES, _SAMPLE_BYTES, 8 * _SAMPLE_BYTES
    )
    chunks = b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", data)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVE" + chunks


def pcm16(samples: npt.NDArray[np.float32]) -> bytes:
    """Return float32[n_samples] from -1 to 1 as int16, the lower byte first. Louder ones are cut off."""
    import numpy as np

    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
