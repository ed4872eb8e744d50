"""Claims: folders whose files are worth nothing without the process that wrote them.

Where that process was killed, another one may delete what it has left, once this is proven: the folder's name has a random
id; a file in it, written once the process held a lock on the folder, says the same id; and no process holds the lock any
more, which the system ends with its owner.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # a system that locks no folders
    fcntl = None  # type: ignore[assignment]

__all__ = ["CLAIM", "claim", "closing", "taken_over"]

CLAIM = ".offgrid-llama-owner"
"""The name of the file that says whose a folder is."""


def claim(folder: Path, id_: str) -> int:
    """Claim a new folder by its id until the returned descriptor is closed. Raises OSError where it cannot be opened.

    Where there are no locks, it is not claimed: no process could prove later that this one has ended.
    """
    descriptor = os.open(folder, _flags())
    with suppress(OSError):
        _lock(descriptor)
        (folder / CLAIM).write_text(_told(id_), encoding="ascii")
    return descriptor


@contextmanager
def taken_over(name: str, id_: str, parent: int) -> Iterator[int]:
    """Give a descriptor of a folder in ``parent``, an open folder, that was claimed by a process that has ended.

    Raises OSError for any other one.
    """
    with closing(os.open(name, _flags(), dir_fd=parent)) as descriptor:
        _lock(descriptor)  # its owner lives: OSError
        file = os.open(CLAIM, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
        with closing(file):
            is_ours = os.fstat(descriptor).st_uid == os.fstat(file).st_uid == os.geteuid()
            if not is_ours or os.read(file, 1000) != _told(id_).encode():
                raise PermissionError(f"{name} was not claimed by {id_}")
        yield descriptor


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _flags() -> int:
    return os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def _lock(descriptor: int) -> None:
    if fcntl is None:
        raise OSError("there are no locks")
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _told(id_: str) -> str:
    return f"offgrid-llama: files of a running process, {id_}\n"
