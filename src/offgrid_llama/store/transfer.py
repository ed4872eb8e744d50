"""What every download does on its way: count, hash, write, and name the cause when the disk says no.

Bytes go into a ``PartFile`` under the cache's ``partial`` folder, and only a file whose sha256 was checked leaves it.
A ``PartFile`` outlives a failed or killed download, so that the next one can go on where it stopped: what is kept is
hashed again first, so wrong bytes can never hide in the kept part.
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

from ..errors import ChecksumError, DownloadError

if TYPE_CHECKING:
    from pathlib import Path

CHUNK = 1 << 20
"""Bytes that are read, hashed and written at a time."""

ProgressCallback = Callable[[int, "int | None"], object]
"""``progress(done, total)``, both in bytes of the model's file; ``total`` is None while it is not known.

It is called from the thread that asked for the file, never with less ``done`` than before. An exception in it cancels
the download, removes nothing that could be resumed, and comes out of the call unchanged.
"""

_LEAST_INTERVAL = 0.05  # seconds between two calls of a progress callback
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

log = logging.getLogger("offgrid_llama.store")


class Progress:
    """Wraps the user's callback: monotone, not too often, and it knows which exceptions were the user's own."""

    def __init__(self, callback: ProgressCallback | None, total: int | None) -> None:
        self.total = total
        self.raised: BaseException | None = None
        self._callback = callback
        self._done = 0
        self._told: tuple[int, int | None] | None = None
        self._told_at = 0.0

    def __call__(self, done: int) -> None:
        """Say that ``done`` bytes are there."""
        self._done = max(self._done, done)
        now = (self._done, self.total)
        finished = self._done == self.total
        if self._callback is None or (finished and self._told == now):
            return
        if not finished and self._told is not None and time.monotonic() - self._told_at < _LEAST_INTERVAL:
            return
        try:
            self._callback(*now)
        except BaseException as error:
            self.raised = error
            raise
        self._told = now
        self._told_at = time.monotonic()

    def below(self, done: int) -> None:
        """As a call, but never the total: that is said only once the file is checked."""
        self(min(done, self.total - 1) if self.total else done)


@dataclass(frozen=True)
class Fetched:
    """A whole file whose bytes were checked: where it lies, its sha256, and its length in bytes."""

    path: Path
    sha256: str
    size: int


class PartFile:
    """A file that grows at its end and knows its sha256. ``size`` is its length so far, in bytes."""

    def __init__(self, path: Path, sha256: str, at_most: int | None) -> None:
        self.path = path
        self.size = 0
        self._expected = sha256
        self._at_most = at_most
        self._hash = hashlib.sha256()
        self._file = open(path, "a+b")  # noqa: SIM115 - closed by __exit__

    @classmethod
    def open(cls, folder: Path, sha256: str, at_most: int | None) -> PartFile:
        """Open the part file in ``folder`` of the model with this checksum. Those of other checksums are deleted."""
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
        except OSError:  # what could not be flushed has been reported by the write that failed
            log.debug("closing %s failed", self.path, exc_info=True)

    @property
    def on_disk(self) -> int:
        """Bytes that an earlier download left here."""
        return os.fstat(self._file.fileno()).st_size

    def keep(self, size: int, progress: Progress | None = None) -> None:
        """Cut the file to its first ``size`` bytes, which are hashed again, and go on from there."""
        self._file.flush()
        self._file.truncate(size)
        self._hash = hashlib.sha256()
        self.size = 0
        self._file.seek(0)
        while chunk := self._file.read(CHUNK):
            self._hash.update(chunk)
            self.size += len(chunk)
            if progress is not None:
                progress.below(self.size)

    def write(self, data: bytes) -> None:
        """Append. Raises ``ChecksumError`` once there is more than the model can have: it cannot be the right one."""
        if self._at_most is not None and self.size + len(data) > self._at_most:
            raise ChecksumError(f"more bytes came than the {self._at_most} that were expected; they were thrown away")
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def seal(self, model: str) -> Fetched:
        """Make the file safe against a power cut, close it and check it. Raises ``ChecksumError`` if it is wrong."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        actual = self._hash.hexdigest()
        if actual != self._expected:
            raise ChecksumError(
                f"{model} arrived with sha256 {actual}, expected {self._expected}; the file was thrown away. A second"
                " try may help; if it does not, the source has changed or something on the way changes what it sends"
            )
        return Fetched(self.path, actual, self.size)


def sha256_of(path: Path, progress: Progress | None = None) -> str:
    """Return the sha256 of the file at ``path`` in lower-case hex digits."""
    digest = hashlib.sha256()
    done = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done)
    return digest.hexdigest()


def replace_safely(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target`` in one step that a crash cannot tear."""
    os.replace(source, target)
    if os.name == "posix":  # the rename itself lies in the folder, which needs its own fsync
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def no_room(model: str, folder: Path, needed: int | None) -> DownloadError:
    """Return the error for a full disk, quota or file size limit. ``needed`` is in bytes, None if nobody knows."""
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
def disk_errors(model: str, folder: Path, needed: int | None, progress: Progress) -> Iterator[None]:
    """Turn every ``OSError`` inside into a ``DownloadError`` that names ``folder``, but not the callback's own ones."""
    try:
        yield
    except OSError as error:
        if error is progress.raised:
            raise
        if error.errno in _NO_ROOM:
            raise no_room(model, folder, needed or progress.total) from error
        raise DownloadError(
            f"the model cache {folder} cannot take {model}: {error}. Make the folder writable, or set"
            " OFFGRID_LLAMA_CACHE to one that is"
        ) from error


def megabytes(size: int) -> str:
    """Write ``size`` bytes as people read them: "98 MB". Never 0 for something."""
    return f"{max(1, round(size / 1e6)) if size else 0} MB"
