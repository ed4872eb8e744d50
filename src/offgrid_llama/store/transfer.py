"""Common to all downloads: progress, partial files with checksums, and errors of the disk that name their cause.

Bytes go into a ``PartFile`` under the cache's ``partial`` folder, and only a file with the right sha256 leaves that folder.
A ``PartFile`` outlives a failed or killed download, so that the next download resumes it. Kept bytes are hashed again first,
so that a wrong byte among them is always found.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offgrid_llama.errors import ChecksumError, DownloadError

if TYPE_CHECKING:
    from pathlib import Path

CHUNK_BYTES = 1 << 20
"""Bytes that are read, hashed and written at a time."""

ProgressCallback = Callable[[int, "int | None"], object]
"""``progress(done, total)``, both in bytes of the model's file; ``total`` is None while it is not known.

It is called on the caller's thread, and ``done`` never decreases. An exception in it cancels the download, keeps the bytes
that a later download can resume from, and is raised by the call unchanged.
"""

PROGRESS_MIN_SECONDS = 0.05
"""Time between two calls of a progress callback: 20 a second are enough for a bar."""
_NO_ROOM_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

log = logging.getLogger("offgrid_llama.store")


class DownloadProgress:
    """Calls the user's callback with growing numbers, and at most every ``PROGRESS_MIN_SECONDS``.

    Attributes:
        total: bytes of the whole file; None while they are not known.
        raised: the exception that the callback raised, which is the user's own.
    """

    def __init__(self, callback: ProgressCallback | None, total: int | None) -> None:
        self.total = total
        self.raised: BaseException | None = None
        self._callback = callback
        self._done = 0
        self._told: tuple[int, int | None] | None = None
        self._told_at = 0.0

    def __call__(self, done: int) -> None:
        """Report that ``done`` bytes have arrived."""
        self._done = max(self._done, done)
        now = (self._done, self.total)
        finished = self._done == self.total
        if self._callback is None or (finished and self._told == now):
            return
        if not finished and self._told is not None and time.monotonic() - self._told_at < PROGRESS_MIN_SECONDS:
            return
        try:
            self._callback(*now)
        except BaseException as error:
            self.raised = error
            raise
        self._told = now
        self._told_at = time.monotonic()

    def below(self, done: int) -> None:
        """Report ``done`` bytes, but always fewer than the total, which is reported once the file is checked."""
        self(min(done, self.total - 1) if self.total else done)


@dataclass(frozen=True)
class Fetched:
    """A complete file whose sha256 was checked. ``size`` is its length in bytes."""

    path: Path
    sha256: str
    size: int


class PartFile:
    """A file that grows at its end, hashed as it grows. ``size`` is its length so far, in bytes."""

    def __init__(self, path: Path, sha256: str, at_most: int | None) -> None:
        self.path = path
        self.size = 0
        self._expected = sha256
        self._at_most = at_most
        self._hash = hashlib.sha256()
        self._file = open(path, "a+b")  # noqa: SIM115 - closed by __exit__

    @classmethod
    def open(cls, folder: Path, sha256: str, at_most: int | None) -> PartFile:
        """Open the part file in ``folder`` for a model of this checksum, and delete those of other checksums."""
        path = folder / f"{sha256[:16]}.part"
        for other in folder.glob("*.part"):
            if other != path:
                other.unlink()
        return cls(path, sha256, at_most)

    def __enter__(self) -> PartFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._file.close()
        except OSError:  # the write that failed has been reported already
            log.debug("closing %s failed", self.path, exc_info=True)

    @property
    def on_disk(self) -> int:
        """Bytes in the file, from an earlier download."""
        return os.fstat(self._file.fileno()).st_size

    def keep(self, size: int, progress: DownloadProgress | None = None) -> None:
        """Cut the file to its first ``size`` bytes, and hash them again."""
        self._file.flush()
        self._file.truncate(size)
        self._hash = hashlib.sha256()
        self.size = 0
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            self._hash.update(chunk)
            self.size += len(chunk)
            if progress is not None:
                progress.below(self.size)

    def write(self, data: bytes) -> None:
        """Append bytes. Raises ``ChecksumError`` if the file becomes longer than the model is."""
        if self._at_most is not None and self.size + len(data) > self._at_most:
            raise ChecksumError(f"more than the expected {self._at_most} bytes arrived; they were deleted")
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def seal(self, model: str) -> Fetched:
        """Sync the file to the disk, close it and check it. Raises ``ChecksumError`` if its sha256 is wrong."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        actual = self._hash.hexdigest()
        if actual != self._expected:
            raise ChecksumError(
                f"{model} arrived with sha256 {actual}, expected {self._expected}; the file was deleted. A second"
                " try may help; if it does not, the source has changed, or a proxy changes the bytes"
            )
        return Fetched(self.path, actual, self.size)


def sha256_of(path: Path, progress: DownloadProgress | None = None) -> str:
    """Return the sha256 of the file at ``path`` in lower-case hex digits."""
    digest = hashlib.sha256()
    done = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done)
    return digest.hexdigest()


def replace_safely(source: Path, target: Path) -> None:
    """Rename ``source`` to ``target`` so that after a crash the name has the old file or the new one."""
    os.replace(source, target)
    if os.name == "posix":  # the name is data of the folder, which needs its own fsync
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def no_room(model: str, folder: Path, needed: int | None) -> DownloadError:
    """Return the error for a full disk, quota or file size limit. ``needed`` is in bytes, None if it is not known."""
    try:
        free = f", {megabytes(shutil.disk_usage(folder).free)} are free"
    except OSError:
        free = ""
    much = f"about {megabytes(needed)} are needed" if needed is not None else "more room is needed"
    return DownloadError(
        f"no room for {model}: {much} in {folder}{free}. Free some, or set OFFGRID_LLAMA_CACHE to a folder on another"
        " disk"
    )


def check_room(model: str, folder: Path, needed: int) -> None:
    """Raise ``DownloadError`` if the disk below ``folder`` has less than ``needed`` bytes free."""
    if shutil.disk_usage(folder).free < needed:
        raise no_room(model, folder, needed)


@contextmanager
def disk_errors(model: str, folder: Path, needed: int | None, progress: DownloadProgress) -> Iterator[None]:
    """Turn an ``OSError`` of the block into a ``DownloadError`` that names ``folder``, unless the callback raised it."""
    try:
        yield
    except OSError as error:
        if error is progress.raised:
            raise
        if error.errno in _NO_ROOM_ERRNOS:
            raise no_room(model, folder, needed or progress.total) from error
        raise DownloadError(
            f"the model cache {folder} cannot take {model}: {error}. Make the folder writable, or set"
            " OFFGRID_LLAMA_CACHE to one that is"
        ) from error


def megabytes(size: int) -> str:
    """Return ``size`` bytes in megabytes: "98 MB". Sizes above 0 are at least "1 MB"."""
    return f"{max(1, round(size / 1e6)) if size else 0} MB"
