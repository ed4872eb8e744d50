"""InMemory: records in memory, within bounds."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from time import time

from .record import Backend, Record

__all__ = ["InMemory"]


class InMemory(Backend):
    """Keeps records until there are too many. Then the key with the most bytes loses those that it used least recently.

    Args:
        max_records: records of all keys together, at most.
        max_bytes: their bytes, at most. A record that is larger by itself is not kept.
        max_seconds: how long a record is kept; 0 is forever.
    """

    on_disk = False

    def __init__(self, max_records: int, max_bytes: int, max_seconds: float) -> None:
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._by_key: dict[str, OrderedDict[str, tuple[float, Record]]] = {}  # the least recently used first
        self._bytes_of_key: dict[str, int] = {}
        self._n_records = 0

    def put(self, record: Record) -> None:
        """Keep a record, in place of one with its id."""
        self.delete(record.key, record.id)
        self._by_key.setdefault(record.key, OrderedDict())[record.id] = time(), record
        self._bytes_of_key[record.key] = self._bytes_of_key.get(record.key, 0) + record.n_bytes
        self._n_records += 1
        while self._n_records > self._max_records or sum(self._bytes_of_key.values()) > self._max_bytes:
            largest = max(self._bytes_of_key, key=self._bytes_of_key.__getitem__)
            self.delete(largest, next(iter(self._by_key[largest])))

    def get(self, key: str, id_: str) -> Record | None:
        """Return the record with an id, if it belongs to this key."""
        records = self._by_key.get(key)
        if records is None or id_ not in records:
            return None
        kept_at, record = records[id_]
        if self._max_seconds and time() - kept_at > self._max_seconds:
            self.delete(key, id_)
            return None
        records.move_to_end(id_)
        return record

    def records(self, key: str, prefix: str, *, newest_first: bool) -> Iterator[Record]:
        """Yield the records of a key whose ids begin with a prefix, in the order in which they were kept."""
        since = time() - self._max_seconds if self._max_seconds else 0.0
        found = [each for id_, each in self._by_key.get(key, {}).items() if id_.startswith(prefix) and each[0] >= since]
        for _, record in sorted(found, key=lambda each: each[0], reverse=newest_first):
            yield record

    def delete(self, key: str, id_: str) -> bool:
        """Forget the record with an id, if it belongs to this key; return whether it did."""
        records = self._by_key.get(key)
        if records is None or id_ not in records:
            return False
        _, record = records.pop(id_)
        self._n_records -= 1
        self._bytes_of_key[key] -= record.n_bytes
        if not records:
            del self._by_key[key], self._bytes_of_key[key]
        return True

    def close(self) -> None:
        """Keep nothing."""
        self._by_key.clear()
