"""Admission: how many requests there may be, in all and of one key."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from .errors import busy
from .settings import Settings

__all__ = ["Admission"]


class Admission:
    """Counts requests that run or wait.

    Attributes:
        n: how many there are.
        stopping: whether there are to be no more.
    """

    def __init__(self, settings: Settings) -> None:
        self._most = settings.max_queue
        # Without keys all are of one.
        share = settings.max_queue_share if len(settings.api_keys) > 1 else 1.0
        self._most_of_one = max(1, int(settings.max_queue * share))
        self._by_key: Counter[str] = Counter()
        self._seconds = 1.0  # that a request takes, lately, beside others
        self.n = 0
        self.stopping = False

    @contextmanager
    def request(self, key: str) -> Iterator[None]:
        """Count a request until the block ends. Raises ApiError 429 where its key has too many, 503 where there are."""
        if self.stopping:
            raise busy(503, "the server is stopping", "stopping", 5)
        if self.n >= self._most:
            raise busy(503, f"{self.n} requests run or wait; no more are taken", "server_full", self._wait())
        if self._by_key[key] >= self._most_of_one:
            raise busy(429, f"{self._by_key[key]} requests of this key run or wait", "too_many_requests", self._wait())
        begin = monotonic()
        self.n += 1
        self._by_key[key] += 1
        try:
            yield
        finally:
            self.n -= 1
            self._by_key[key] -= 1
            if not self._by_key[key]:
                del self._by_key[key]
            self._seconds += 0.1 * (monotonic() - begin - self._seconds)

    def _wait(self) -> float:
        """Return after how many seconds it is worth to come again."""
        return min(60.0, max(1.0, self._seconds))
