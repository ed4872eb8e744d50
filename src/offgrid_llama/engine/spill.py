"""SpillFolder: states that host memory has no room for, as files of a folder that is deleted with the engine.

They are what clients have asked. Where the process is killed, the next engine with the same ``cache_dir`` deletes them.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from offgrid_llama.context.state import State
from offgrid_llama.errors import StateError

from .owned_folder import OwnedFolder

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["SpillFolder"]

_logger = logging.getLogger("offgrid_llama.engine")

MAX_UNWRITTEN_STATES = 4
"""States that wait for the disk, at most: they still take host memory."""


class SpillFolder:
    """Writes and deletes in a thread of its own, so that no step waits for the disk; reads in the caller's.

    Args:
        parent: an existing folder, in which it makes one of its own.

    Raises OSError where it cannot make one.
    """

    def __init__(self, parent: str | os.PathLike[str]) -> None:
        self._folder = OwnedFolder(parent)
        self._unwritten: dict[int, State] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="offgrid_llama spill")

    def put(self, key: int, state: State) -> bool:
        """Write a state, soon. Returns False without writing it where too many states wait for the disk."""
        if len(self._unwritten) >= MAX_UNWRITTEN_STATES:
            return False
        self._unwritten[key] = state
        self._do(lambda: self._write(key, state))
        return True

    def get(self, key: int) -> State:
        """Return a state. Raises StateError where it could not be written, or its file is damaged."""
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

    def wait(self) -> None:
        """Wait until everything so far is written or deleted."""
        self._thread.submit(int).result()

    def close(self) -> None:
        """Delete all states, and the folder."""
        self._unwritten.clear()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._folder.remove()

    def _file(self, key: int) -> Path:
        return self._folder.file(f"{key}.state")

    def _write(self, key: int, state: State) -> None:
        if key in self._unwritten:  # or it was deleted meanwhile
            try:
                state.save(self._file(key))
            finally:
                self._unwritten.pop(key, None)

    def _do(self, function: Callable[[], object]) -> None:
        self._thread.submit(function).add_done_callback(_log_failure)


def _log_failure(future: Future[object]) -> None:
    if not future.cancelled() and (error := future.exception()) is not None:
        _logger.warning("a state could not be written to the disk, or deleted: %s", error)
