"""The store as most people use it: functions on the cache of this user and the catalog that comes with the package."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import StoreError
from .cache import CachedModel, Store
from .catalog import Catalog, Entry, builtin_catalog

if TYPE_CHECKING:
    from .transfer import ProgressCallback

DEFAULT_MODEL = "smollm2-135m-instruct"
"""The model that is used where none is named."""


def cache_dir() -> Path:
    """Return the cache's folder: OFFGRID_LLAMA_CACHE, else offgrid-llama below XDG_CACHE_HOME, else below ~/.cache.

    The environment is read at each call. The folder need not exist.
    """
    own = os.environ.get("OFFGRID_LLAMA_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    if shared and os.path.isabs(shared):  # a relative one is to be ignored, says the XDG specification
        return Path(shared) / "offgrid-llama"
    try:
        return Path.home() / ".cache" / "offgrid-llama"
    except RuntimeError as error:
        raise StoreError(f"no home folder to keep models in ({error}); set OFFGRID_LLAMA_CACHE") from error


def catalog() -> tuple[Entry, ...]:
    """Return the models that are known by name. ``hf:ORG/REPO/FILE.gguf`` works for any other one on Hugging Face."""
    return _builtin().entries


def resolve(
    name: str | os.PathLike[str] = DEFAULT_MODEL, *, download: bool = True, progress: ProgressCallback | None = None
) -> Path:
    """Return the GGUF file that ``name`` stands for, as an absolute path, and download it if it is not there yet.

    ``name`` is, in this order: a path to an existing file; ``hf:ORG/REPO/FILE.gguf[@REVISION]``; a name or alias of
    the catalog, upper and lower case alike. So never pass on a name that came from a client of a server: it might be a
    path. ``download=False`` (default True) never uses the network. ``progress(done, total)`` is called with bytes of
    the model's file; an exception in it cancels the download and comes out of this call.

    Raises ``UnknownModelError`` if ``name`` is neither a known name nor a file, ``DownloadError`` if it could not be
    fetched, ``ChecksumError`` if the bytes were wrong, and ``StoreError`` if it is not there and ``download`` is False.
    """
    return _store().resolve(name, download=download, progress=progress)


def pull(name: str = DEFAULT_MODEL, *, progress: ProgressCallback | None = None) -> Path:
    """Download the model called ``name`` unless it is there and right, and return its path.

    As ``resolve``, but for names only: a path raises ``UnknownModelError``. Two processes that pull the same model do
    not get in each other's way: the second one waits and then finds it.
    """
    return _store().pull(name, progress=progress)


def cached() -> dict[str, CachedModel]:
    """Return the models in the cache: name to path and length in bytes, in alphabetical order."""
    return _store().cached()


def remove(name: str) -> int:
    """Delete the model called ``name`` and what a broken download of it left. Returns the bytes freed, 0 if none.

    Raises ``UnknownModelError`` for an unknown name and ``DownloadError`` if the folder is not writable.
    """
    return _store().remove(name)


def verify(name: str, *, progress: ProgressCallback | None = None) -> Path:
    """Hash the cached file of ``name`` again and return its path. ``progress`` is called as by ``resolve``.

    Raises ``ChecksumError`` if the sha256 is not the catalog's (for an ``hf:`` name: not the one it had when it came);
    the file is thrown away then. Raises ``StoreError`` if the model is not in the cache.
    """
    return _store().verify(name, progress=progress)


@cache
def _builtin() -> Catalog:
    return builtin_catalog()


def _store() -> Store:
    return Store(cache_dir(), _builtin())
