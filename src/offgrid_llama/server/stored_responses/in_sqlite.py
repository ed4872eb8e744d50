"""InSqlite: records in a file of SQLite, which is there after a restart, however the server has ended."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

import msgspec

from .record import INTERRUPTED, Backend, Record

__all__ = ["InSqlite"]

VERSION = 1
"""Of the table, as the file's ``user_version``."""
CACHE_KIB = 4096
"""Memory that SQLite takes for pages of the file, at most."""

_TABLE = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY, key TEXT NOT NULL, previous TEXT, running INTEGER NOT NULL, kept_at REAL NOT NULL,
    n_bytes INTEGER NOT NULL, response BLOB NOT NULL, input BLOB NOT NULL, events BLOB NOT NULL
);
CREATE INDEX by_key ON responses (key, kept_at, n_bytes);
CREATE INDEX by_age ON responses (kept_at);
CREATE INDEX running ON responses (running) WHERE running;
"""
_COLUMNS = "id, key, previous, running, response, input, events"


class InSqlite(Backend):
    """Keeps records in a file, which one server at a time can use. Responses that were running are marked as failed.

    A record is in the file when ``put`` returns. The end of this process, by ``kill -9`` too, loses nothing of it; a power
    failure may lose the last ones.

    Args:
        path: of the file. It is created for this user only.
        max_bytes: of all records, at most. When there are more, the key with the most bytes loses its oldest.
        max_seconds: how long a record is kept; 0 is forever.

    Raises OSError for a file that cannot be used.
    """

    on_disk = True

    def __init__(self, path: Path, max_bytes: int, max_seconds: float) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._bytes_of_key: dict[str, int] = {}
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._errors():
            self._file = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
            try:
                self._set_up()
                by_key = self._file.execute("SELECT key, SUM(n_bytes) FROM responses GROUP BY key")
                self._bytes_of_key = dict(by_key)
                self._fail_interrupted()
            except BaseException:
                self._file.close()
                raise

    def _set_up(self) -> None:
        for setting in (
            "locking_mode = EXCLUSIVE",  # a second server would take responses that run here for interrupted ones
            "journal_mode = WAL",
            "synchronous = NORMAL",  # a commit is in the system's hands, and waits for no disk
            "secure_delete = ON",
            f"cache_size = -{CACHE_KIB}",
        ):
            self._file.execute(f"PRAGMA {setting}").fetchall()
        with self._transaction():  # takes the lock
            (version,) = self._file.execute("PRAGMA user_version").fetchone()
            if version not in (0, VERSION):
                raise OSError(f"{self._path} was written by another version of this server (table {version})")
            if version == 0:
                for statement in _TABLE.split(";"):
                    self._file.execute(statement)
                self._file.execute(f"PRAGMA user_version = {VERSION}")

    def put(self, record: Record) -> None:
        """Keep a record, in place of one with its id. Raises OSError."""
        with self._errors(), self._transaction():
            self._remove("id = ?", record.id)
            if self._max_seconds:
                self._remove("kept_at < ?", time() - self._max_seconds)
            if record.n_bytes <= self._max_bytes:
                self._insert(record)
            while sum(self._bytes_of_key.values()) > self._max_bytes:
                largest = max(self._bytes_of_key, key=self._bytes_of_key.__getitem__)
                oldest = "SELECT id FROM responses WHERE key = ? ORDER BY kept_at LIMIT 1"
                self._remove(f"id = ({oldest})", largest)

    def get(self, key: str, id_: str) -> Record | None:
        """Return the record with an id, if it belongs to this key. Raises OSError."""
        with self._errors():
            return next(self._select("id = ? AND key = ? AND kept_at >= ?", id_, key, self._since()), None)

    def records(self, key: str, prefix: str, *, newest_first: bool) -> Iterator[Record]:
        """Yield the records of a key whose ids begin with a prefix, in the order in which they were kept. Raises OSError."""
        order = f"kept_at {'DESC' if newest_first else 'ASC'}"
        with self._errors():
            yield from self._select(
                f"key = ? AND kept_at >= ? AND id >= ? AND id < ? ORDER BY {order}", key, self._since(), prefix,
                prefix + "\U0010ffff",
            )  # fmt: skip

    def delete(self, key: str, id_: str) -> bool:
        """Forget the record with an id, if it belongs to this key; return whether it did. Raises OSError."""
        with self._errors(), self._transaction():
            return self._remove("id = ? AND key = ?", id_, key) > 0

    def close(self) -> None:
        """Close the file."""
        with self._errors():
            self._file.close()

    def _since(self) -> float:
        """Return when the oldest record that is still kept was kept."""
        return time() - self._max_seconds if self._max_seconds else 0.0

    def _fail_interrupted(self) -> None:
        with self._transaction():
            for record in list(self._select("running")):
                response = msgspec.json.decode(record.response)
                response |= {"status": "failed", "error": {"code": "server_error", "message": INTERRUPTED}}
                self._remove("id = ?", record.id)
                self._insert(replace(record, running=False, response=msgspec.json.encode(response)))

    def _select(self, condition: str, *values: Any) -> Iterator[Record]:
        for *fields, response, items, events in self._file.execute(
            f"SELECT {_COLUMNS} FROM responses WHERE {condition}",  # noqa: S608 - conditions are ours
            values,
        ):
            id_, key, previous, running = fields
            yield Record(id_, key, previous, bool(running), response, items, events)

    def _insert(self, record: Record) -> None:
        self._bytes_of_key[record.key] = self._bytes_of_key.get(record.key, 0) + record.n_bytes
        self._file.execute(
            f"INSERT INTO responses ({_COLUMNS}, kept_at, n_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",  # noqa: S608
            (
                record.id, record.key, record.previous, record.running, record.response, record.input, record.events, time(),
                record.n_bytes,
            ),
        )  # fmt: skip

    def _remove(self, condition: str, *values: Any) -> int:
        """Delete records, and return how many."""
        removed = self._file.execute(
            f"DELETE FROM responses WHERE {condition} RETURNING key, n_bytes",  # noqa: S608 - conditions are ours
            values,
        ).fetchall()
        for key, n_bytes in removed:
            self._bytes_of_key[key] -= n_bytes
            if not self._bytes_of_key[key]:
                del self._bytes_of_key[key]
        return len(removed)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """Do all of a block or nothing."""
        self._file.execute("BEGIN IMMEDIATE")
        before = dict(self._bytes_of_key)
        try:
            yield
            self._file.execute("COMMIT")
        except BaseException:
            self._bytes_of_key = before
            if self._file.in_transaction:
                self._file.execute("ROLLBACK")
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise OSError, with the path, for an error of SQLite."""
        try:
            yield
        except sqlite3.Error as error:
            used = "another server uses it" if "locked" in str(error) else str(error)
            raise OSError(f"{self._path}: {used}") from error
