"""BodyBytes: limits the bytes of the bodies that the server holds at the same time, in all and for each key.

Bodies of requests count from when they come until the request is answered, large answers while they are sent. An answer is
never refused, but while many wait for their clients, there is no room for further requests.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .api_error import busy
from .settings import Settings

__all__ = ["BodyBytes"]

RETRY_SECONDS = 5


class BodyBytes:
    """Counts the bytes of bodies.

    Attributes:
        n: bytes that are held. max_of_one_key: how many of them one key may have.
    """

    def __init__(self, settings: Settings) -> None:
        share = settings.share_of_one_key
        self._max = max(settings.max_held_body_bytes, math.ceil(settings.max_body_bytes / share))
        self.max_of_one_key = int(self._max * share)  # room for one body of the largest size, at least
        self._by_key: Counter[str] = Counter()
        self.n = 0

    @contextmanager
    def holding(self, key: str) -> Iterator[Callable[[int], None]]:
        """Give a function that counts bytes of a body until the block ends.

        It raises ApiError 429 when the key has too many, and 503 when the server has.
        """
        held = 0

        def hold(n: int) -> None:
            nonlocal held
            if self.n + n > self._max:
                raise busy(503, f"the server holds {self.n:,} bytes of other bodies", "server_full", RETRY_SECONDS)
            if self._by_key[key] + n > self.max_of_one_key:
                message = f"the server holds {self._by_key[key]:,} bytes of other bodies of this key"
                raise busy(429, message, "too_many_bytes", RETRY_SECONDS)
            held += n
            self._add(key, n)

        try:
            yield hold
        finally:
            self._add(key, -held)

    @contextmanager
    def sending(self, key: str, n: int) -> Iterator[None]:
        """Count bytes of an answer until the block ends."""
        self._add(key, n)
        try:
            yield
        finally:
            self._add(key, -n)

    def _add(self, key: str, n: int) -> None:
        self.n += n
        self._by_key[key] += n
        if not self._by_key[key]:
            del self._by_key[key]
