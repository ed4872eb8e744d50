"""``offgrid-llama quantize``: a model's weights in another type, in a new file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from . import output
from .exits import UsageError
from .options import Json, Verbose, to_file

__all__ = ["quantize"]

Type = typer.Option(
    metavar="TYPE", help="A type of its own for this tensor, such as q8_0.", show_default="as FTYPE has it"
)


def quantize(
    src: Annotated[str, typer.Argument(metavar="SRC|NAME", help="A GGUF file, or a name that `models` lists.")],
    dst: Annotated[Path, typer.Argument(metavar="DST", help="The new file.")],
    ftype: Annotated[str, typer.Argument(metavar="FTYPE", help="What to make of it, such as Q4_K_M.")] = "Q4_K_M",
    imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="An importance matrix, as llama.cpp's imatrix tool writes it.")
    ] = None,
    output_tensor_type: Annotated[str | None, Type] = None,
    token_embedding_type: Annotated[str | None, Type] = None,
    tensor_types: Annotated[
        list[str] | None,
        typer.Option("--tensor-type", metavar="REGEX=TYPE", help="A type for all tensors whose names match."),
    ] = None,
    quantize_output_tensor: Annotated[bool, typer.Option(help="Quantize output.weight too.")] = True,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Quantize what is quantized already, which loses more.")
    ] = False,
    pure: Annotated[bool, typer.Option("--pure", help="One type for all tensors, no mixture.")] = False,
    only_copy: Annotated[bool, typer.Option("--only-copy", help="Change no tensor: makes one file of splits.")] = False,
    keep_split: Annotated[bool, typer.Option("--keep-split", help="Write as many splits as SRC has.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come out, and write nothing.")] = False,
    n_threads: Annotated[int | None, typer.Option(min=1, show_default="physical cores")] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Quantize a model file."""
    from ..quantize import quantize as make

    types = {}
    for text in tensor_types or []:
        pattern, equals, kind = text.rpartition("=")
        if not equals:
            raise UsageError(f"--tensor-type is REGEX=TYPE, not {text!r}")
        types[pattern] = kind
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
