"""Audio: a sound that a model with a projector can hear."""

from __future__ import annotations

import hashlib
import os
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

from offgrid_llama.errors import MediaError
from offgrid_llama.native.check import number, real

from .audio_header import AudioHeader, read_header
from .source import read

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MAX_SECONDS", "Audio"]

MAX_SECONDS = 3600.0
"""Seconds of a sound, unless ``Audio(max_seconds=...)`` says otherwise: 230 MB when it is decoded at 16 kHz."""
MAX_SAMPLE_RATE = 384_000
"""Samples a second, the most that miniaudio resamples from."""

_IEEE_FLOAT = 3  # the tag of a WAV file's format


class Audio:
    """A sound: a WAV, FLAC or MP3 file, or an array of samples.

    A projector decodes and resamples it to the rate that its model hears, with one channel. A sound has one content id;
    sounds with the same id are equal. It can be pickled and copied.

    Args:
        source: bytes, a path, a file that is open in binary mode, or an array of floats from -1 to 1 or of int16:
            [n_samples], or [n_samples, n_channels].
        sample_rate: of an array, in Hz.
        max_seconds: the longest that the sound may be.

    Raises:
        TypeError, ValueError: the source is of no such kind, or is an array of another shape; an array has no sample_rate,
            or something else has one.
        FileNotFoundError and other OSErrors: from reading a file.
        MediaError: the file is no sound, is cut off, has no samples, or is too long.

    Attributes:
        seconds: the length.
        sample_rate: as stored, in Hz.
        id: the content id: of equal files, and of equal arrays, the same.
        name: of the file, for errors.
        data: internal. The file, or the array as one.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | BinaryIO | npt.ArrayLike,
        *,
        sample_rate: int | None = None,
        max_seconds: float = MAX_SECONDS,
    ) -> None:
        max_seconds = real("max_seconds", max_seconds, 0)
        self.name = "the sound"
        if hasattr(source, "__array__") or isinstance(source, (list, tuple)):
            if sample_rate is None:
                raise ValueError("sample_rate is needed beside an array of samples")
            self.data = _wav(source, number("sample_rate", sample_rate, 1, MAX_SAMPLE_RATE))
        else:
            if sample_rate is not None:
                raise ValueError("sample_rate is for arrays: a file says its own")
            self.data, self.name = read("the sound", source)
        header = self._checked_header(read_header(self.data), max_seconds)
        self.seconds, self.sample_rate = header.seconds, header.sample_rate
        self.data = _with_length(self.data, header)
        self.id = hashlib.sha256(b"sound" + self.data).hexdigest()

    def _checked_header(self, header: AudioHeader | None, max_seconds: float) -> AudioHeader:
        if header is None:
            raise MediaError(f"{self.name} is no WAV, FLAC or MP3 file, or is broken")
        if not header.complete:
            raise MediaError(f"{self.name} is cut off: it ends before the sound does that it claims")
        if not header.seconds:
            raise MediaError(f"{self.name} has no samples")
        if not 1 <= header.sample_rate <= MAX_SAMPLE_RATE:
            raise MediaError(f"{self.name} has {header.sample_rate:,} samples a second, more than {MAX_SAMPLE_RATE:,}")
        if header.seconds > max_seconds:
            raise MediaError(
                f"{self.name} has {header.seconds:,.0f} seconds, more than {max_seconds:g}: cut it, or make max_seconds "
                "larger"
            )
        return header

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Audio) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Audio of {self.seconds:.1f} s {self.id[:8]}>"


def _wav(source: Any, sample_rate: int) -> bytes:
    """Return an array as a WAV file of floats, which libmtmd resamples like any other."""
    import numpy as np

    samples = np.asarray(source)
    if samples.dtype == np.int16:
        samples = samples.astype(np.float32) / 32768
    if samples.dtype.kind != "f":
        raise ValueError(f"a sound's array must be of floats from -1 to 1, or of int16, not {samples.dtype}")
    if samples.ndim not in (1, 2) or not samples.size:
        raise ValueError(
            f"a sound's array must have the shape [n_samples] or [n_samples, n_channels], not {samples.shape}"
        )
    samples = samples.astype("<f4")
    if not np.isfinite(samples).all():
        raise ValueError("a sound's array must have finite numbers only")
    channels = 1 if samples.ndim == 1 else samples.shape[1]
    number("the number of channels", channels, 1, 255)
    body = samples.tobytes()
    layout = struct.pack("<HHIIHH", _IEEE_FLOAT, channels, sample_rate, sample_rate * channels * 4, channels * 4, 32)
    chunks = b"fmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(body))
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(body)) + b"WAVE" + chunks + body


def _with_length(data: bytes, header: AudioHeader) -> bytes:
    """Return a WAV file that claims the length that it has: the writer of a stream does not know it at the beginning."""
    if not header.data_at:
        return data
    (claimed,) = struct.unpack_from("<I", data, header.data_at - 4)
    here = len(data) - header.data_at
    if claimed <= here and claimed:
        return data
    return data[: header.data_at - 4] + struct.pack("<I", here) + data[header.data_at :]
