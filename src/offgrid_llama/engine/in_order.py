"""Many requests, some of which run at a time, and their answers in the order of the requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any, Protocol, TypeVar

__all__ = ["REQUESTS_PER_SEQUENCE", "in_order", "results"]

REQUESTS_PER_SEQUENCE = 4
"""Requests that are submitted at once, for each sequence, so that the next ones are ready when some end."""


class _Request(Protocol):
    def cancel(self) -> None: ...


class _Waiting(_Request, Protocol):
    def result(self) -> Any: ...


class _Failed:
    """Stands for a request that could not be submitted."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def cancel(self) -> None:
        """Do nothing, as nothing runs."""

    def result(self) -> Any:
        raise self._error


_T = TypeVar("_T")
_R = TypeVar("_R", bound=_Request)


def in_order(submit: Callable[[_T], _R], items: Iterable[_T], n: int) -> Generator[_R, None, None]:
    """Yield the request of each item, in their order, while up to ``n`` are submitted. Its end cancels the others.

    Items are taken when they are submitted.
    """
    submitted: deque[_R] = deque()
    try:
        for item in items:
            submitted.append(submit(item))
            if len(submitted) == n:
                yield submitted.popleft()
        while submitted:
            yield submitted.popleft()
    finally:
        for each in submitted:
            each.cancel()


def results(submit: Callable[[_T], _Waiting], items: Iterable[_T], n: int, *, return_exceptions: bool) -> Iterator[Any]:
    """Yield the result of each item's request, in order; with ``return_exceptions``, errors stand for results."""

    def submitted(item: _T) -> _Waiting:
        try:
            return submit(item)
        except Exception as error:
            if return_exceptions:
                return _Failed(error)
            raise

    with closing(in_order(submitted, items, n)) as requests:
        for request in requests:
            try:
                result = request.result()
            except Exception as error:
                if not return_exceptions:
                    raise
                result = error
            yield result
