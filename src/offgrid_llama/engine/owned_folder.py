"""OwnedFolder: a folder whose files are worth nothing without the process that wrote them, and do not outlive it for long.

Its owner deletes them at its end. Where the owner was killed, the next process that makes such a folder beside it does. It
deletes only what is proven to be abandoned (``files/claims.py``), and there only files whose names have the folder's id.
Other files stay, and then the folder stays, too.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from offgrid_llama.files.atomic import remove_unfinished
from offgrid_llama.files.claims import CLAIM, claim, closing, taken_over

__all__ = ["OwnedFolder"]

_logger = logging.getLogger("offgrid_llama.engine")

_NAME = re.compile(r"offgrid-llama-([0-9a-f]{32})")


class OwnedFolder:
    """A new folder, which only this user can read. Deletes first what killed processes have left beside it.

    Args:
        parent: an existing folder.

    Raises OSError where it cannot be made.

    Attributes:
        path: of the folder.
    """

    def __init__(self, parent: str | os.PathLike[str]) -> None:
        _remove_abandoned(Path(parent))
        self._id = secrets.token_hex(16)
        self.path = Path(parent) / f"offgrid-llama-{self._id}"
        os.mkdir(self.path, 0o700)
        self._descriptor = claim(self.path, self._id)

    def file(self, name: str) -> Path:
        """Return the path of a file in it, by a name that no other folder's file has."""
        return self.path / f"{self._id}-{name}"

    def remove(self) -> None:
        """Delete its files, and the folder. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError), closing(descriptor):
                _delete(descriptor, self._id)
                os.rmdir(self.path)


def _remove_abandoned(parent: Path) -> None:
    with suppress(OSError), closing(os.open(parent, os.O_RDONLY | os.O_DIRECTORY)) as above:
        for name in os.listdir(above):
            if found := _NAME.fullmatch(name):
                with suppress(OSError), taken_over(name, found[1], above) as descriptor:
                    n = _delete(descriptor, found[1])
                    _logger.info("deleted %d files that a killed process has left in %s", n, parent / name)
                    os.rmdir(name, dir_fd=above)


def _delete(descriptor: int, id_: str) -> int:
    """Delete the files of a folder, and its claim if nothing else is in it; return how many. Raises OSError."""
    remove_unfinished(descriptor)
    names = [name for name in os.listdir(descriptor) if name.startswith(f"{id_}-")]
    for name in names:
        os.unlink(name, dir_fd=descriptor)
    if os.listdir(descriptor) == [CLAIM]:
        os.unlink(CLAIM, dir_fd=descriptor)
    return len(names)
