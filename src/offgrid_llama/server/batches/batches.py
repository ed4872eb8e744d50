"""Batches: files of requests that the server answers in its own time, and goes on with after a restart."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
from filelock import FileLock, Timeout

from offgrid_llama.server.api_error import ApiError, busy
from offgrid_llama.server.settings import Settings, SettingsError
from offgrid_llama.server.supervision.supervisor import Supervisor

from .files import StoredFiles, replace_file
from .lines import BatchLine, custom_id_of, read_line
from .runner import BatchRunner

__all__ = ["BatchRecord", "Batches"]

_logger = logging.getLogger("offgrid_llama.server")

MAX_REQUESTS = 50_000
"""Requests of one batch, at most, as in OpenAI's API."""
MAX_BATCHES = 10_000
"""Batches that are known, at most; of those that have ended the oldest are forgotten first, not their files."""
MAX_FAULTS = 20
"""Faults of an input file that are told; the rest of it is not looked at."""
RECORD_SECONDS = 1.0
"""How often the counts of a batch that runs are written."""
PRIORITY = -1
"""Of a batch's requests: those of people come first."""
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


class BatchRecord(msgspec.Struct, kw_only=True):
    """The description of a batch, as OpenAI has it; ``key`` is whose it is."""

    id: str
    key: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    object: str = "batch"
    status: str = "validating"
    errors: dict[str, Any] | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    expires_at: int | None = None
    expired_at: int | None = None
    request_counts: dict[str, int] = msgspec.field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})
    metadata: dict[str, str] | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's description of the batch."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        del found["key"]
        return found

    def now(self, status: str) -> None:
        """Set the status, and the time at which it began."""
        self.status = status
        setattr(self, f"{status}_at", int(time.time()))


