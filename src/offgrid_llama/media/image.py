"""Image: a picture that a model with a projector can look at."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, BinaryIO

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import MediaError
from offgrid_llama.native.backend import start
from offgrid_llama.native.callbacks import forget_log
from offgrid_llama.native.check import not_null, number

from .image_header import EXIF_ORIENTATION, ImageHeader, read_header
from .source import read

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["MAX_PIXELS", "Image"]

MAX_PIXELS = 64 * 2**20
"""Pixels of a picture, unless ``Image(max_pixels=...)`` says otherwise: 192 MiB when it is decoded."""


class Image:
    """A picture: a PNG, JPEG, GIF or BMP file, a picture of PIL, or an array.

    A file's size is read from its header. It is decoded when its pixels are first needed, and turned upright as its EXIF
    orientation says. A picture has one content id; pictures with the same id are equal. It can be pickled and copied.

    Args:
        source: bytes, a path, a file that is open in binary mode, a ``PIL.Image.Image`` (converted to RGB; it reads further
            formats, such as WebP), or an array: uint8[height, width, 3] in RGB, or uint8[height, width] in grey.
        max_pixels: the most that the picture may have.

    Raises:
        TypeError, ValueError: the source is of no such kind, or is an array of another shape.
        FileNotFoundError and other OSErrors: from reading a file.
        MediaError: the file is no picture, is cut off, has several pictures (is animated), or has too many pixels.

    Attributes:
        width, height: in pixels, upright.
        id: the content id: of equal files, and of equal arrays, the same.
        name: of the file, for errors.
    """

    def __init__(
        self, source: str | os.PathLike[str] | bytes | BinaryIO | Any, *, max_pixels: int = MAX_PIXELS
    ) -> None:
        max_pixels = number("max_pixels", max_pixels, 1)
        self._pixels: npt.NDArray[np.uint8] | None = None
        self._data = b""
        self._orientation = 1
        self.name = "the picture"
        if hasattr(source, "__array__") or hasattr(source, "__array_interface__"):
            self._pixels = _array(source)
            self.height, self.width, _ = self._pixels.shape
            self._check_size(max_pixels)
            self.id = _digest(f"{self.width}x{self.height}".encode(), self._pixels.tobytes())
            return
        self._data, self.name = read("the picture", source)
        header = self._checked_header(read_header(self._data))
        self._orientation = header.orientation
        turned = header.orientation >= 5
        self.width, self.height = (header.height, header.width) if turned else (header.width, header.height)
        self._check_size(max_pixels)
        self.id = _digest(b"file", self._data)

    def _checked_header(self, header: ImageHeader | None) -> ImageHeader:
        if header is None:
            raise MediaError(
                f"{self.name} is no PNG, JPEG, GIF or BMP file, or is broken; PIL.Image.open reads more formats"
            )
        if header.animated:
            raise MediaError(f"{self.name} has several pictures: give the one that is meant, by PIL for instance")
        if not header.complete:
            raise MediaError(f"{self.name} is cut off: the {header.format} file has no end")
        return header

    def _check_size(self, max_pixels: int) -> None:
        if not self.width or not self.height:
            raise MediaError(f"{self.name} has no pixels: it is {self.width} x {self.height}")
        if self.width * self.height > max_pixels:
            raise MediaError(
                f"{self.name} has {self.width} x {self.height} pixels, more than {max_pixels:,}: make it smaller, or "
                "max_pixels larger"
            )

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """The pixels, uint8[height, width, 3] in RGB, decoded when they are first asked for (stb_image, in libmtmd).

        Raises MediaError if the file is damaged.
        """
        if self._pixels is None:
            pixels = _upright(_decoded(self._data, self.name), self._orientation)
            if pixels.shape != (self.height, self.width, 3):  # libmtmd is told the size of the header
                raise MediaError(f"{self.name} is damaged: its pixels have another size than its header")
            pixels.flags.writeable = False
            self._pixels = pixels
        return self._pixels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Image {self.width}x{self.height} {self.id[:8]}>"


def _array(source: Any) -> npt.NDArray[np.uint8]:
    """Return the pixels of an array or of a picture of PIL."""
    import numpy as np

    if hasattr(source, "convert") and hasattr(source, "mode"):  # PIL
        source = _upright(np.asarray(source.convert("RGB")), source.getexif().get(EXIF_ORIENTATION, 1))
    pixels = np.asarray(source)
    if pixels.dtype != np.uint8:
        raise ValueError(f"a picture's array must be of uint8, from 0 to 255, not {pixels.dtype}")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"a picture's array must have the shape [height, width, 3] or [height, width], not {pixels.shape}"
        )
    copied: npt.NDArray[np.uint8] = np.ascontiguousarray(pixels).copy()
    copied.flags.writeable = False
    return copied


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256(b"picture")
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _decoded(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    import numpy as np

    start()
    forget_log()
    source = ffi.from_buffer("unsigned char[]", data)
    options = lib.mtmd_helper_init_opt_default()
    found = lib.mtmd_helper_bitmap_init_from_buf(ffi.NULL, source, len(data), False, options)
    bitmap = not_null(found.bitmap, lambda log: MediaError(f"{name} is damaged: it cannot be decoded", log=log))
    try:
        width, height = lib.mtmd_bitmap_get_nx(bitmap), lib.mtmd_bitmap_get_ny(bitmap)
        pixels = ffi.buffer(lib.mtmd_bitmap_get_data(bitmap), lib.mtmd_bitmap_get_n_bytes(bitmap))
        decoded: npt.NDArray[np.uint8] = np.frombuffer(pixels, np.uint8).reshape(height, width, 3).copy()
        return decoded
    finally:
        lib.mtmd_bitmap_free(bitmap)


def _upright(pixels: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Return a stored picture upright, by its EXIF orientation."""
    import numpy as np

    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
