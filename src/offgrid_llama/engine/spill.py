"""SpillFolder: states that host memory has no room for, as files of a folder that goes with the engine."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StateError
from ..state import State

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SpillFolder"]

_logger = logging.getLogger("offgrid_llama.engine")

UNWRITTEN = 4
"""Most states that wait for the disk."""


class SpillFolder:
    """Writes and deletes in a thread of its own, so that no step waits for the disk; reads in the caller's.

    Args:
        parent: an existing folder, in which it makes one of its own.

    Raises OSError where it cannot.
    """

    def __init__(self, parent: str | os.PathLike[str]) -> None:
        self._path = Path(tempfile.mkdtemp(prefix="offgrid-llama-", dir=parent))
        self._unwritten: dict[int, State] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="offgrid_llama spill")

    def put(self, key: int, state: State) -> bool:
        """Write a state, soon. Returns False, and does not, where the disk is behind: what waits for it takes memory."""
        if len(self._unwritten) >= UNWRITTEN:
            return False
        self._unwritten[key] = state
        self._do(lambda: self._write(key, state))
        return True

    def get(self, key: int) -> State:
        """Return a state. Raises StateError where it could not be written, or is not as it was."""
        state = self._unwritten.get(key)
        if state is not None:
            return state
        try:
            return State.load(self._file(key))
        except OSError as error:
            raise StateError(f"{self._file(key)}: {error.strerror or error}") from error

    def forget(self, key: int) -> None:
        """Delete a state, soon."""
        self._unwritten.pop(key, None)
        self._do(lambda: self._file(key).unlink(missing_ok=True))

    def close(self) -> None:
        """Delete all, and the folder."""
        self._unwritten.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)
        shutil.rmtree(self._path, ignore_errors=True)

    def _file(self, key: int) -> Path:
        return self._path / f"{key}.state"

    def _write(self, key: int, state: State) -> None:
        if key in self._unwritten:  # or it is forgotten already
            try:
                state.save(self._file(key))
            finally:
                self._unwritten.pop(key, None)

    def _do(self, what: Callable[[], object]) -> None:
        self._thread.submit(what).add_done_callback(_log_failure)


def _log_failure(future: Future[object]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _logger.warning("a state could not be put on the disk, or deleted: %s", error)
