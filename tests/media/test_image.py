"""Image: what is read of a file without decoding it, what is refused, and the pixels, against Pillow's."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.twin import Array
from offgrid_llama.media.image_header import read_header

RNG = np.random.default_rng(3)
PIXELS: Array = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
SMOOTH: Array = np.stack([np.add.outer(np.arange(40), np.arange(60))] * 3, axis=2).astype(np.uint8)
FORMATS = ["PNG", "JPEG", "GIF", "BMP"]


def encoded(kind: str, pixels: Array = PIXELS, **options: Any) -> bytes:
    """Return pixels as a file, as Pillow writes it."""
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def animated(kind: str) -> bytes:
    """Return a file of two pictures."""
    file = io.BytesIO()
    frames = [PIL.Image.fromarray(PIXELS), PIL.Image.fromarray(255 - PIXELS)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """Return a PNG file that claims a size, and has no pixels to speak of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_is_what_pillow_reads(kind: str) -> None:
    """The size is known at once, and the pixels are Pillow's: of a JPEG, whose decoders round differently, nearly."""
    data = encoded(kind, SMOOTH)
    image = og.Image(data)
    assert (image.width, image.height) == (60, 40)
    theirs = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(image.pixels.astype(int) - theirs).max() <= (4 if kind == "JPEG" else 0)


