"""StoredFiles: files that clients have uploaded, and that batches have written, each of one key."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError

__all__ = ["FileRecord", "StoredFiles", "replace_file"]

MAX_FILES = 10_000
"""Files of all keys together, at most."""


class FileRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The description of a file.

    Attributes:
        id: of the file.
        key: whose it is: a short digest, or "" where there are no two keys.
        filename: as its owner has named it.
        purpose: "batch", "batch_output" and the like.
        bytes: its size.
        created_at: seconds since 1970.
    """

    id: str
    key: str
    filename: str
    purpose: str
    bytes: int
    created_at: int

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's description of the file."""
        return {
            "id": self.id, "object": "file", "bytes": self.bytes, "created_at": self.created_at, "expires_at": None,
            "filename": self.filename, "purpose": self.purpose, "status": "processed", "status_details": None,
        }  # fmt: skip


@dataclass(eq=False)
class _Upload:
    """A file that is being written."""

    path: Path
    n_bytes: int = 0


class StoredFiles:
    """Files in a folder. A file that was told as stored is there after the next start, however the server ended.

    Args:
        folder: it is made where it does not exist.
        max_bytes: of all files together.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._records: dict[str, FileRecord] = {}
        self._uploads: list[_Upload] = []
        for path in folder.glob("file-*.json"):
            record = msgspec.json.decode(path.read_bytes(), type=FileRecord)
            if self.path(record).exists():
                self._records[record.id] = record
        for path in folder.iterdir():  # what a kill in the middle of a change has left
            if path.stem not in self._records:
                path.unlink()

    @property
    def n_bytes(self) -> int:
        """The size of all files together, with those that are being written."""
        return sum(each.bytes for each in self._records.values()) + sum(each.n_bytes for each in self._uploads)

    def of_key(self, key: str) -> list[FileRecord]:
        """Return the files of a key, the newest first."""
        found = [record for record in self._records.values() if record.key == key]
        return sorted(found, key=lambda record: (record.created_at, record.id), reverse=True)

    def get(self, id_: str, key: str) -> FileRecord:
        """Return a file of a key. Raises ApiError."""
        record = self._records.get(id_)
        if record is None or record.key != key:
            raise ApiError(404, f"there is no file {id_!r:.100}", code="file_not_found", param="file_id")
        return record

    def path(self, record: FileRecord) -> Path:
        """Return where the bytes of a file are."""
        return self._folder / f"{record.id}.jsonl"

    def begin(self) -> _Upload:
        """Begin to write a file. Raises ApiError where there are too many."""
        if len(self._records) >= MAX_FILES:
            raise ApiError(400, f"{MAX_FILES:,} files are stored already; delete some", code="too_many_files")
        upload = _Upload(self._folder / f"{secrets.token_hex(12)}.part")
        self._uploads.append(upload)
        return upload

    def write(self, upload: _Upload, data: bytes) -> None:
        """Append to a file that is being written. Raises ApiError where there is no more room."""
        upload.n_bytes += len(data)
        if self.n_bytes > self._max_bytes:
            raise ApiError(413, f"files may have {self._max_bytes:,} bytes in all; delete some", code="too_many_bytes")
        with upload.path.open("ab") as file:
            file.write(data)

    def finish(self, upload: _Upload, key: str, filename: str, purpose: str) -> FileRecord:
        """Store a file that was written."""
        upload.path.touch()
        self._uploads.remove(upload)
        return self.adopt(f"file-{secrets.token_hex(12)}", upload.path, key, filename, purpose)

    def abandon(self, upload: _Upload) -> None:
        """Remove a file that was begun and will not be stored."""
        upload.path.unlink(missing_ok=True)
        if upload in self._uploads:
            self._uploads.remove(upload)

    def adopt(self, id_: str, path: Path, key: str, filename: str, purpose: str) -> FileRecord:
        """Store a file that lies elsewhere on the same disk; it is moved. After a kill in the middle it is still there."""
        record = FileRecord(
            id=id_, key=key, filename=filename, purpose=purpose, bytes=path.stat().st_size, created_at=int(time.time())
        )
        _sync(path)
        replace_file(self._folder / f"{record.id}.json", msgspec.json.encode(record))
        path.replace(self.path(record))
        self._records[record.id] = record
        return record

    def has(self, id_: str) -> bool:
        """Return whether there is a file, whosever it is."""
        return id_ in self._records

    def delete(self, id_: str, key: str) -> None:
        """Delete a file of a key. Raises ApiError."""
        record = self.get(id_, key)
        (self._folder / f"{record.id}.json").unlink(missing_ok=True)
        self.path(record).unlink(missing_ok=True)
        del self._records[id_]

    def lines(self, record: FileRecord) -> Iterator[bytes]:
        """Yield the lines of a file that are not empty."""
        with self.path(record).open("rb") as file:
            for line in file:
                if line.strip():
                    yield line.strip()


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole: it has its old content or the new one, whenever this process ends."""
    new = path.with_suffix(".new")
    new.write_bytes(data)
    _sync(new)
    new.replace(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
