"""``offgrid-llama rpc-server``: let models on other machines use the devices of this one."""

from __future__ import annotations

import ipaddress
import signal
from pathlib import Path
from typing import Annotated

import typer

from . import output
from .exits import UsageError
from .options import Verbose

__all__ = ["rpc_server"]


def rpc_server(
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 50052,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A device that `doctor` lists; may be repeated.", show_default="all GPUs, else the CPU"
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="physical cores")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep large tensors in this folder, so that each is sent once.")
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen on an address that other machines can reach.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Let models on other machines use the devices of this one: Model(..., devices=["HOST:PORT"]). One client at a time.

    The protocol has no keys and trusts all its input. Use it only in a network in which you trust every machine.
    """
    from offgrid_llama.native import rpc

    if not insecure and not _is_loopback(host):
        raise UsageError(
            f"{host} can be reached by other machines, and any client could take over this process: --insecure allows it"
        )
    output.err(f"listening on {host}:{port}; Ctrl-C ends it")
    # llama.cpp's loop never returns to the interpreter, which would handle Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    rpc.serve(f"{host}:{port}", devices=device, n_threads=threads, cache_dir=cache_dir)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
