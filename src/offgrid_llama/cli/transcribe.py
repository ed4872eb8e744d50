"""``offgrid-llama transcribe``: what is said in a sound, as text, subtitles or JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offgrid_llama import store

from . import output
from .options import GpuLayers, ModelName, Temperature, Threads, Verbose, gpu_layers, to_file

if TYPE_CHECKING:
    from offgrid_llama.engine.transcription import Transcript, Transcription

__all__ = ["transcribe"]

N_CTX_SEQ = 4096
"""Positions for a window without ``--n-ctx``: 30 seconds take up to 1,500 tokens, and an answer 700."""


class Format(str, Enum):
    """What is written."""

    TEXT = "text"
    SRT = "srt"
    VTT = "vtt"
    JSON = "json"


def transcribe(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A sound: WAV, FLAC or MP3.")
    ],
    projector: Annotated[
        Path,
        typer.Option("--projector", "--mmproj", metavar="FILE", help="The model's projector, which hears."),
    ],
    model: ModelName = store.DEFAULT_MODEL,
    language: Annotated[str | None, typer.Option(help="Language of the sound, such as en.")] = None,
    translate: Annotated[bool, typer.Option("--translate", help="Write it in English.")] = False,
    context: Annotated[
        str, typer.Option(help="A text that helps, such as names in the sound.", show_default=False)
    ] = "",
    instruction: Annotated[
        str | None, typer.Option(help="What the model is told, in place of all this.", show_default=False)
    ] = None,
    format: Annotated[Format, typer.Option("--format", "-f", help="What is written.")] = Format.TEXT,  # noqa: A002
    to: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="Write to this file.")
    ] = None,
    window_seconds: Annotated[
        float, typer.Option(min=1, max=3600, help="Cut the sound at its pauses into parts of up to this length.")
    ] = 29.9,
    n_parallel: Annotated[int, typer.Option(min=1, max=256, help="Parts that are transcribed at a time.")] = 4,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, help="Positions for each part.", show_default=f"up to {N_CTX_SEQ}")
    ] = None,
    temperature: Temperature = 0,
    n_threads: Threads = None,
    n_gpu_layers: GpuLayers = "auto",
    verbose: Verbose = False,
) -> None:
    """Write what is said in a sound, with a model that hears."""
    from offgrid_llama.engine import Engine
    from offgrid_llama.engine.transcription import transcribe as transcription_of
    from offgrid_llama.media.audio import Audio
    from offgrid_llama.model.model import Model

    sound = Audio(file)  # before the model, which takes longer
    layers = gpu_layers(n_gpu_layers)
    with Model(to_file(model), n_gpu_layers=layers) as loaded:
        each = n_ctx or min(N_CTX_SEQ, loaded.n_ctx_train or N_CTX_SEQ)
        with (
            Engine(
                loaded, projector=projector, n_ctx=each * n_parallel, n_seq_max=n_parallel, n_threads=n_threads
            ) as engine,
            transcription_of(
                engine, sound, language=language, translate=translate, context=context, instruction=instruction,
                window_seconds=window_seconds, temperature=temperature,
            ) as transcription,
        ):  # fmt: skip
            found = _told(transcription, f"transcribing {file.name}")
    text = _FORMATS[format](found)
    if to is None:
        output.put(text)
    else:
        to.write_text(text, encoding="utf-8")


def _told(transcription: Transcription, label: str) -> Transcript:
    """Return what is said; meanwhile a bar tells how many seconds are done."""
    total = max(1, round(transcription.seconds))
    with output.steps(label, "seconds") as show:
        for segment in transcription:
            show(round(segment.end), total)
    return transcription.result()


def _json(found: Transcript) -> str:
    import json

    segments = [{key: value for key, value in asdict(each).items() if value is not None} for each in found.segments]
    return json.dumps({"text": found.text, "seconds": found.seconds, "segments": segments}, indent=2) + "\n"


_FORMATS: Mapping[Format, Callable[[Transcript], Any]] = {
    Format.TEXT: lambda found: f"{found.text}\n", Format.SRT: lambda found: found.srt(),
    Format.VTT: lambda found: found.vtt(), Format.JSON: _json,
}  # fmt: skip
