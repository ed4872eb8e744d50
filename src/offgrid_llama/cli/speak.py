"""``offgrid-llama speak``: a text as a WAV file, with a model that speaks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import output
from .exits import UsageError
from .options import GpuLayers, ModelName, Seed, Threads, Verbose, gpu_layers, read_text, to_file

if TYPE_CHECKING:
    from offgrid_llama.tasks.speech import Speech

__all__ = ["speak"]


def speak(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is said; - reads it from standard input.")],
    model: ModelName,
    projector: Annotated[
        Path, typer.Option("--projector", "--mmproj", metavar="FILE", help="The model's projector, which makes sound.")
    ],
    to: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", dir_okay=False, help="The WAV file; - is standard output.")
    ] = Path("speech.wav"),
    voice: Annotated[
        Path | None,
        typer.Option(metavar="FILE", exists=True, dir_okay=False, help="A sound of a voice, to speak like it."),
    ] = None,
    language: Annotated[str | None, typer.Option(help="Language of the text, such as de.")] = None,
    seed: Seed = None,
    max_seconds: Annotated[float, typer.Option(min=0.1, help="Cut the speech there.")] = 600.0,
    n_threads: Threads = None,
    n_gpu_layers: GpuLayers = "auto",
    verbose: Verbose = False,
) -> None:
    """Speak a text, with a model that was made for it: Pocket TTS, or Qwen3-TTS."""
    from offgrid_llama.finish_reason import FinishReason
    from offgrid_llama.media.audio import Audio
    from offgrid_llama.media.projector import Projector
    from offgrid_llama.model.model import Model
    from offgrid_llama.tasks.speech import Synthesizer

    said = read_text(text)
    if not said.strip():
        raise UsageError("there is nothing to say: TEXT is empty")
    sound = None if voice is None else Audio(voice)  # before the model, which takes longer
    with (
        Model(to_file(model), n_gpu_layers=gpu_layers(n_gpu_layers)) as loaded,
        Projector(loaded, projector, n_threads=n_threads) as made,
        Synthesizer(loaded, made, n_threads=n_threads) as synthesizer,
        synthesizer.speak(said, voice=sound, language=language, seed=seed, max_seconds=max_seconds) as speech,
    ):
        _spoken(speech)
        if str(to) == "-":
            output.put_bytes(speech.wav())
        else:
            speech.save(to)
    if speech.finish_reason is FinishReason.LENGTH:
        output.err(f"the speech was cut after {speech.seconds:.1f} s, before the end of the text")


def _spoken(speech: Speech) -> None:
    """Speak to the end; meanwhile a bar tells how many seconds there are."""
    with output.steps("speaking", "seconds") as show:
        for _ in speech:
            show(round(speech.seconds), None)
