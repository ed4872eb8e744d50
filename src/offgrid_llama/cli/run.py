"""``offgrid-llama run``: one prompt, one answer, piece by piece."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offgrid_llama import store

from . import output
from .exits import INTERRUPTED, UsageError
from .options import (
    GpuLayers,
    Json,
    ModelName,
    Seed,
    SystemMessage,
    Temperature,
    Threads,
    Verbose,
    decode,
    gpu_layers,
    read_text,
    to_file,
)

if TYPE_CHECKING:
    from offgrid_llama.media.projector import Media
    from offgrid_llama.tasks.generate import Generation
    from offgrid_llama.tasks.request_options import GenerationArguments

__all__ = ["run"]


def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="The prompt; - reads it from stdin.")],
    model: ModelName = store.DEFAULT_MODEL,
    system: SystemMessage = None,
    raw: Annotated[bool, typer.Option("--raw", help="Use the prompt without the chat template.")] = False,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=1, help="Generate up to this number of tokens.")
    ] = 512,
    temperature: Temperature = 0,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among the K most probable tokens; 0 is all.")] = 40,
    top_p: Annotated[
        float, typer.Option(min=0, max=1, help="Choose among the most probable tokens that sum up to P.")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option(min=0, max=1, help="Choose among tokens P times as probable as the best, or more.")
    ] = 0.05,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End the answer before this text; may be repeated.")] = None,
    grammar: Annotated[Path | None, typer.Option(metavar="FILE", help="A GBNF grammar for the answer.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A picture to look at; may be repeated.")
    ] = None,
    audio: Annotated[list[Path] | None, typer.Option(metavar="FILE", help="A sound to hear; may be repeated.")] = None,
    projector: Annotated[
        Path | None,
        typer.Option("--projector", "--mmproj", metavar="FILE", help="The model's projector, to see or hear."),
    ] = None,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, help="Positions of the context.", show_default="prompt and answer")
    ] = None,
    n_threads: Threads = None,
    n_gpu_layers: GpuLayers = "auto",
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Stream an answer to stdout, and its speed to stderr."""
    from offgrid_llama.media.projector import Projector
    from offgrid_llama.model.model import Model
    from offgrid_llama.sampling.grammar.grammar import Grammar
    from offgrid_llama.tasks.generate import generate

    from .prompt import media_prompt, prompt_tokens

    media = _media(image or [], audio or [], projector)
    layers = gpu_layers(n_gpu_layers)
    options: GenerationArguments = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed,
        "stop": stop or (),
    }  # fmt: skip
    if grammar is not None:
        options["grammar"] = Grammar.gbnf(decode(grammar.read_bytes(), str(grammar)))
    text = read_text(prompt)
    if prompt == "-":
        text = text.removesuffix("\n").removesuffix("\r")  # the newline that echo adds
    with Model(to_file(model), n_gpu_layers=layers) as loaded, ExitStack() as stack:
        if projector is None:
            asked: Any = prompt_tokens(loaded, text, system=system, raw=raw)
            encoder = None
        else:
            encoder = stack.enter_context(Projector(loaded, projector, n_threads=n_threads))
            asked = media_prompt(loaded, text, media, system=system, raw=raw)
        generation = generate(loaded, asked, projector=encoder, n_ctx=n_ctx, n_threads=n_threads, **options)
        with generation:
            interrupted = _answer(generation, quiet=json)
        if json:
            output.json_out(_summary(generation, model, interrupted))
        elif generation.tokens:
            output.err(_speed(generation, max_tokens))
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _media(images: list[Path], sounds: list[Path], projector: Path | None) -> list[Media]:
    """Return the pictures, then the sounds. They are read before the model is loaded, which takes longer."""
    from offgrid_llama.media.audio import Audio
    from offgrid_llama.media.image import Image

    if (images or sounds) and projector is None:
        raise UsageError("--image and --audio need --projector FILE, the model's second file (an mmproj)")
    return [*map(Image, images), *map(Audio, sounds)]


def _answer(generation: Generation, *, quiet: bool) -> bool:
    """Write the answer in pieces, and return whether Ctrl-C ended it."""
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
