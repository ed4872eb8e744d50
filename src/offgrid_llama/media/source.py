"""The bytes of a picture or a sound, from wherever its user has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from offgrid_llama.errors import MediaError

__all__ = ["MAX_FILE_BYTES", "read"]

MAX_FILE_BYTES = 64 * 2**20
"""Bytes of a file of a picture or a sound."""


def read(what: str, source: Any) -> tuple[bytes, str]:
    """Return the bytes of a path, of an open file or of bytes, with a name for errors.

    Raises:
        TypeError: the source is none of these.
        MediaError: it has more than ``MAX_FILE_BYTES``.
        OSError: from reading it.
    """
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _bounded(what, bytes(source)), what
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        with path.open("rb") as file:
            return _bounded(str(path), file.read(MAX_FILE_BYTES + 1)), str(path)
    if callable(getattr(source, "read", None)):
        data = source.read(MAX_FILE_BYTES + 1)
        name = str(getattr(source, "name", what))
        if not isinstance(data, bytes):
            raise TypeError(f"{name} must be open in binary mode: read() returned {type(data).__name__}")
        return _bounded(name, data), name
    raise TypeError(
        f"{what} must be bytes, a path, a file that is open in binary mode, or an array, not {type(source).__name__}"
    )


def _bounded(name: str, data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise MediaError(f"{name} has more than {MAX_FILE_BYTES:,} bytes")
    return data