def test_every_kind_of_source(tmp_path: Path) -> None:
    """Bytes, a path, an open file, an array and a picture of Pillow are one picture."""
    data = encoded("PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with path.open("rb") as file:
        images = [og.Image(source) for source in (data, path, str(path), file, PIXELS, PIL.Image.fromarray(PIXELS))]
    for image in images:
        assert np.array_equal(image.pixels, PIXELS)
        assert (image.width, image.height) == (7, 5)
    assert len({image.id for image in images[:4]}) == 1
    assert images[4].id == images[5].id


def test_content_ids_tell_pictures_apart() -> None:
    """Other pixels, another shape of the same bytes and another file have other ids."""
    arrays = [PIXELS, 255 - PIXELS, PIXELS.reshape(7, 5, 3)]
    ids = {og.Image(array).id for array in arrays} | {og.Image(encoded(kind)).id for kind in FORMATS}
    assert len(ids) == 7


def test_grey_arrays_and_other_modes() -> None:
    """A grey array has three equal channels; Pillow's palettes and alpha channels become RGB."""
    grey = PIXELS[:, :, 0]
    assert np.array_equal(og.Image(grey).pixels, np.stack([grey] * 3, axis=2))
    assert og.Image(PIL.Image.fromarray(PIXELS).convert("P")).pixels.shape == (5, 7, 3)
    assert np.array_equal(og.Image(PIL.Image.fromarray(PIXELS).convert("RGBA")).pixels, PIXELS)


def test_an_array_is_copied() -> None:
    """What its owner does with it later changes no picture, and no content id lies."""
    array = PIXELS.copy()
    image = og.Image(array)
    array[:] = 0
    assert np.array_equal(image.pixels, PIXELS)
    with pytest.raises(ValueError, match="read-only"):
        image.pixels[0, 0, 0] = 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright(orientation: int) -> None:
    """EXIF's orientation is applied as Pillow applies it, and the size is that of the upright picture."""
    from PIL import ImageOps

    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = encoded("JPEG", SMOOTH, exif=exif)
    theirs = ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(data)))
    image = og.Image(data)
    assert (image.width, image.height) == theirs.size
    assert np.abs(image.pixels.astype(int) - np.asarray(theirs).astype(int)).max() <= 4
    assert np.array_equal(og.Image(PIL.Image.open(io.BytesIO(data))).pixels, np.asarray(theirs))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no PNG, JPEG, GIF or BMP"),
        (b"hello", "no PNG, JPEG, GIF or BMP"),
        (b"\x89PNG\r\n\x1a\n", "no PNG, JPEG, GIF or BMP"),
        (animated("GIF"), "several pictures"),
        (animated("PNG"), "several pictures"),
        (png_of(0, 5), "no pixels"),
        (png_of(60_000, 60_000), "more than"),
        (png_of(2**31 - 1, 2**31 - 1), "more than"),
        *((encoded(kind, SMOOTH)[:-20], "cut off") for kind in FORMATS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_refused(data: bytes, said: str) -> None:
    """A file that is no picture, has several, is too large or is cut off is refused before it is decoded."""
    with pytest.raises(og.MediaError, match=said):
        og.Image(data)


def test_damaged_pixels_are_told_when_they_are_decoded() -> None:
    """A header alone promises nothing."""
    image = og.Image(png_of(50, 50))
    with pytest.raises(og.MediaError, match="damaged"):
        _ = image.pixels


def test_a_jpeg_that_claims_two_sizes() -> None:
    """The first one counts, as it does for the decoder: no later one gets past max_pixels, or past the pixels' end."""
    data = encoded("JPEG", SMOOTH)
    at = data.index(b"\xff\xc0")
    second = bytearray(data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")])
    second[5:9] = struct.pack(">HH", 4, 6)
    double = data[: at + len(second)] + bytes(second) + data[at + len(second) :]
    with pytest.raises(og.MediaError, match="60 x 40 pixels"):
        og.Image(double, max_pixels=1000)
    image = og.Image(double)
    with suppress(og.MediaError):
        assert image.pixels.shape == (40, 60, 3)


def test_pixels_of_another_size_than_the_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are refused: libmtmd would read behind their end."""
    monkeypatch.setattr("offgrid_llama.media.image._decoded", lambda data, name: PIXELS)
    with pytest.raises(og.MediaError, match="another size"):
        _ = og.Image(encoded("PNG", SMOOTH)).pixels


def test_max_pixels() -> None:
    """The bound is the caller's, and holds for arrays, too."""
    assert og.Image(PIXELS, max_pixels=35).width == 7
    with pytest.raises(og.MediaError, match="7 x 5 pixels, more than 34"):
        og.Image(PIXELS, max_pixels=34)
    with pytest.raises(ValueError, match="max_pixels"):
        og.Image(PIXELS, max_pixels=0)


@pytest.mark.parametrize(
    ("source", "kind", "said"),
    [
        (3, TypeError, "must be bytes, a path"),
        (None, TypeError, "must be bytes, a path"),
        (io.StringIO("x"), TypeError, "binary mode"),
        (PIXELS.astype(float), ValueError, "uint8"),
        (PIXELS[0, 0], ValueError, "height, width"),
        (np.zeros((5, 7, 4), np.uint8), ValueError, "height, width"),
        ("no/such/file.png", FileNotFoundError, "file.png"),
    ],
)
def test_sources_that_are_refused(source: Any, kind: type[Exception], said: str) -> None:
    """What is no picture at all is refused by its kind or its shape."""
    with pytest.raises(kind, match=said):
        og.Image(source)


@settings(max_examples=300)
@given(
    st.sampled_from(FORMATS),
    st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), max_size=8),
    st.integers(0, 60),
)
def test_mutated_files(kind: str, changes: list[tuple[int, int]], cut: int) -> None:
    """Whatever bytes change or lack, a file is a picture of the size that it claims, or refused."""
    data = bytearray(encoded(kind))
    for at, value in changes:
        data[at % len(data)] = value
    data = data[: len(data) - cut]
    with suppress(og.MediaError):
        image = og.Image(bytes(data), max_pixels=2**20)
        assert image.pixels.shape == (image.height, image.width, 3)


@given(st.binary(max_size=60), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"GIF89a", b"BM"]))
def test_headers_of_nonsense(data: bytes, magic: bytes) -> None:
    """A header is read, or it is none: nothing else is raised."""
    header = read_header(magic + data)
    assert header is None or header.width >= 0
