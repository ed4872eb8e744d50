"""The command line, ``offgrid-llama``: ``app.py`` has the commands, ``exits.py`` the exit codes."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> int:
    """Run the command line with the arguments of this process, and return the exit code."""
    try:
        if sys.argv[1:2] == ["serve"] and not {"-h", "--help", "--check"}.intersection(sys.argv):
            from offgrid_llama.server.supervision.launch import launcher

            launcher.prepare()  # the start of the server waits for its first worker
        import rich  # noqa: F401 - typer works without it, the progress bars do not

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
