"""``offgrid-llama quantize``: a model's weights in another type, in a new file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from . import output
from .exits import UsageError
from .options import Json, Threads, Verbose, to_file

__all__ = ["quantize"]

TensorType = typer.Option(metavar="TYPE", help="A type for this tensor, such as q8_0.", show_default="of FTYPE")


def quantize(
    src: Annotated[str, typer.Argument(metavar="SRC|NAME", help="A GGUF file, or a name that `models` lists.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The new file.")],
    ftype: Annotated[str, typer.Argument(metavar="FTYPE", help="The new mixture of types, such as Q4_K_M.")] = "Q4_K_M",
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An importance matrix, from llama.cpp's imatrix tool.")
    ] = None,
    output_tensor_type: Annotated[str | None, TensorType] = None,
    token_embedding_type: Annotated[str | None, TensorType] = None,
    tensor_types: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type", metavar="REGEX=TYPE", help="A type for the tensors whose names match; may be repeated."
        ),
    ] = None,
    quantize_output_tensor: Annotated[bool, typer.Option(help="Quantize output.weight too.")] = True,
    allow_requantize: Annotated[
        bool,
        typer.Option("--allow-requantize", help="Quantize tensors again that are quantized already; more is lost."),
    ] = False,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors, in place of a mixture.")] = False,
    only_copy: Annotated[bool, typer.Option("--only-copy", help="Change no tensor; splits become one file.")] = False,
    keep_split: Annotated[bool, typer.Option("--keep-split", help="Write the same number of splits as SRC.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the result, and write no file.")] = False,
    n_threads: Threads = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a model file."""
    from offgrid_llama.files.quantize import quantize as make

    types = _by_pattern(tensor_types or [])
    source = to_file(src)
    with output.steps(f"quantizing {source.name} to {ftype}", "tensors") as progress:
        made = make(
            source, None if dry_run else dst, ftype, n_threads=n_threads, output_tensor_type=output_tensor_type,
            token_embedding_type=token_embedding_type, allow_requantize=allow_requantize,
            quantize_output_tensor=quantize_output_tensor, only_copy=only_copy, pure=pure, keep_split=keep_split,
            dry_run=dry_run, imatrix=imatrix, tensor_types=types, progress=progress,
        )  # fmt: skip
    counts = dict(Counter(made.types.values()).most_common())
    if json:
        sizes = {"bytes_source": made.n_bytes_source, "bytes": made.n_bytes}
        output.json_out({"path": None if dry_run else str(dst), **sizes, "tensors": counts})
        return
    of = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    change = f"{output.human(made.n_bytes_source)} -> {output.human(made.n_bytes)}"
    output.out(f"{'would be' if dry_run else dst}: {change} ({of})")


def _by_pattern(texts: Iterable[str]) -> dict[str, str]:
    """Return the types by the patterns of ``--tensor-type``."""
    types = {}
    for text in texts:
        pattern, equals, kind = text.rpartition("=")
        if not equals:
            raise UsageError(f"--tensor-type is REGEX=TYPE, not {text!r}")
        types[pattern] = kind
    return types
