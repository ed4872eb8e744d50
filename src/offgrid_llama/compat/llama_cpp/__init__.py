"""llama-cpp-python 0.3.36 on this package: the same names, which run on its Model, Engine and Embedder.

``from offgrid_llama.compat.llama_cpp import Llama`` in place of ``from llama_cpp import Llama``; or ``install()``, after
which ``import llama_cpp`` gives this package. ``llama_cpp`` in it is the raw layer: llama.h in ctypes, which nothing guards.

A name is looked up when it is first asked for, so that the package costs nothing before that.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from offgrid_llama.compat.installing import install as install

if TYPE_CHECKING:
    from .llama import *  # noqa: F403 - llama-cpp-python's own face
    from .llama_cpp import *  # noqa: F403
    from .llama_types import *  # noqa: F403

__version__ = "0.3.36"
"""The version of llama-cpp-python whose names these are."""

_FACE = ("llama", "llama_types", "llama_cpp")
"""The modules whose names are those of the package."""


def __getattr__(name: str) -> Any:
    """Return what has that name, and keep it."""
    if name == "__all__":
        return sorted({"install", *(each for module in _FACE for each in _names(module))})
    if name in {module.name for module in iter_modules(__path__)}:  # noqa: F405 - the module's own
        return import_module(f".{name}", __name__)
    for module in _FACE:
        if name in _names(module):
            found = globals()[name] = getattr(import_module(f".{module}", __name__), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__getattr__("__all__")]


def _names(module: str) -> list[str]:
    """Return the public names of a module."""
    found = import_module(f".{module}", __name__)
    return list(getattr(found, "__all__", None) or (name for name in vars(found) if not name.startswith("_")))
