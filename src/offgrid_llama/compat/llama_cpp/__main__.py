"""``python -m offgrid_llama.compat.llama_cpp SCRIPT ARGS``: run a program whose ``import llama_cpp`` gives this package."""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from offgrid_llama.compat import installing

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a script, or a module, or write the file that does so everywhere."""
    parser = argparse.ArgumentParser(prog=f"python -m {installing.OURS}", description=__doc__)
    parser.add_argument("-m", action="store_true", dest="module", help="SCRIPT is the name of a module")
    parser.add_argument(
        "--install",
        action="store_true",
        help=f"let each Python of this environment do it where {installing.VARIABLE} is set",
    )
    parser.add_argument("--uninstall", action="store_true", help="take that back")
    parser.add_argument("script", nargs="?", metavar="SCRIPT")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS")
    asked = parser.parse_args(arguments)
    if asked.install:
        print(f"wrote {installing.write_pth()}; set {installing.VARIABLE}=1 for the programs that shall use it")  # noqa: T201
    elif asked.uninstall:
        print(f"removed {installing.remove_pth()}")  # noqa: T201
    elif asked.script is None:
        parser.error("SCRIPT is missing")
    else:
        installing.install()
        sys.argv = [asked.script, *asked.arguments]
        if asked.module:
            sys.path.insert(0, "")
            runpy.run_module(asked.script, run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(asked.script).resolve().parent))
            runpy.run_path(asked.script, run_name="__main__")


if __name__ == "__main__":
    main()
