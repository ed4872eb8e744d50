"""FairQueue: what waits, of several tenants, in an order by which none waits for all that another has brought (pure).

Each tenant has a virtual time: the tokens that it has been given. The next item is that of the tenant that has been given
least. A tenant that comes back after a while begins at the virtual time of those that are there: being away earns nothing.
Where nothing waits, all tenants are equal.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

__all__ = ["FairQueue", "Waiting"]

T = TypeVar("T")

MAX_TENANTS = 1024
"""Tenants that are remembered, before those are forgotten that have been given no more than others."""


@dataclass(order=True, slots=True)
class Waiting(Generic[T]):
    """An item that waits. The larger priority comes first, then the tenant's turn, then the order of arrival."""

    rank: int  # the negative priority
    number: int
    tenant: str = field(compare=False)
    n_tokens: int = field(compare=False)
    item: T = field(compare=False)


class FairQueue(Generic[T]):
    """A queue of items, each with a tenant and the tokens that it takes, as far as that is known beforehand."""

    def __init__(self) -> None:
        self._waiting: dict[str, list[Waiting[T]]] = {}  # a heap for each tenant with items
        self._given: dict[str, int] = {}  # tokens, by tenant
        self._now = 0  # the virtual time: that of the tenant whose turn was last
        self._number = count()

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[T]:
        """Return the items, in no order."""
        return (entry.item for heap in self._waiting.values() for entry in heap)

    @property
    def n_tenants(self) -> int:
        """How many tenants it remembers."""
        return len(self._given)

    def push(self, item: T, n_tokens: int, tenant: str = "", priority: int = 0) -> None:
        """Append an item."""
        if not self._waiting:
            self._now = max([self._now, *self._given.values()])
            self._given.clear()
        if tenant not in self._waiting:
            if len(self._given) >= MAX_TENANTS:
                self._given = {name: given for name, given in self._given.items() if given > self._now}
            self._given[tenant] = max(self._now, self._given.get(tenant, 0))
        self._push(Waiting(-priority, next(self._number), tenant, n_tokens, item))

    def pop(self, passed: Collection[str] = ()) -> Waiting[T] | None:
        """Remove and return the next item, and count its tokens; None where only tenants that are passed over have items."""
        tenant = min((tenant for tenant in self._waiting if tenant not in passed), key=self._turn, default=None)
        if tenant is None:
            return None
        heap = self._waiting[tenant]
        entry = heapq.heappop(heap)
        if not heap:
            del self._waiting[tenant]
        self._now = max(self._now, self._given.get(tenant, 0))
        self.count(tenant, entry.n_tokens)
        return entry

    def put_back(self, entry: Waiting[T]) -> None:
        """Let an item wait again, at the place that it had."""
        self._push(entry)
        self.count(entry.tenant, -entry.n_tokens)

    def count(self, tenant: str, n_tokens: int) -> None:
        """Count tokens that a tenant is given, beside those that its items were queued with."""
        self._given[tenant] = self._given.get(tenant, self._now) + n_tokens

    def _push(self, entry: Waiting[T]) -> None:
        heapq.heappush(self._waiting.setdefault(entry.tenant, []), entry)

    def _turn(self, tenant: str) -> tuple[int, int, int]:
        first = self._waiting[tenant][0]
        return first.rank, self._given.get(tenant, self._now), first.number
