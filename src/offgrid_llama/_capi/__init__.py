"""The compiled room: ``ffi`` and ``lib`` of the extension module, and the folder that holds libllama.

``lib`` has every function of ``llama.cdef.h`` under its C name, each behind the C++ guard of ``guard.h``, and our own of
``og.h``. Nothing here checks an argument: the folders above do that, and users come through them.
"""

from pathlib import Path

from ._llama import ffi, lib

__all__ = ["ffi", "lib", "lib_dir"]


def lib_dir() -> Path:
    """Return the folder with libllama, libggml and the loadable backends of this build."""
    from . import _llama

    return Path(_llama.__file__).parent / "lib"
