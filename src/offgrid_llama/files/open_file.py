"""Open files as llama.cpp reads them: recognized, opened again at a position of their own, and passed on as ``FILE *``."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from offgrid_llama._capi import ffi, lib

__all__ = ["FileIdentity", "c_file", "is_open_file", "reopened"]


def is_open_file(file: Any) -> TypeGuard[BinaryIO]:
    """Whether it is an open file. Raises TypeError for one in text mode, and for one that only looks like a file."""
    if not hasattr(file, "read") or isinstance(file, os.PathLike):
        return False
    if isinstance(file, io.TextIOBase):
        raise TypeError('the file must be open in binary mode, "rb"')
    try:
        file.fileno()
        file.tell()
    except (OSError, AttributeError):
        raise TypeError(
            f"{type(file).__name__} is no file of the operating system that llama.cpp could read; write it to one"
        ) from None
    return True


@contextmanager
def reopened(file: Path | BinaryIO, position: int) -> Iterator[BinaryIO]:
    """Open a file once more at a position in bytes; the position of an open file stays where it is."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            if position:
                opened.seek(position)
            yield opened
        return
    theirs, shared = file.fileno(), None
    try:
        ours = os.open(f"/dev/fd/{theirs}", os.O_RDONLY | os.O_CLOEXEC)  # on Linux with a position of its own
    except OSError:
        ours, shared = os.dup(theirs), os.lseek(theirs, 0, os.SEEK_CUR)
    try:
        with open(ours, "rb") as opened:
            opened.seek(position)
            yield opened
    finally:
        if shared is not None:
            os.lseek(theirs, shared, os.SEEK_SET)


class FileIdentity(NamedTuple):
    """Tells a file from another one, and from itself after a change. ``size`` is in bytes, ``modified`` in nanoseconds."""

    device: int
    inode: int
    size: int
    modified: int

    @classmethod
    def of(cls, file: BinaryIO) -> FileIdentity:
        """Return the identity of an open file."""
        stat = os.fstat(file.fileno())
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@contextmanager
def c_file(file: BinaryIO, position: int) -> Iterator[Any]:
    """Give a ``FILE *`` at a position of an open file for the length of a block (``og_file_open``, ``og_file_close``)."""
    stream = lib.og_file_open(file.fileno(), position)
    if not stream:
        raise OSError(ffi.errno, os.strerror(ffi.errno), getattr(file, "name", None))
    try:
        yield stream
    finally:
        lib.og_file_close(stream)
