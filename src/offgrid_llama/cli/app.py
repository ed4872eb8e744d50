"""The program: its commands, and the one place where an error becomes a line on stderr and an exit code."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Annotated, Any

import typer

import offgrid_llama

from . import exits, output
from .batch import batch
from .chat import chat
from .doctor import doctor
from .inspect import inspect
from .llama_server import llama_server
from .models import models, pull, remove
from .options import Verbose
from .quantize import quantize
from .rpc_server import rpc_server
from .run import run
from .serve import serve
from .speak import speak
from .tokenize import tokenize
from .transcribe import transcribe

__all__ = ["app", "run_app"]

PROG = "offgrid-llama"

_EXIT_CODES = "Exit codes: " + "; ".join(f"{code} {what}" for code, what in exits.TABLE.items()) + "."

app = typer.Typer(
    name=PROG,
    help="Run llama.cpp models on this machine.",
    epilog=_EXIT_CODES,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    run,
    chat,
    transcribe,
    speak,
    serve,
    batch,
    models,
    pull,
    remove,
    inspect,
    tokenize,
    quantize,
    rpc_server,
    doctor,
):
    app.command(epilog=_EXIT_CODES)(command)
app.command(
    "llama-server", add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(llama_server)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        from offgrid_llama.native.backend import build_info

        info = build_info()
        commit = f", {info.commit[:12]}" if info.commit else ""
        output.out(f"{PROG} {offgrid_llama.__version__} (llama.cpp {info.llama_cpp}{commit})")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the versions and exit.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(exits.USAGE)


def run_app(arguments: Sequence[str]) -> int:
    """Run a command line and return its exit code, one of ``exits.TABLE``. The only exception it raises is SystemExit."""
    try:
        code: Any = app(args=list(arguments), prog_name=PROG, standalone_mode=False)
        return code if isinstance(code, int) else 0
    except output.ReaderGone:
        output.hush()
        return exits.PIPE
    except KeyboardInterrupt:
        return exits.INTERRUPTED
    except Exception as error:
        logging.getLogger("offgrid_llama.cli").debug("%s failed", PROG, exc_info=True)
        return _report(error, as_json=_asks_for_json(arguments))


def _report(error: Exception, *, as_json: bool) -> int:
    code, message = exits.explain(error)
    if as_json:
        detail = {"type": type(error).__name__, "message": message, "exit_code": code}
        output.err(json.dumps({"error": detail}))
    else:
        output.err(f"{PROG}: error: {output.one_line(message)}")
    if isinstance(error, OSError) and error.filename == "stdout":
        output.hush()
    return code


def _asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether ``--json`` is given, also in a command line that cannot be parsed."""
    return "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)
