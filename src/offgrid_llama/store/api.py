"""The store's functions: on the cache of this user, and the catalog that comes with the package."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from offgrid_llama.errors import StoreError

from .cache import CachedModel, Store
from .entries import Catalog, Entry, builtin_catalog

if TYPE_CHECKING:
    from .consent import Download
    from .transfer import ProgressCallback

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The model of a command that names none."""


def cache_dir() -> Path:
    """Return the cache's folder: OFFGRID_LLAMA_CACHE, else offgrid-llama below XDG_CACHE_HOME, else below ~/.cache.

    The environment is read at each call. The folder need not exist.
    """
    own = os.environ.get("OFFGRID_LLAMA_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared and os.path.isabs(shared):  # the XDG specification ignores a relative one
        return Path(shared) / "offgrid-llama"
    try:
        return Path.home() / ".cache" / "offgrid-llama"
    except RuntimeError as error:
        raise StoreError(f"no home folder to keep models in ({error}); set OFFGRID_LLAMA_CACHE") from error


def catalog() -> tuple[Entry, ...]:
    """Return the models with a name in the catalog. ``hf:ORG/REPO/FILE.gguf`` names any other one on Hugging Face."""
    return _builtin().entries


def entry(name: str) -> Entry:
    """Return what a name or alias of the catalog, or ``hf:ORG/REPO/FILE.gguf``, stands for; no file and no network is used.

    Raises ``UnknownModelError`` for any other name, a path among them.
    """
    return _builtin().find(name)


def resolve(
    name: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    download: Download | bool = "auto",
    progress: ProgressCallback | None = None,
) -> Path:
    """Return the absolute path of the GGUF file that ``name`` stands for; download the file if the cache does not have it.

    ``name`` is, in this order: a path to an existing file; ``hf:ORG/REPO/FILE.gguf[@REVISION]``; a name or alias of
    the catalog, upper and lower case alike. A server must never pass on a name from a client: it might be a path.
    ``download`` says what happens to a name that the cache does not have. "auto" (or True) downloads it, with a warning
    in the log that tells size, places and licence, and a progress bar where stderr is a terminal. "never" (or False) never
    uses the network. A function of (done, total) is called with bytes of the model's file; an exception in it cancels the
    download and is raised by this call. ``progress`` is another name for such a function.

    Raises ``UnknownModelError`` if ``name`` is neither a known name nor a file, ``DownloadError`` if the transfer
    fails, ``ChecksumError`` if the bytes are wrong, and ``StoreError`` if ``download`` is "never" and the cache does
    not have the file, and TypeError or ValueError if it is none of these.
    """
    return _store().resolve(name, download=download, progress=progress)


def projector_of(
    name: str | os.PathLike[str],
    *,
    download: Download | bool = "auto",
    progress: ProgressCallback | None = None,
) -> Path:
    """Return the path of the projector (mmproj) that lies beside a model; download it if the cache does not have it.

    It is a GGUF file with "mmproj" in its name: in the folder of the model's file, or for ``hf:ORG/REPO/FILE.gguf`` in the
    same repository. Of several, the one whose name begins as the model's does, and then the one in F16.

    Raises ``StoreError`` where there is none, and otherwise as ``resolve`` does, whose arguments these are.
    """
    return _store().projector_of(name, download=download, progress=progress)


def pull(name: str = DEFAULT_MODEL, *, progress: ProgressCallback | None = None) -> Path:
    """Download the model ``name`` unless the cache has it, and return its path.

    As ``resolve``, but for names only: a path raises ``UnknownModelError``. If two processes pull the same model, one
    downloads it; the other waits, and then finds it in the cache.
    """
    return _store().pull(name, progress=progress)


def cached() -> dict[str, CachedModel]:
    """Return the models in the cache: name to path and length in bytes, in alphabetical order."""
    return _store().cached()


def remove(name: str) -> int:
    """Delete the model ``name`` and the remains of a broken download of it. Returns the number of bytes freed.

    Raises ``UnknownModelError`` for an unknown name and ``DownloadError`` if the folder is not writable.
    """
    return _store().remove(name)


def verify(name: str, *, progress: ProgressCallback | None = None) -> Path:
    """Hash the cached file of ``name`` again and return its path. ``progress`` is called as by ``resolve``.

    Raises ``ChecksumError``, and deletes the file, if the sha256 is not the catalog's, or for an ``hf:`` name not the
    one of the download. Raises ``StoreError`` if the cache does not have the model.
    """
    return _store().verify(name, progress=progress)


@cache
def _builtin() -> Catalog:
    return builtin_catalog()


def _store() -> Store:
    return Store(cache_dir(), _builtin())
