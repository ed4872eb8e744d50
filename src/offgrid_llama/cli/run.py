"""``offgrid-llama run``: one prompt, one answer, piece by piece."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import store
from . import output
from .exits import INTERRUPTED
from .options import GpuLayers, Json, ModelName, Verbose, decode, gpu_layers, read_text, to_file

if TYPE_CHECKING:
    from ..generate import Generation

__all__ = ["run"]


def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What to answer; - reads it from stdin.")],
    model: ModelName = store.DEFAULT_MODEL,
    system: Annotated[str | None, typer.Option(help="A system message.", show_default=False)] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Use the prompt as it is, without the chat template.")] = False,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="Most tokens to generate.")] = 512,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", min=0, help="0 always takes the most probable token.")
    ] = 0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the K most probable tokens; 0 is all.")] = 40,
    top_p: Annotated[float, typer.Option(min=0, max=1, help="... among those that sum up to P.")] = 0.95,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="... among those P times as probable as the best.")] = 0.05,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**32 - 2, help="Repeat a random choice.", show_default="random")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")] = None,
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A GBNF grammar that the answer follows.")
    ] = None,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, help="Positions of the context.", show_default="prompt and answer")
    ] = None,
    n_threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.", show_default="physical cores")] = None,
    n_gpu_layers: GpuLayers = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Stream an answer to stdout, and its speed to stderr."""
    from ..generate import generate
    from ..grammar import Grammar
    from ..model import Model
    from .prompt import prompt_tokens

    layers = gpu_layers(n_gpu_layers)
    rules = Grammar.gbnf(decode(grammar.read_bytes(), str(grammar))) if grammar is not None else None
    text = read_text(prompt)
    if prompt == "-":
        text = text.removesuffix("\n").removesuffix("\r")  # the one that echo adds
    with Model(to_file(model), n_gpu_layers=layers) as loaded, ExitStack() as stack:
        tokens = prompt_tokens(loaded, text, system=system, raw=raw)
        generation = generate(
            loaded, tokens, max_tokens=max_tokens, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p,
            seed=seed, stop=stop or (), grammar=rules, n_ctx=n_ctx, n_threads=n_threads,
        )  # fmt: skip
        stack.enter_context(generation)  # however it ends, its context and samplers are freed
        interrupted = _answer(generation, quiet=json)
        if json:
            output.json_out(_summary(generation, model, interrupted))
        elif generation.tokens:
            output.err(_speed(generation, max_tokens))
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _answer(generation: Generation, *, quiet: bool) -> bool:
    """Write the answer as it comes and return whether Ctrl-C ended it."""
    try:
        for piece in generation:
            if not quiet:
                output.put(piece)
    except KeyboardInterrupt:
        return True
    finally:
        if not quiet and generation.pieces:
            output.put("\n")
    if not quiet and not generation.pieces:
        output.put("\n")
    return False


def _speed(generation: Generation, max_tokens: int) -> str:
    count, prompt = len(generation.tokens), generation.n_prompt
    line = f"{_count(prompt, 'prompt token')} in {generation.prompt_seconds:.2f} s"
    line += f" ({prompt / generation.prompt_seconds:.1f} tokens/s), {_count(count, 'token')}"
    if count > 1:
        line += f" in {generation.decode_seconds:.2f} s ({generation.tokens_per_second:.1f} tokens/s)"
    if generation.finish_reason == "length":
        line += ", cut off by --max-tokens" if count >= max_tokens else ", cut off: the context is full"
    return line


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _summary(generation: Generation, model: str, interrupted: bool) -> dict[str, Any]:
    return {
        "model": model,
        "text": "".join(generation.pieces),
        "tokens": generation.tokens,
        "n_tokens": len(generation.tokens),
        "n_prompt": generation.n_prompt,
        "finish_reason": "interrupted" if interrupted else generation.finish_reason,
        "timings": {
            "prompt_seconds": generation.prompt_seconds,
            "decode_seconds": generation.decode_seconds,
            "tokens_per_second": generation.tokens_per_second,
        },
    }
