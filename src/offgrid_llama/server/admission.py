"""Admission: limits how many requests wait, in all and for each key.

Requests are counted by what they take: a request with three prompts and ``n`` 2 counts as six. What finds a free sequence of
its model does not wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from .api_error import ApiError, busy, stopping
from .settings import ModelSettings, Settings

__all__ = ["Admission"]

MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
NEW_WEIGHT = 0.1
"""Weight of the last request's time in the moving average, from which Retry-After comes."""


class Admission:
    """Counts what runs or waits.

    Attributes:
        n: completions and calls that run or wait.
        stopping: set when the server stops; it then takes no more requests.
    """

    def __init__(self, settings: Settings) -> None:
        self._max_queue = settings.max_queue
        self._share = settings.share_of_one_key
        self._n_slots = {model.name: model.n_parallel for model in settings.models}
        self._by_model: Counter[str] = Counter()
        self._by_key: Counter[str] = Counter()
        self._n_waiting = 0
        self._seconds = 1.0  # average time of a request, of late
        self.n = 0
        self.stopping = False

    def offer(self, model: ModelSettings) -> None:
        """Take that the server has a further model."""
        self._n_slots[model.name] = model.n_parallel

    @contextmanager
    def request(self, key: str, model: str, n: int = 1) -> Iterator[None]:
        """Count a request until the block ends.

        Args:
            key: of the client.
            model: that the request is for.
            n: what it counts as: its prompts, times the answers to each.

        Raises ApiError 400 for a request that is larger than the share of a key, 429 when the key has too many requests,
        and 503 when the server has, or stops.
        """
        self._check(key, model, n)
        begin = monotonic()
        self._count(key, model, n)
        try:
            yield
        finally:
            self._count(key, model, -n)
            self._seconds += NEW_WEIGHT * (monotonic() - begin - self._seconds)

    def _check(self, key: str, model: str, n: int) -> None:
        if self.stopping:
            raise stopping()
        n_more = self._waiting(model, n) - self._waiting(model)
        if not n_more:
            return
        n_of_key = max(1, int(self._share * (self._max_queue + self._n_slots.get(model, 0))))
        if n > n_of_key:
            message = f"a request may ask for {n_of_key} completions at a time, over all prompts; this one asks for {n}"
            raise ApiError(400, message, code="too_many_completions")
        if self._n_waiting + n_more > self._max_queue:
            raise busy(
                503, f"the server is full: {self._n_waiting} requests wait", "server_full", self._retry_seconds()
            )
        if self._by_key[key] + n > n_of_key:
            message = f"{self._by_key[key]} requests of this key run or wait"
            raise busy(429, message, "too_many_requests", self._retry_seconds())

    def _count(self, key: str, model: str, n: int) -> None:
        self.n += n
        self._n_waiting += self._waiting(model, n) - self._waiting(model)
        for counter, name in ((self._by_model, model), (self._by_key, key)):
            counter[name] += n
            if not counter[name]:
                del counter[name]

    def _waiting(self, model: str, n_more: int = 0) -> int:
        """Return how many of a model's requests wait, or would with ``n_more``."""
        return max(0, self._by_model[model] + n_more - self._n_slots.get(model, 0))

    def _retry_seconds(self) -> float:
        """Return after how many seconds a request has probably ended."""
        return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, self._seconds))
