"""The command line, ``offgrid-llama``: ``app.py`` says what there is, ``exits.py`` how it ends."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line with the arguments of this process, and return the exit code."""
    try:
        if sys.argv[1:2] == ["serve"] and not {"-h", "--help", "--check"}.intersection(sys.argv):
            from ..server.launch import prepare

            prepare()  # the start of the server is as long as this worker's
        import rich  # noqa: F401 - typer can do without it, the progress bars cannot

        from .app import run_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich"):
            raise
        hint = "offgrid-llama: the command line needs typer and rich: pip install 'offgrid-llama[cli]'"
        sys.stderr.write(hint + "\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return run_app(sys.argv[1:])
