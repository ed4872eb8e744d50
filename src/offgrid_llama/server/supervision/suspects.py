"""Suspects: requests that may be what kills workers."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError

__all__ = ["MAX_DEATHS", "Suspects", "fingerprint"]

MAX_DEATHS = 2
"""A request that was with a worker at this many deaths is not computed again."""
MAX_SUSPECTS = 1024
"""Fingerprints that are remembered; the oldest are forgotten first, which bounds the memory that clients can fill."""


class Suspects:
    """Counts, for the fingerprint of each request, the workers that died while they computed it."""

    def __init__(self) -> None:
        self._n_deaths: OrderedDict[bytes, int] = OrderedDict()

    def refuse(self, digest: bytes) -> None:
        """Raise ApiError for a request that was there at too many deaths."""
        if self._n_deaths.get(digest, 0) >= MAX_DEATHS:
            raise ApiError(
                500, f"a worker died {MAX_DEATHS} times while it computed this request; it is not tried again",
                code="request_quarantined",
            )  # fmt: skip

    def count_death(self, digest: bytes) -> None:
        """Count a death of the worker that this request was with."""
        self._n_deaths[digest] = self._n_deaths.pop(digest, 0) + 1
        while len(self._n_deaths) > MAX_SUSPECTS:
            self._n_deaths.popitem(last=False)

    def clear(self, digest: bytes) -> None:
        """Forget a request, which has been answered."""
        self._n_deaths.pop(digest, None)


def fingerprint(model: str, request: Any) -> bytes:
    """Return a digest that tells a request from others.

    Raises ApiError for a whole number of more than 64 bits, which no frame can carry.
    """
    try:
        return hashlib.sha256(model.encode() + b"\0" + msgspec.msgpack.encode(request)).digest()
    except OverflowError as error:
        raise ApiError(400, "a whole number of the body has more than 64 bits", code="invalid_value") from error
