"""Files that appear under their name only when they are complete: written elsewhere, synced to the disk, and renamed.

The leftovers of a process that was killed are deleted by the next that writes into the same folder.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .claims import CLAIM, claim, closing, taken_over

__all__ = ["new_private_file", "remove_unfinished", "replacing", "unfinished_files"]

_logger = logging.getLogger("offgrid_llama.files")

_BEGIN = ".offgrid-llama."
_UNFINISHED = re.compile(re.escape(_BEGIN) + "([0-9a-f]{32})")
"""The names of the folders in which files are written before they get their name."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path for the content of ``path``, in a new folder beside it; the file is renamed when the block ends.

    Other files in the new folder are renamed along with it. Where the block raises, all of them are deleted, and ``path``
    stays as it was. Raises OSError.
    """
    if os.name == "posix":
        with suppress(OSError), closing(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)) as parent:
            remove_unfinished(parent)
    id_ = secrets.token_hex(16)
    folder = path.parent / f"{_BEGIN}{id_}"
    os.mkdir(folder, 0o700)
    with _claimed(folder, id_):
        yield folder / path.name
        files = unfinished_files(folder)
        files.sort(reverse=True)  # the first of a split model, which names the others, last
        for file in files:
            _sync(file)
        for file in files:
            os.replace(file, path.parent / file.name)


def unfinished_files(folder: Path) -> list[Path]:
    """Return the files that were written into the folder of a path that ``replacing`` has given, in no order."""
    return [file for file in folder.iterdir() if file.name != CLAIM]


def remove_unfinished(parent: int) -> None:
    """Delete what killed processes have left in an open folder of files that they had not finished. It raises nothing."""
    with suppress(OSError):
        for name in os.listdir(parent):
            if found := _UNFINISHED.fullmatch(name):
                with suppress(OSError), taken_over(name, found[1], parent) as folder:
                    for file in sorted(os.listdir(folder), key=lambda each: each == CLAIM):  # the claim goes last
                        os.unlink(file, dir_fd=folder)
                    os.rmdir(name, dir_fd=parent)
                    _logger.info("deleted %s, an unfinished file of a killed process", name)


@contextmanager
def _claimed(folder: Path, id_: str) -> Iterator[None]:
    """Claim a new folder until the block ends, and then delete it."""
    descriptor = claim(folder, id_) if os.name == "posix" else -1
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if descriptor >= 0:
            os.close(descriptor)


def new_private_file(path: Path) -> BinaryIO:
    """Create a file that only its owner may read, and open it for writing. Raises FileExistsError, or another OSError."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
