"""``offgrid-llama tokenize``: text to token ids and their pieces."""

from __future__ import annotations

from typing import Annotated

import typer

from offgrid_llama import store

from . import output
from .options import Json, ModelName, Verbose, read_text, to_file

__all__ = ["tokenize"]


def tokenize(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The text; - reads all of stdin, with its last newline.")],
    model: ModelName = store.DEFAULT_MODEL,
    ids: Annotated[bool, typer.Option("--ids", help="Print the ids only, in one line.")] = False,
    add_special: Annotated[bool, typer.Option(help="Add the tokens that the model needs, such as BOS.")] = True,
    parse_special: Annotated[bool, typer.Option(help="Read <|im_start|> and the like as control tokens.")] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print the tokens of a text, one on each line: id and piece. Their number goes to stderr."""
    from offgrid_llama.model.model import Model

    data = read_text(text)
    with Model(to_file(model), vocab_only=True, n_gpu_layers=0) as loaded:
        vocab = loaded.vocab
        tokens = vocab.tokenize(data, add_special=add_special, parse_special=parse_special)
        pieces = [] if ids and not json else [vocab.piece(token, special=True) for token in tokens]
    if json:
        listed = [
            {"id": token, "piece": piece.decode("utf-8", "replace"), "bytes": piece.hex()}
            for token, piece in zip(tokens, pieces, strict=True)
        ]
        output.json_out({"count": len(tokens), "tokens": listed})
        return
    if ids:
        output.out(" ".join(map(str, tokens)))
    else:
        output.out(*(f"{token:>7}  {_quoted(piece)}" for token, piece in zip(tokens, pieces, strict=True)))
    output.err(f"{len(tokens)} token{'' if len(tokens) == 1 else 's'}")


def _quoted(piece: bytes) -> str:
    """Return a piece in quotes, so that spaces and broken characters are visible."""
    text = piece.decode("utf-8", "backslashreplace")
    return '"' + output.one_line(text) + '"'
