"""ThreadShares: how many threads a worker's engine computes with, and how many its embeddings and ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from offgrid_llama.engine import Engine
from offgrid_llama.errors import ClosedError
from offgrid_llama.native.backend import default_threads

__all__ = ["ThreadShares"]


class ThreadShares:
    """Shares the threads of a worker: where both compute at once, each has half of them.

    With more threads than cores, a step of the engine waits again and again for a thread that has no core.

    Args:
        engine: the Engine; None where there is none.
        n_threads: threads in all; None is one for each core.
    """

    def __init__(self, engine: Engine | None, n_threads: int | None) -> None:
        self._engine = engine
        self._n_most = self._n_allowed = n_threads or default_threads()
        self._lock = Lock()
        self._n_pooled = 0

    def allow(self, n: int) -> None:
        """Let the worker compute with up to ``n`` threads, and no more than it was made with."""
        with self._lock:
            self._n_allowed = min(n, self._n_most)
            self._tell_engine()

    @contextmanager
    def pooled(self) -> Iterator[int]:
        """Give the number of threads for embeddings or ranks; the engine has the others meanwhile."""
        with self._lock:
            shared = self._engine is not None and self._engine.stats().n_running > 0
            self._n_pooled = max(1, self._n_allowed // 2) if shared else self._n_allowed
            self._tell_engine()
        try:
            yield self._n_pooled
        finally:
            with self._lock:
                self._n_pooled = 0
                self._tell_engine()

    def _tell_engine(self) -> None:
        if self._engine is not None:
            with suppress(ClosedError):
                self._engine.set_n_threads(max(1, self._n_allowed - self._n_pooled))
