"""``import llama_cpp`` that gives ``offgrid_llama.compat.llama_cpp``, in processes that ask for it.

The modules are the same objects under both names. A llama-cpp-python that is installed stays as it is: only this process
does not find it.
"""

from __future__ import annotations

import importlib
import sys
import sysconfig
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__all__ = ["install", "remove_pth", "write_pth"]

NAME = "llama_cpp"
OURS = "offgrid_llama.compat.llama_cpp"
VARIABLE = "OFFGRID_LLAMA_AS_LLAMA_CPP"
PTH = "offgrid_llama_as_llama_cpp.pth"
LINE = f'import os; os.environ.get("{VARIABLE}") and __import__("{__name__}", fromlist=["install"]).install()\n'
"""What Python runs at its start: nothing but a look at the variable."""


class _Alias(MetaPathFinder, Loader):
    """Finds modules of ``llama_cpp`` in our package."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module whose name is one of ours."""
        if fullname != NAME and not fullname.startswith(NAME + "."):
            return None
        return ModuleSpec(fullname, self, is_package=fullname == NAME)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Import our module."""
        ours = OURS + spec.name.removeprefix(NAME)
        try:
            module = importlib.import_module(ours)
        except ModuleNotFoundError as error:
            if error.name != ours:
                raise
            raise ModuleNotFoundError(f"No module named {spec.name!r} in {OURS}", name=spec.name) from None
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave it as it is, with the spec of its own name."""
        if module.__spec__ is not None:
            module.__spec__ = module.__spec__.loader_state


_alias = _Alias()


def install() -> None:
    """Let ``import llama_cpp`` give ``offgrid_llama.compat.llama_cpp`` from now on, in this process.

    A second call does nothing. Raises ImportError where llama-cpp-python is imported already.
    """
    found = sys.modules.get(NAME)
    if found is not None and found.__name__ != OURS:
        raise ImportError(f"{NAME} is imported already, from {found.__file__}: call install() before that", name=NAME)
    if _alias not in sys.meta_path:
        sys.meta_path.insert(0, _alias)


def write_pth() -> Path:
    """Write the file with which Python calls ``install`` at its start where the variable is set; return its path.

    The variable is OFFGRID_LLAMA_AS_LLAMA_CPP, with any text. Raises OSError where site-packages cannot be written to.
    """
    path = _pth()
    path.write_text(LINE, encoding="utf-8")
    return path


def remove_pth() -> Path:
    """Remove the file that ``write_pth`` writes, if it is there; return its path."""
    path = _pth()
    path.unlink(missing_ok=True)
    return path


def _pth() -> Path:
    return Path(sysconfig.get_path("purelib")) / PTH
