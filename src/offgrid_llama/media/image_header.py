"""What the first bytes of a picture's file say, read without decoding a pixel.

libmtmd decodes with stb_image, which takes whatever a header claims, shows the first picture of an animation, and fills up
what a file lacks with grey. So the size, the number of pictures and the end of the file are looked at here, first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

__all__ = ["EXIF_ORIENTATION", "ImageHeader", "read_header"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}  # markers that stand alone
_JPEG_SIZES = {0xC0, 0xC1, 0xC2}  # baseline, extended and progressive; stb_image knows no other
_JPEG_OTHER_SIZES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}
EXIF_ORIENTATION = 0x0112
"""The tag of EXIF that says how a picture is turned."""


@dataclass(frozen=True)
class ImageHeader:
    """A picture as its file describes it.

    Attributes:
        format: "PNG", "JPEG", "GIF" or "BMP".
        width, height: in pixels, as stored.
        animated: whether the file has more than one picture.
        complete: whether the file has its end.
        orientation: of EXIF, 1 to 8: the turn that makes the stored picture upright; 1 is none.
    """

    format: str
    width: int
    height: int
    animated: bool = False
    complete: bool = True
    orientation: int = 1


def read_header(data: bytes) -> ImageHeader | None:
    """Return what a file says of its picture; None for a format that is not read here, or a header that is broken."""
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith((b"GIF87a", b"GIF89a")):
            return _gif(data)
        if data.startswith(b"BM"):
            return _bmp(data)
    except (struct.error, IndexError):  # cut off in the header
        pass
    return None


def _png(data: bytes) -> ImageHeader | None:
    if data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    animated = complete = False
    at = len(_PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        animated |= kind == b"acTL"
        at += 12 + length
        if kind == b"IEND":
            complete = at <= len(data)
            break
    return ImageHeader("PNG", width, height, animated, complete)


def _jpeg(data: bytes) -> ImageHeader | None:
    at, size, orientation = 2, None, 1
    while size is None or data[at + 1] != 0xDA:  # the picture itself begins
        marker = data[at + 1]
        if data[at] != 0xFF or marker in _JPEG_OTHER_SIZES:
            return None
        if marker == 0xFF:  # a byte to fill up
            at += 1
            continue
        if marker in _JPEG_WITHOUT_LENGTH:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker in _JPEG_SIZES and size is None:  # stb_image, too, takes the first
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = width, height
        elif marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _orientation(data[at + 10 : at + 2 + length])
        at += 2 + length
    return ImageHeader("JPEG", *size, complete=data.rfind(b"\xff\xd9") > at, orientation=orientation)


def _orientation(tiff: bytes) -> int:
    """Return the orientation that an EXIF block names; 1 if it names none, or is broken."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    if first + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, first)
    for at in range(first + 2, min(first + 2 + 12 * count, len(tiff) - 11), 12):
        tag, _kind, _count, value = struct.unpack_from(f"{order}HHIH", tiff, at)
        if tag == EXIF_ORIENTATION:
            return value if 1 <= value <= 8 else 1
    return 1


def _gif(data: bytes) -> ImageHeader:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _palette_bytes(flags)
    pictures = 0
    while at < len(data):
        block = data[at]
        if block == 0x3B:  # the trailer
            return ImageHeader("GIF", width, height, pictures > 1, complete=pictures > 0)
        if block == 0x2C:  # a picture
            pictures += 1
            at += 11 + _palette_bytes(data[at + 9]) if at + 9 < len(data) else 11
        elif block == 0x21:  # an extension
            at += 2
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return ImageHeader("GIF", width, height, pictures > 1, complete=False)


def _palette_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _bmp(data: bytes) -> ImageHeader | None:
    (header_size,) = struct.unpack_from("<I", data, 14)
    if header_size == 12:
        width, height, _planes, bits = struct.unpack_from("<HHHH", data, 18)
        compression = 0
    else:
        width, height, _planes, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    (offset,) = struct.unpack_from("<I", data, 10)
    row_bytes = (abs(width) * bits + 31) // 32 * 4
    complete = compression != 0 or offset + row_bytes * abs(height) <= len(data)
    return ImageHeader("BMP", abs(width), abs(height), complete=complete)
