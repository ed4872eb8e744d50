"""What the header of a sound's file says of its length, read without decoding a sample.

libmtmd decodes with miniaudio, which makes room for as many samples as a header claims, at the rate that the model hears. A
WAV file of a megabyte at one sample a second would be a gigabyte then. So the length is looked at here, first.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

__all__ = ["AudioHeader", "read_header"]

_MPEG_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by version, in Hz
_MPEG1_KBITS = {  # by layer bits and index
    3: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_MPEG2_KBITS = {
    3: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    1: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_TAG = re.compile(rb"(?:Xing|Info).{8}", re.DOTALL)
_TAG_OFFSETS = (13, 15, 21, 23, 36, 38)
"""Bytes from the begin of a frame to its tag: the head, a checksum or none, and what one or two channels need."""
_UNKNOWN_LENGTHS = (0, 0xFFFFFFFF)
"""What a WAV file claims whose writer could not go back to fill in the length."""


@dataclass(frozen=True)
class AudioHeader:
    """A sound as its file describes it.

    Attributes:
        format: "WAV", "FLAC" or "MP3".
        sample_rate: in Hz.
        seconds: the length.
        complete: whether the file has all of the data that it claims.
        data_at: where the samples of a WAV file begin, in bytes; 0 of other formats.
    """

    format: str
    sample_rate: int
    seconds: float
    complete: bool = True
    data_at: int = 0


def read_header(data: bytes) -> AudioHeader | None:
    """Return what a file says of its sound; None for a format that is not read here, or a header that is broken."""
    try:
        if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
            return _wav(data)
        if data[:4] == b"fLaC":
            return _flac(data)
        if data[:3] == b"ID3" or (data[0] == 0xFF and data[1] & 0xE0 == 0xE0):
            return _mp3(data)
    except (struct.error, IndexError):  # cut off in the header
        pass
    return None


def _wav(data: bytes) -> AudioHeader | None:
    at, rate, bytes_a_frame = 12, 0, 0
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"fmt " and not rate:  # miniaudio, too, takes the first
            _tag, _channels, rate, _bytes_a_second, bytes_a_frame = struct.unpack_from("<HHIIH", data, at + 8)
        elif kind == b"data":
            if not rate or not bytes_a_frame:
                return None
            here = len(data) - at - 8
            complete = length <= here or length in _UNKNOWN_LENGTHS
            length = here if length in _UNKNOWN_LENGTHS else min(length, here)
            return AudioHeader("WAV", rate, length / bytes_a_frame / rate, complete, at + 8)
        at += 8 + length + length % 2
    return None


def _flac(data: bytes) -> AudioHeader | None:
    if data[4] & 0x7F != 0 or len(data) < 26:
        return None
    packed = int.from_bytes(data[18:26], "big")
    rate, frames = packed >> 44, packed & (2**36 - 1)
    return AudioHeader("FLAC", rate, frames / rate) if rate else None


def _mp3(data: bytes) -> AudioHeader | None:
    at = 0
    if data[:3] == b"ID3":
        at = 10 + sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
    first_rate, seconds, n_frames = 0, 0.0, 0
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        frame = _mpeg_frame(data[at : at + 4])
        if frame is None:
            at += 1
            continue
        rate, samples, length = frame
        first_rate = first_rate or rate
        seconds += samples / rate
        n_frames += 1
        at += length
    if not first_rate:
        return None
    n_claimed, claimed_seconds = _claimed(data)
    return AudioHeader("MP3", first_rate, max(seconds, claimed_seconds), n_claimed <= 1.05 * n_frames + 2)


def _claimed(data: bytes) -> tuple[int, float]:
    """Return how many frames of MPEG audio a file claims, and how long these are: miniaudio makes room for all of them.

    The claim is in the first frame that it finds, behind the bits that say how the frame is coded.
    """
    most = (0, 0.0)
    for tag in _TAG.finditer(data):
        for offset in _TAG_OFFSETS:
            frame = (
                _mpeg_frame(data[tag.start() - offset : tag.start() - offset + 4]) if tag.start() >= offset else None
            )
            if frame is not None and tag[0][7] & 1:
                n = int.from_bytes(tag[0][8:12], "big")
                most = max(most, (n, n * frame[1] / frame[0]))
    return most


def _mpeg_frame(head: bytes) -> tuple[int, int, int] | None:
    """Return the rate, the samples and the bytes of a frame of MPEG audio, by its first four bytes; None if it is none."""
    if len(head) < 4 or head[0] != 0xFF:
        return None
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    bit_rate, rate_index, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if head[1] & 0xE0 != 0xE0 or version == 1 or not layer or bit_rate in (0, 15) or rate_index == 3:
        return None
    rate = _MPEG_RATES[version][rate_index]
    bits = 1000 * (_MPEG1_KBITS if version == 3 else _MPEG2_KBITS)[layer][bit_rate - 1]
    if layer == 3:
        return rate, 384, (12 * bits // rate + padding) * 4
    samples = 576 if layer == 1 and version != 3 else 1152
    return rate, samples, samples // 8 * bits // rate + padding
