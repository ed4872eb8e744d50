"""Starts Python processes of ours, without the folder in which the server happens to run on their path; their collector.

``python -m MODULE`` and ``python -c`` import from the working folder first: a file ``struct.py`` there would run in place of
the standard library's. Python 3.11 has ``-P`` against this, Python 3.10 has nothing but ``-I``, which also drops the user's
own packages. ``python FILE`` imports from the folder of FILE, so a process of ours runs this file, which forgets that folder
before it imports anything. (``from __future__ import ...`` would be an import, too.)
"""

import os
import sys

__all__ = ["SparedCollector", "command", "forget_working_folder", "named_path", "search_path"]

YOUNG_OBJECTS = 20_000
"""New objects after which the garbage collector looks at them. With Python's 700 it looks hundreds of times at the values of
a large body while they are made, which takes as long as making them."""

_SAFE_PATH = getattr(sys.flags, "safe_path", False)  # Python 3.11's -P, and PYTHONSAFEPATH: the path is clean already


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module as a program, as ``python -m`` would."""
    return [sys.executable, os.path.abspath(__file__), module, *arguments]


def named_path() -> list[str]:
    """Return the folders that the user's PYTHONPATH names. An empty one would be the working folder."""
    return [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def search_path() -> list[str]:
    """Return the path of this process, without the working folder unless PYTHONPATH names it."""
    here, named = _real(""), {_real(path) for path in named_path()}
    return [path for path in sys.path if path and (_real(path) != here or here in named)]


def forget_working_folder() -> None:
    """Remove the folder that ``python -m offgrid_llama...`` has put first on the path; the user's PYTHONPATH stays."""
    if _SAFE_PATH or not sys.path or _real(sys.path[0]) != _real(""):
        return
    for word, next_word in zip(sys.orig_argv[1:], [*sys.orig_argv[2:], ""], strict=True):
        if word.startswith("-") and "m" in word:
            module = word.partition("m")[2] or next_word
            if module.partition(".")[0] == "offgrid_llama":
                del sys.path[0]
            return


class SparedCollector:
    """Within its block, the garbage collector leaves out what was there before, and looks less often at the rest.

    A full collection goes over all modules otherwise: 20 ms, or 100 on a busy machine, in which no client is served.
    """

    def __enter__(self) -> None:
        import gc

        self._thresholds = gc.get_threshold()
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS, *self._thresholds[1:])

    def __exit__(self, *_: object) -> None:
        import gc

        gc.set_threshold(*self._thresholds)
        gc.unfreeze()


def _real(path: str) -> str:
    try:
        return os.path.realpath(path)
    except OSError:  # the working folder is gone
        return path


def _run() -> None:
    """Run the module that the command line names."""
    if not _SAFE_PATH:
        del sys.path[0]
    if sys.argv[1].startswith("offgrid_llama."):  # nothing else may lead there
        sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    import runpy

    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run()
