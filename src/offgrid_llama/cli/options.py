"""Options that several commands share, and the way from ``--model`` to a file."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from offgrid_llama import store

from . import output

__all__ = [
    "GpuLayers", "Json", "ModelName", "Seed", "SystemMessage", "Temperature", "Threads", "Verbose", "decode", "gpu_layers",
    "read_text", "to_file",
]  # fmt: skip


MAX_SEED = 2**32 - 2
"""Largest seed; llama.cpp takes the next number, 2**32 - 1, for a random one."""


class _Printable(logging.Formatter):
    """Writes out control characters: llama.cpp logs a model's metadata, which may have any."""

    def format(self, record: logging.LogRecord) -> str:
        return output.printable(super().format(record))


def _begin_log(verbose: bool) -> bool:
    logger = logging.getLogger("offgrid_llama")
    if verbose and not any(isinstance(handler.formatter, _Printable) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(_Printable("%(levelname).1s %(name)s: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    return verbose


Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", callback=_begin_log, is_eager=True, help="Show llama.cpp's log, on stderr."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON; errors become a line of JSON on stderr.")]
ModelName = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME|FILE", help="A name that `models` lists, hf:ORG/REPO/FILE.gguf, or a file."
    ),
]
GpuLayers = Annotated[
    str,
    typer.Option("--n-gpu-layers", metavar="N|auto", help="Layers to keep on the GPU; -1 is all, auto as many as fit."),
]
SystemMessage = Annotated[str | None, typer.Option("--system", help="A system message.", show_default=False)]
Temperature = Annotated[
    float, typer.Option("--temperature", "-t", min=0, help="0 always takes the most probable token.")
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", min=0, max=MAX_SEED, help="The same seed gives the same answer.", show_default="random"),
]
Threads = Annotated[int | None, typer.Option("--n-threads", min=1, help="CPU threads.", show_default="physical cores")]


def gpu_layers(text: str) -> int | Literal["auto"]:
    """Return the value of ``--n-gpu-layers``."""
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"--n-gpu-layers is a number or auto, not {text!r}") from None


def to_file(name: str) -> Path:
    """Return the file that a name or path stands for; download it, with a message, if the cache does not have it."""
    with output.download(name) as progress:
        return store.resolve(name, progress=progress)


def read_text(argument: str) -> str:
    """Return the argument, or all of stdin where it is ``-``."""
    if argument == "-":
        return decode(sys.stdin.buffer.read(), "stdin")
    return decode(os.fsencode(argument), "the argument")


def decode(data: bytes, where: str) -> str:
    """Return UTF-8 as str. Raises ValueError with the name of its source, ``where``, for other bytes."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is no UTF-8: byte {data[error.start]:#04x} at {error.start}") from None
