"""Models that lie in a Hugging Face repository, fetched with ``huggingface_hub``'s own session and credentials.

The hub's client says where the file is, how long it is and what its sha256 must be (the LFS etag), and its session,
with the user's proxies, certificates, HF_ENDPOINT and HF_TOKEN, carries the bytes. Reading them is done here, not by
``hf_hub_download``: that one no longer keeps what a broken transfer left, so a large model on a thin line would begin
anew each time, and its progress bar cannot cancel a transfer in an orderly way.
"""

from __future__ import annotations

import importlib
import re
import time
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ChecksumError, DownloadError
from .transfer import Fetched, PartFile, Progress, check_room, log

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path
    from types import ModuleType

    from .catalog import Entry, HubSource

_SHA256 = re.compile(r"[0-9a-f]{64}")
_TRIES = 5  # transfers in a row that bring no byte before the download is given up
_PAUSE = 1.0  # seconds before the second try, doubled for each further one
_TRY_AGAIN = {408, 429, 500, 502, 503, 504}


class _Remote(NamedTuple):
    url: str
    sha256: str
    size: int


class _InterruptedError(Exception):
    """The connection broke; what came before it is good."""


def fetch(entry: Entry, source: HubSource, folder: Path, progress: Progress, endpoint: str | None = None) -> Fetched:
    """Get the file into ``folder``, going on with what an earlier try left there."""
    hub = _client()
    remote = _look_up(hub, entry, source, endpoint)
    progress.total = remote.size
    with PartFile.open(folder, remote.sha256, remote.size) as part_file:
        part_file.keep(part_file.on_disk if part_file.on_disk <= remote.size else 0, progress)
        check_room(entry.name, folder, remote.size - part_file.size)
        failures = 0
        while part_file.size < remote.size:
            before = part_file.size
            try:
                with closing(_chunks(hub, entry, source, remote.url, before)) as chunks:
                    for position, chunk in chunks:
                        if position != part_file.size:  # the server began anew although it was asked not to
                            part_file.keep(position)
                        part_file.write(chunk)
                        progress.below(part_file.size)
                if part_file.size < remote.size:
                    raise _InterruptedError(f"the connection ended after {part_file.size} of {remote.size} bytes")
            except _InterruptedError as error:
                failures = 1 if part_file.size > before else failures + 1
                if failures >= _TRIES:
                    raise DownloadError(
                        f"the download of {entry.name} from {source.repo} broke off: {error}. What came is kept; a"
                        " second try goes on from there"
                    ) from error.__cause__
                log.warning("%s: %s; trying again", entry.name, error)
                progress.below(part_file.size)
                time.sleep(_PAUSE * 2 ** (failures - 1))
        return part_file.seal(entry.name)


def _client() -> ModuleType:
    """Import ``huggingface_hub``, which takes long, and so does not happen before it is needed."""
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
    """Ask the hub for the file's exact commit, length and sha256."""
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
        raise DownloadError(f"{source} has no sha256 on the hub, so what comes could not be checked")
    if found.size is None:
        raise DownloadError(f"the hub does not say how large {source} is")
    # The commit, not the branch: the branch may move between two tries.
    pinned = hub.hf_hub_url(source.repo, source.file, revision=found.commit_hash or source.revision, endpoint=endpoint)
    return _Remote(str(pinned), sha256, int(found.size))


def _chunks(
    hub: ModuleType, entry: Entry, source: HubSource, url: str, start: int
) -> Generator[tuple[int, bytes], None, None]:
    """Yield the file from ``start``, or from 0 if the server will not skip, each chunk with its position.

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
        if offline or (status is not None and status not in _TRY_AGAIN):
            raise _why(hub, error, entry, source) from error
        raise _InterruptedError(_line(error)) from error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that the error tells of."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _line(error: BaseException) -> str:
    """Return the error's first line, or its kind if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _why(hub: ModuleType, error: Exception, entry: Entry, source: HubSource) -> DownloadError:
    """Say what the hub's answer means, and what to do."""
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
        return DownloadError(f"{entry.name} is not in the cache and HF_HUB_OFFLINE forbids to download it")
    return DownloadError(f"{entry.name} could not be had from {page}: {_line(error)}")