class Batches:
    """The batches of a server. They run one after the other.

    Args:
        folder: of this server alone, for its files and batches.
        settings: of the server.
        supervisor: of its models.

    Raises SettingsError where another server uses the folder.

    Attributes:
        files: the files that clients upload, and that batches write.
    """

    def __init__(self, folder: Path, settings: Settings, supervisor: Supervisor) -> None:
        self._lock = FileLock(folder / "lock")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise SettingsError(f"batch_dir: another server uses {folder}") from None
        self.files = StoredFiles(folder / "files", settings.max_files_bytes)
        self._settings = settings
        self._supervisor = supervisor
        self._folder = folder / "batches"
        self._folder.mkdir(exist_ok=True)
        records = [msgspec.json.decode(path.read_bytes(), type=BatchRecord) for path in self._folder.glob("*.json")]
        self._records = {each.id: each for each in sorted(records, key=lambda each: (each.created_at, each.id))}
        self._running: tuple[BatchRecord, asyncio.Task[None]] | None = None
        self._changed = asyncio.Event()
        self._turn = count(1)
        self._turns: dict[str, int] = {}  # of each key: its last one

    def close(self) -> None:
        """Let another server use the folder."""
        self._lock.release()

    def wake(self) -> None:
        """Look for new batches."""
        self._changed.set()

    async def run(self) -> None:
        """Run the batches that are not finished, and those that come, until this is cancelled."""
        while True:
            record = self.take_turn()
            if record is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            task = asyncio.create_task(self._advance(record))
            self._running = record, task
            try:
                await asyncio.wait({task})
            finally:
                self._running = None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled() and task.exception() is not None:
                _logger.error("batch %s failed", record.id, exc_info=task.exception())
                self._fail(record, [{"code": "internal_error", "message": "the server failed; its log has the reason"}])

    def take_turn(self) -> BatchRecord | None:
        """Return the batch whose turn it is, of the key that has waited the longest for one the oldest; or None."""
        waiting = [each for each in self._records.values() if each.status in UNFINISHED]
        record = min(waiting, key=lambda each: self._turns.get(each.key, 0), default=None)
        if record is not None:
            self._turns[record.key] = next(self._turn)
        return record

    def create(
        self, key: str, input_file_id: str, endpoint: str, completion_window: str, metadata: dict[str, str] | None
    ) -> BatchRecord:
        """Return a new batch, which runs when it is its turn. Raises ApiError."""
        self.files.get(input_file_id, key)
        if len(self._records) >= MAX_BATCHES:
            self._forget_one()
        record = BatchRecord(
            id=f"batch_{secrets.token_hex(12)}", key=key, endpoint=endpoint, input_file_id=input_file_id,
            completion_window=completion_window, created_at=int(time.time()), metadata=metadata,
        )  # fmt: skip
        self._write(record)
        self._records[record.id] = record
        return record

    def get(self, id_: str, key: str) -> BatchRecord:
        """Return a batch of a key. Raises ApiError."""
        record = self._records.get(id_)
        if record is None or record.key != key:
            raise ApiError(404, f"there is no batch {id_!r:.100}", code="batch_not_found", param="batch_id")
        return record

    def of_key(self, key: str) -> list[BatchRecord]:
        """Return the batches of a key, the newest first."""
        return [each for each in reversed(self._records.values()) if each.key == key]

    def cancel(self, id_: str, key: str) -> BatchRecord:
        """End a batch; what is answered by then is in its files. Raises ApiError."""
        record = self.get(id_, key)
        if record.status not in UNFINISHED:
            raise ApiError(409, f"a batch that is {record.status} cannot be cancelled", code="batch_has_ended")
        record.now("cancelling")
        self._write(record)
        if self._running is not None and self._running[0] is record:
            self._running[1].cancel()
        return record

    def _forget_one(self) -> None:
        """Forget the oldest batch that has ended. Raises ApiError where none has."""
        found = next((each for each in self._records.values() if each.status not in UNFINISHED), None)
        if found is None:
            raise busy(429, f"{MAX_BATCHES:,} batches wait", "too_many_batches", 60)
        del self._records[found.id]
        (self._folder / f"{found.id}.json").unlink(missing_ok=True)

    # A batch runs -------------------------------------------------------------------------------------------------------

    async def _advance(self, record: BatchRecord) -> None:
        """Continue a batch until it ends. A cancelled one ends, too, unless the server stops."""
        try:
            if record.status in ("validating", "in_progress"):
                await self._answer(record)
            await asyncio.to_thread(self._finalize, record)
        except asyncio.CancelledError:
            if record.status != "cancelling":
                raise
            self._finalize(record)

    async def _answer(self, record: BatchRecord) -> None:
        lines = await asyncio.to_thread(self._validated, record)
        if lines is None:
            return
        done = await asyncio.to_thread(self._done, record)
        record.request_counts = {"total": len(lines), "completed": done[0], "failed": done[1]}
        record.now("in_progress")
        self._write(record)
        written = time.monotonic()
        runner = BatchRunner(
            self._supervisor, self._n_at_a_time(), record.key, ignore_unknown=self._settings.ignore_unknown,
            priority=PRIORITY,
        )  # fmt: skip
        with self._path(record, "output").open("ab") as output, self._path(record, "errors").open("ab") as errors:

            def answered(line: bytes, status: int) -> None:
                nonlocal written
                file = output if status == 200 else errors
                file.write(line)
                file.flush()
                record.request_counts["completed" if status == 200 else "failed"] += 1
                if time.monotonic() > written + RECORD_SECONDS:
                    self._write(record)
                    written = time.monotonic()

            await runner.run((line for line in lines if line.custom_id not in done[2]), answered)

    def _n_at_a_time(self) -> int:
        return max(1, max((model.n_parallel for model in self._settings.models), default=1) - 1)

    def _validated(self, record: BatchRecord) -> list[BatchLine] | None:
        """Return the requests of a batch; None where its file has lines that are none, with which the batch has failed."""
        faults: list[dict[str, Any]] = []
        found: dict[str, BatchLine] = {}
        for number, data in enumerate(self._lines(record), 1):
            try:
                line = read_line(data, self._settings.max_body_bytes)
                _check(line, record.endpoint, found)
                found[line.custom_id] = line
                if len(found) > MAX_REQUESTS:
                    raise ApiError(400, f"a batch may have {MAX_REQUESTS:,} requests", code="too_many_requests")
            except ApiError as error:
                faults.append({"code": error.code, "line": number, "message": error.message, "param": error.param})
                if len(faults) == MAX_FAULTS:
                    break
        if not found and not faults:
            faults.append({"code": "empty_file", "line": None, "message": "the file has no requests", "param": None})
        if faults:
            self._fail(record, faults)
            return None
        return list(found.values())

    def _lines(self, record: BatchRecord) -> Iterator[bytes]:
        yield from self.files.lines(self.files.get(record.input_file_id, record.key))

    def _done(self, record: BatchRecord) -> tuple[int, int, set[str]]:
        """Return how many requests have an answer, and how many an error, and the names of all. Cut lines are removed."""
        counts: list[int] = []
        names: set[str] = set()
        for kind in ("output", "errors"):
            n_before = len(names)
            with self._path(record, kind).open("ab+") as file:
                file.seek(0)
                end = 0
                for line in file:
                    name = custom_id_of(line) if line.endswith(b"\n") else None
                    if name is None:
                        break
                    names.add(name)
                    end += len(line)
                file.truncate(end)
            counts.append(len(names) - n_before)
        return counts[0], counts[1], names

    def _finalize(self, record: BatchRecord) -> None:
        """Make files of what was answered, and end the batch. It may be begun again after a kill at any moment."""
        if record.status == "failed":
            return
        last = "cancelled" if record.status == "cancelling" else "completed"
        if last == "completed":
            record.now("finalizing")
            self._write(record)
        record.output_file_id = self._stored(record, "output")
        record.error_file_id = self._stored(record, "errors")
        record.now(last)
        self._write(record)

    def _stored(self, record: BatchRecord, kind: str) -> str | None:
        """Return the id of a file of the batch, or None where that has no line."""
        path, id_ = self._path(record, kind), f"file-{record.id.removeprefix('batch_')}-{kind}"
        if path.exists() and path.stat().st_size:
            self.files.adopt(id_, path, record.key, f"{record.id}_{kind}.jsonl", "batch_output")
        else:
            path.unlink(missing_ok=True)
        return id_ if self.files.has(id_) else None

    def _fail(self, record: BatchRecord, faults: list[dict[str, Any]]) -> None:
        record.errors = {"object": "list", "data": faults}
        record.now("failed")
        self._write(record)

    def _path(self, record: BatchRecord, kind: str) -> Path:
        return self._folder / f"{record.id}.{kind}"

    def _write(self, record: BatchRecord) -> None:
        replace_file(self._folder / f"{record.id}.json", msgspec.json.encode(record))


def _check(line: BatchLine, endpoint: str, before: dict[str, BatchLine]) -> None:
    if line.url != endpoint:
        raise ApiError(
            400, f"url: the batch is for {endpoint}, not {line.url}", code="mismatched_endpoint", param="url"
        )
    if line.custom_id in before:
        raise ApiError(
            400,
            f"custom_id: {line.custom_id!r:.100} comes a second time",
            code="duplicate_custom_id",
            param="custom_id",
        )
