"""OpenAI's API of sounds: transcriptions and translations, whole in five formats, and streamed."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import fsum
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, model_validator
from typing_extensions import Self

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.strict import Strict, refused
from offgrid_llama.server.validation import validated
from offgrid_llama.text import subtitles
from offgrid_llama.worker.frames import Answered, Chunk, TokenCounts, Transcribed, TranscribedSegment
from offgrid_llama.worker.generation import Options, Sampling, Sound

from .dialect import Asked, Writer
from .openai_logprobs import chat_logprobs
from .openai_options import N_SEEDS

__all__ = ["SoundForm", "SoundWriter", "read_form", "read_sound"]

MAX_CONTEXT_CHARACTERS = 16_384
_LISTS = ("timestamp_granularities", "include")
_NAMES = {"context": "prompt", "audio": "file"}


class SoundForm(Strict):
    """The fields of ``/v1/audio/transcriptions`` and ``/v1/audio/translations`` besides the file."""

    model: Annotated[str, Field(max_length=512)] | None = None
    language: Annotated[str, Field(max_length=64)] | None = None
    prompt: Annotated[str, Field(max_length=MAX_CONTEXT_CHARACTERS)] = ""
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    stream: bool = False
    timestamp_granularities: Sequence[Literal["segment", "word"]] = ()
    include: Sequence[Literal["logprobs"]] = ()
    chunking_strategy: Any = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    instruction: Annotated[str, Field(max_length=MAX_CONTEXT_CHARACTERS)] | None = None
    window_seconds: Annotated[float, Field(ge=1, le=3600)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "word" in self.timestamp_granularities:
            raise refused("timestamp_granularities", "this server tells the times of segments, not those of words")
        if self.stream and self.response_format not in ("json", "text"):
            raise refused("stream", f"a stream has no response_format {self.response_format!r}; json and text it has")
        if self.include and self.response_format != "json":
            raise refused("include", "logprobs are for the response_format json")
        return self


def read_form(fields: Iterable[tuple[str, Any]], ignore_unknown: bool) -> SoundForm:
    """Return the fields of a form besides its file. Raises ApiError.

    Clients write a list as ``name[]``, again for each item, and an object as ``name[key]``.
    """
    said: dict[str, Any] = {}
    for field, value in fields:
        name = field.partition("[")[0]
        if name in _LISTS:
            said.setdefault(name, []).append(value)
        elif isinstance(value, str):
            said[name] = value
    if said.get("language") == "":
        del said["language"]
    return validated(SoundForm, said, {"ignore_unknown": ignore_unknown})


def read_sound(form: SoundForm, file: bytes, *, translate: bool) -> Asked:
    """Return what a form and its file ask for."""
    tells_logprobs = bool(form.include) or form.response_format == "verbose_json"
    seed = None if form.seed is None else form.seed % N_SEEDS
    options = Options(
        sampling=Sampling(temperature=form.temperature, seed=seed), max_tokens=form.max_tokens,
        logprobs=0 if tells_logprobs else None,
    )  # fmt: skip
    what = Sound(
        options=options, names=_NAMES, file=file, language=form.language, translate=translate, context=form.prompt,
        instruction=form.instruction, window_seconds=form.window_seconds,
    )  # fmt: skip
    return Asked(form.model, what, form.stream, partial(SoundWriter, form=form, translates=translate))


class SoundWriter(Writer):
    """Writes what is said in a sound.

    Args:
        _model: the name that the client used for the model, which no answer tells.
        form: of the request.
        translates: whether it is written in English.
    """

    def __init__(self, _model: str, *, form: SoundForm, translates: bool) -> None:
        self._form = form
        self._translates = translates

    def event(self, chunk: Chunk) -> bytes:
        """Return the event of a part of the text."""
        return _event({"type": "transcript.text.delta", "delta": chunk.content})

    def end(self, answered: Answered) -> bytes:
        """Return the event with the whole text."""
        said = _said(answered)
        more = {"logprobs": _logprobs(said)} if self._form.include else {}
        return _event({"type": "transcript.text.done", "text": said.text, **more, "usage": _usage(answered.tokens)})

    def failed(self, error: ApiError) -> bytes:
        """Return the event of an error, which is the last one."""
        return b"data: " + error.body() + b"\n\n"

    def whole(self, answered: Answered) -> Any:
        """Return the body of a response that is not streamed; those that are no JSON are a str."""
        return _FORMATS[self._form.response_format](self, _said(answered), answered.tokens)

    def _json(self, said: Transcribed, tokens: TokenCounts) -> dict[str, Any]:
        more = {"logprobs": _logprobs(said)} if self._form.include else {}
        return {"text": said.text, **more, "usage": _usage(tokens)}

    def _verbose(self, said: Transcribed, _tokens: TokenCounts) -> dict[str, Any]:
        temperature = self._form.temperature or 0.0
        return {
            "task": "translate" if self._translates else "transcribe",
            "language": "english" if self._translates else self._form.language or "",
            "duration": said.seconds, "text": said.text,
            "segments": [_segment(id_, each, temperature) for id_, each in enumerate(said.segments)],
            "usage": {"type": "duration", "seconds": said.seconds},
        }  # fmt: skip


_FORMATS: Mapping[str, Callable[[SoundWriter, Transcribed, TokenCounts], Any]] = {
    "json": SoundWriter._json, "verbose_json": SoundWriter._verbose,
    "text": lambda _, said, __: f"{said.text}\n", "srt": lambda _, said, __: subtitles.srt(said.segments),
    "vtt": lambda _, said, __: subtitles.vtt(said.segments),
}  # fmt: skip


def _said(answered: Answered) -> Transcribed:
    if answered.transcribed is None:
        raise ApiError(500, "the worker sent no transcript", code="internal_error")
    return answered.transcribed


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def _usage(tokens: TokenCounts) -> dict[str, Any]:
    return {
        "type": "tokens", "input_tokens": tokens.prompt, "output_tokens": tokens.completion,
        "total_tokens": tokens.prompt + tokens.completion,
    }  # fmt: skip


def _logprobs(said: Transcribed) -> list[dict[str, Any]]:
    found = chat_logprobs([each for segment in said.segments for each in segment.logprobs]) or {"content": []}
    return [{name: each[name] for name in ("token", "logprob", "bytes")} for each in found["content"]]


def _segment(id_: int, segment: TranscribedSegment, temperature: float) -> dict[str, Any]:
    """Return a segment as OpenAI's Whisper tells it. Silent parts are left out, so that none is probably silent."""
    text = segment.text.encode()
    logprobs = [each.logprob for each in segment.logprobs]
    return {
        "id": id_, "seek": int(segment.start * 100), "start": segment.start, "end": segment.end, "text": segment.text,
        "tokens": segment.tokens, "temperature": temperature,
        "avg_logprob": fsum(logprobs) / len(logprobs) if logprobs else 0.0,
        "compression_ratio": len(text) / len(zlib.compress(text)), "no_speech_prob": 0.0,
    }  # fmt: skip
