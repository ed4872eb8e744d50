"""Files that are whole under their name, or not there: written beside it, and renamed when all is on the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a path to write ``path`` under; when the block ends well, what is there takes its place.

    Other files that the block writes into the same folder move along. Where the block raises, nothing is left.
    """
    folder = Path(tempfile.mkdtemp(prefix=".offgrid-llama.", dir=path.parent))
    try:
        yield folder / path.name
        files = sorted(folder.iterdir(), reverse=True)  # the first of a split model, which names the others, last
        for file in files:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        for file in files:
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
