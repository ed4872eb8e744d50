"""Small pictures and sounds of each format, as Pillow and libsndfile write them."""

from __future__ import annotations

import base64
import io

import numpy as np
import PIL.Image
import soundfile

from helpers.projectors import picture, tone
from offgrid_llama.media.audio import Audio

RNG = np.random.default_rng(4)


def picture_files() -> list[tuple[str, bytes]]:
    """Return a file of each format, and some of its ways to store pixels, with its suffix."""
    pixels = RNG.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    colour, grey = PIL.Image.fromarray(pixels), PIL.Image.fromarray(pixels[:, :, 0])
    found = []
    for kind, image, options in [
        ("PNG", colour, {}), ("PNG", grey, {}), ("PNG", colour.convert("P"), {}), ("PNG", colour.convert("RGBA"), {}),
        ("JPEG", colour, {}), ("JPEG", grey, {}), ("JPEG", colour, {"progressive": True}), ("GIF", colour, {}),
        ("BMP", colour, {}), ("BMP", colour.convert("P"), {}),
    ]:  # fmt: skip
        file = io.BytesIO()
        image.save(file, kind, **options)
        found.append((f".{kind.lower()}", file.getvalue()))
    return found


def sound_files() -> list[tuple[str, bytes]]:
    """Return a file of each format, and some of its ways to store samples, with its suffix."""
    samples = (0.3 * np.sin(np.arange(3000) / 9)).astype(np.float32)
    stereo = np.stack([samples, -samples], axis=1)
    found = []
    for kind, array, rate, options in [
        ("WAV", samples, 16000, {}), ("WAV", stereo, 44100, {"subtype": "PCM_24"}),
        ("WAV", samples, 8000, {"subtype": "FLOAT"}), ("WAV", samples, 16000, {"subtype": "IMA_ADPCM"}),
        ("WAV", samples, 8000, {"subtype": "ULAW"}),
        ("FLAC", samples, 16000, {}), ("FLAC", stereo, 48000, {}), ("MP3", samples, 16000, {}), ("MP3", stereo, 44100, {}),
    ]:  # fmt: skip
        file = io.BytesIO()
        soundfile.write(file, array, rate, format=kind, **options)
        found.append((f".{kind.lower()}", file.getvalue()))
    return found


def png(word: str, size: int = 4) -> str:
    """Return a picture that means a word, as a PNG file in base64."""
    file = io.BytesIO()
    PIL.Image.fromarray(picture(word, size, size)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def wav(word: str) -> str:
    """Return a sound that means a word, as a WAV file in base64."""
    return base64.b64encode(Audio(tone(word), sample_rate=16000).data).decode()
