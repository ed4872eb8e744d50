"""Turn: what one caller does at a time, from its beginning to its end (standard library only)."""

from __future__ import annotations

import threading
from threading import get_ident

__all__ = ["Turn"]


class Turn:
    """A lock that is held as long as something lasts. Threads wait for others, and get an error where it is their own.

    Args:
        refusal: the message of the RuntimeError that a thread gets which has the turn, and asks for another one.
    """

    def __init__(self, refusal: str) -> None:
        self._refusal = refusal
        self._lock = threading.Lock()
        self._thread = 0

    def __enter__(self) -> None:
        if self._thread == get_ident():
            raise RuntimeError(self._refusal)
        self._lock.acquire()
        self._thread = get_ident()

    def __exit__(self, *_: object) -> None:
        self._thread = 0
        self._lock.release()
