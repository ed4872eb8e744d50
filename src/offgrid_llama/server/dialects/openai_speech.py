"""OpenAI's API of speech: a text as sound, whole, or streamed as bytes or events."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

import msgspec
from pydantic import Field, Tag, model_validator
from typing_extensions import Self

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.shapes import by_shape
from offgrid_llama.server.strict import Strict, refused
from offgrid_llama.worker.frames import Answered, Chunk
from offgrid_llama.worker.generation import Options, Sampling, Utterance

from .dialect import Asked, Writer
from .openai_options import N_SEEDS
from .openai_schemas import Finite, ModelName

__all__ = ["EventWriter", "SoundWriter", "SpeechRequest", "read_speech"]

MAX_CHARACTERS = 4096
"""Of a text: OpenAI's own limit."""
_NAMES = {"text": "input", **{name: name for name in ("voice", "language", "seed", "temperature", "top_k", "top_p")}}


class VoiceId(Strict):
    """A voice by its id."""

    id: Annotated[str, Field(max_length=256)]


class SpeechRequest(Strict):
    """The body of ``/v1/audio/speech``."""

    model: ModelName | None = None
    input: Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]
    voice: (
        Annotated[
            Annotated[str, Field(max_length=256), Tag("text")] | Annotated[VoiceId, Tag("object")],
            by_shape("the name of a voice, or an object with its id"),
        ]
        | None
    ) = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "wav"
    stream_format: Literal["audio", "sse"] | None = None
    speed: Annotated[Finite, Field(ge=0.25, le=4)] = 1.0
    instructions: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None
    language: Annotated[str, Field(max_length=64)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    top_p: Annotated[Finite, Field(ge=0, le=1)] | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.response_format not in ("wav", "pcm"):
            raise refused("response_format", f"this server writes wav and pcm, not {self.response_format}")
        if self.speed != 1:
            raise refused("speed", "this server speaks as fast as the model does: speed must be 1")
        return self


def read_speech(body: SpeechRequest) -> Asked:
    """Return what a body asks for."""
    sampling = Sampling(
        temperature=body.temperature, top_k=body.top_k, top_p=body.top_p,
        seed=None if body.seed is None else body.seed % N_SEEDS,
    )  # fmt: skip
    voice, as_wav = body.voice.id if isinstance(body.voice, VoiceId) else body.voice, body.response_format == "wav"
    what = Utterance(
        options=Options(sampling=sampling), names=_NAMES, text=body.input, as_wav=as_wav, voice=voice,
        language=body.language,
    )  # fmt: skip
    if body.stream_format == "sse":
        return Asked(body.model, what, True, EventWriter)
    streams = body.stream_format == "audio" or not as_wav
    return Asked(body.model, what, streams, partial(SoundWriter, "audio/wav" if as_wav else "audio/pcm"))


class SoundWriter(Writer):
    """Writes sound as the worker sends it.

    Args:
        media_type: of the sound.
        _model: the name that the client used for the model, which no answer tells.
    """

    sign_of_life = b""

    def __init__(self, media_type: str, _model: str) -> None:
        self.media_type = media_type

    def event(self, chunk: Chunk) -> bytes:
        """Return the sound of a chunk."""
        return chunk.sound

    def end(self, _answered: Answered) -> bytes:
        """Return nothing: the sound has ended."""
        return b""

    def failed(self, error: ApiError) -> bytes:
        """Break the connection off: an end would say that the sound is whole."""
        raise error

    def whole(self, answered: Answered) -> bytes:
        """Return all of the sound."""
        if answered.spoken is None:
            raise ApiError(500, "the worker sent no speech", code="internal_error")
        return answered.spoken.sound


class EventWriter(Writer):
    """Writes sound as events, in base64.

    Args:
        _model: the name that the client used for the model, which no answer tells.
    """

    def __init__(self, _model: str) -> None:
        pass

    def event(self, chunk: Chunk) -> bytes:
        """Return the event of a chunk."""
        return _event({"type": "speech.audio.delta", "audio": base64.b64encode(chunk.sound).decode()})

    def end(self, answered: Answered) -> bytes:
        """Return the event of the end."""
        tokens = answered.tokens
        usage = {
            "input_tokens": tokens.prompt, "output_tokens": tokens.completion,
            "total_tokens": tokens.prompt + tokens.completion,
        }  # fmt: skip
        return _event({"type": "speech.audio.done", "usage": usage})

    def failed(self, error: ApiError) -> bytes:
        """Return the event of an error, which is the last one."""
        return b"data: " + error.body() + b"\n\n"

    def whole(self, answered: Answered) -> Any:
        """Events are never whole."""
        raise NotImplementedError


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"
