"""llama-cpp-python 0.3.36 on this package: the same names, which run on its Model, Engine and Embedder.

``from offgrid_llama.compat.llama_cpp import Llama`` in place of ``from llama_cpp import Llama``; or ``install()``, after
which ``import llama_cpp`` gives this package. ``llama_cpp`` in it is the raw layer: llama.h in ctypes, which nothing guards.
"""

from offgrid_llama.compat.installing import install as install

from .llama import *  # noqa: F403
from .llama_cpp import *  # noqa: F403 - llama-cpp-python's own face
from .llama_types import *  # noqa: F403

__version__ = "0.3.36"
"""The version of llama-cpp-python whose names these are."""
