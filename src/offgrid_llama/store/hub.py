"""Models in a Hugging Face repository, fetched with ``huggingface_hub``'s own session and credentials.

The hub's client tells the file's address, length and sha256 (the LFS etag). Its session has the user's proxies,
certificates, HF_ENDPOINT and HF_TOKEN. The bytes are read here, not by ``hf_hub_download``, which no longer keeps the bytes
of a broken transfer, so that a large model on a slow line would start over each time, and cannot be cancelled cleanly.
"""

from __future__ import annotations

import importlib
import re
import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from offgrid_llama.errors import ChecksumError, DownloadError

from .transfer import DownloadProgress, Fetched, PartFile, check_room, log

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable
    from pathlib import Path
    from types import ModuleType

    from .entries import Entry, HubSource

MAX_EMPTY_TRIES = 5
"""Transfers in a row without a byte after which the download fails."""
RETRY_PAUSE_SECONDS = 1.0
"""Pause before the second try; each further one is twice as long."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}


class _Remote(NamedTuple):
    url: str
    sha256: str
    size: int


class _InterruptedError(Exception):
    """The connection broke; the bytes before that are good."""


def fetch(
    entry: Entry, source: HubSource, folder: Path, progress: DownloadProgress, endpoint: str | None = None
) -> Fetched:
    """Download the file into ``folder``, and resume there what an earlier download began."""
    hub = _client()
    remote = _look_up(hub, entry, source, endpoint)
    progress.total = remote.size
    with PartFile.open(folder, remote.sha256, remote.size) as part_file:
        part_file.keep(part_file.on_disk if part_file.on_disk <= remote.size else 0, progress)
        check_room(entry.name, folder, remote.size - part_file.size)
        empty_tries = 0
        while part_file.size < remote.size:
            before = part_file.size
            try:
                with closing(_chunks(hub, entry, source, remote.url, before)) as chunks:
                    _append(part_file, chunks, progress)
                if part_file.size < remote.size:
                    raise _InterruptedError(f"the connection ended after {part_file.size} of {remote.size} bytes")
            except _InterruptedError as error:
                empty_tries = 1 if part_file.size > before else empty_tries + 1
                if empty_tries >= MAX_EMPTY_TRIES:
                    raise DownloadError(
                        f"the download of {entry.name} from {source.repo} broke off: {error}. The bytes so far are kept; a"
                        " second try resumes the download"
                    ) from error.__cause__
                log.warning("%s: %s; trying again", entry.name, error)
                progress.below(part_file.size)
                time.sleep(RETRY_PAUSE_SECONDS * 2 ** (empty_tries - 1))
        return part_file.seal(entry.name)


def files_of(entry: Entry, source: HubSource, endpoint: str | None = None) -> list[str]:
    """Return the names of the files in a model's repository."""
    hub = _client()
    try:
        return [str(name) for name in hub.HfApi(endpoint).list_repo_files(source.repo, revision=source.revision)]
    except Exception as error:
        raise _why(hub, error, entry, source) from error


def _append(part_file: PartFile, chunks: Iterable[tuple[int, bytes]], progress: DownloadProgress) -> None:
    for position, chunk in chunks:
        if position != part_file.size:  # the server starts over although it was asked not to
            part_file.keep(position)
        part_file.write(chunk)
        progress.below(part_file.size)


def _client() -> ModuleType:
    """Import ``huggingface_hub``, which takes long: only for a download from there."""
    cure = "pip install --upgrade 'offgrid-llama[hub]'"
    try:
        hub = importlib.import_module("huggingface_hub")
        for module in ("constants", "errors", "utils"):
            importlib.import_module(f"huggingface_hub.{module}")
    except ImportError as error:
        raise DownloadError(f"models from Hugging Face need the huggingface_hub package ({error}): {cure}") from error
    version = str(getattr(hub, "__version__", "0"))
    if version.startswith("0."):
        raise DownloadError(f"huggingface_hub {version} is too old, 1.0 or newer is needed: {cure}")
    return hub


def _look_up(hub: ModuleType, entry: Entry, source: HubSource, endpoint: str | None) -> _Remote:
    """Ask the hub for the file's commit, length and sha256."""
    url = hub.hf_hub_url(source.repo, source.file, revision=source.revision, endpoint=endpoint)
    try:
        found = hub.get_hf_file_metadata(url, endpoint=endpoint)
    except Exception as error:
        raise _why(hub, error, entry, source) from error
    tag = str(found.etag or "")
    sha256 = entry.sha256
    if _SHA256.fullmatch(tag):
        if sha256 is not None and sha256 != tag:
            raise ChecksumError(
                f"{source} has sha256 {tag} and not {sha256}, which the catalog expects; nothing was downloaded"
            )
        sha256 = tag
    if sha256 is None:
        raise DownloadError(f"{source} has no sha256 on the hub, so a download could not be checked")
    if found.size is None:
        raise DownloadError(f"the hub does not tell the size of {source}")
    # The commit, not the branch: the branch may move between two tries.
    pinned = hub.hf_hub_url(source.repo, source.file, revision=found.commit_hash or source.revision, endpoint=endpoint)
    return _Remote(str(pinned), sha256, int(found.size))


def _chunks(
    hub: ModuleType, entry: Entry, source: HubSource, url: str, start: int
) -> Generator[tuple[int, bytes], None, None]:
    """Yield the chunks of the file with their positions: from ``start``, or from 0 if the server does not skip.

    Raises ``_InterruptedError`` where a further try may help and ``DownloadError`` where it cannot. Errors of the
    consumer do not pass through here.
    """
    headers = {**hub.utils.build_hf_headers(), "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        timeout = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
        with hub.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
                hub.hf_raise_for_status(response)
            position = start if response.status_code == 206 else 0
            for chunk in response.iter_bytes():
                yield position, chunk
                position += len(chunk)
    except Exception as error:
        status = _status(error)
        offline = isinstance(error, hub.errors.OfflineModeIsEnabled)
        if offline or (status is not None and status not in _RETRIED_STATUSES):
            raise _why(hub, error, entry, source) from error
        raise _InterruptedError(_line(error)) from error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that caused the error; None without an answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _line(error: BaseException) -> str:
    """Return the error's first line, or its type if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _why(hub: ModuleType, error: Exception, entry: Entry, source: HubSource) -> DownloadError:
    """Return the error for an answer of the hub: its meaning, and the remedy."""
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    page = f"https://huggingface.co/{source.repo}"
    status = _status(error)
    if isinstance(error, hub.errors.GatedRepoError):
        return DownloadError(f"{entry.name} is gated: ask for access or accept its terms at {page}, then {log_in}")
    if isinstance(error, hub.errors.RevisionNotFoundError):
        return DownloadError(f"{page} has no revision {source.revision!r}")
    if isinstance(error, hub.errors.EntryNotFoundError) and status is not None:
        return DownloadError(f"{page} has no file {source.file!r} at revision {source.revision!r}")
    if isinstance(error, hub.errors.RepositoryNotFoundError):
        return DownloadError(f"there is no {page}, or it is private: check the name, or {log_in}")
    if status in (401, 403):
        return DownloadError(f"{page} refuses access (HTTP {status}): accept its terms if it is gated, and {log_in}")
    if isinstance(error, hub.errors.OfflineModeIsEnabled):
        return DownloadError(f"{entry.name} is not in the cache and HF_HUB_OFFLINE forbids the download")
    return DownloadError(f"{entry.name} could not be downloaded from {page}: {_line(error)}")
