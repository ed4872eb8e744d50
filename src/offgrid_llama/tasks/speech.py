"""Synthesizer: text to speech, with a model whose projector makes sound."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from math import ceil
from typing import TYPE_CHECKING

from offgrid_llama.context.context import Context
from offgrid_llama.errors import ContextLengthError, MediaError
from offgrid_llama.files.atomic import replacing
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.media import wav
from offgrid_llama.media.audio import Audio
from offgrid_llama.media.projector import Projector
from offgrid_llama.media.speech_pipeline import SpeechPipeline
from offgrid_llama.model.model import Model, check_model
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.check import number, real
from offgrid_llama.native.kinds import instance, path_of, text_of_argument
from offgrid_llama.sampling.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Self

__all__ = ["MAX_SPEECH_SECONDS", "Speech", "Synthesizer"]

MAX_SPEECH_SECONDS = 600.0
"""Seconds of one speech, unless ``speak(max_seconds=...)`` says otherwise: a model may not find the end."""
N_CTX = 4096
"""Positions, unless ``Synthesizer(n_ctx=...)`` says otherwise: of a voice, a text and its frames."""
FRAMES_PER_SECOND = 12.5
"""Of both kinds of models that libmtmd speaks with."""
PROMPT_ROOM = 64
"""Positions beside those of the text and the voice: of marks, and of what libmtmd adds to a text."""
_LANGUAGE = "<|codec_language_"
LANGUAGES = {
    "zh": "chinese", "en": "english", "de": "german", "it": "italian", "pt": "portuguese", "es": "spanish",
    "ja": "japanese", "ko": "korean", "fr": "french", "ru": "russian",
}  # fmt: skip
"""The names by which models know languages, by the codes of ISO 639-1."""


@dataclass
class Speech(Bound):
    """A text that is being spoken: iterate over it for pieces of sound, or take ``samples``, which waits for the end.

    One text is spoken at a time by a projector. If you may leave a Speech early, use it in a ``with`` block, or call
    ``close()``.

    Attributes:
        sample_rate: in Hz.
        pieces: the sound so far, each float32[n_samples] from -1 to 1, of one channel.
        finish_reason: ``FinishReason.STOP`` at the text's end, ``LENGTH`` if it was cut at ``max_seconds`` or at the
            context's end, None while it runs.
        seed: of its random numbers: the same text, voice and seed give the same sound.
        n_tokens: of the text. n_frames: of the sound so far, of 80 ms each.
        is_cancelled: whether ``cancel`` was called.
    """

    _instead = "keep its samples"

    sample_rate: int
    seed: int
    n_tokens: int
    n_frames: int = 0
    pieces: list[npt.NDArray[np.float32]] = field(default_factory=list, repr=False)
    finish_reason: FinishReason | None = None
    is_cancelled: bool = False
    _steps: Iterator[npt.NDArray[np.float32]] = field(default_factory=lambda: iter(()), repr=False)

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        for piece in self._steps:
            if len(piece):
                self.pieces.append(piece)
                yield piece

    def cancel(self) -> None:
        """Let it end with the next frame, from any thread; ``finish_reason`` is CANCELLED then."""
        self.is_cancelled = True

    def close(self) -> None:
        """Stop; what was spoken stays. The end of the text does so too."""
        if isinstance(self._steps, Generator):
            self._steps.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def samples(self) -> npt.NDArray[np.float32]:
        """All sound, float32[n_samples]; speaks what is still to come."""
        import numpy as np

        for _ in self:
            pass
        return np.concatenate([np.empty(0, np.float32), *self.pieces])

    @property
    def seconds(self) -> float:
        """Length of the sound so far."""
        return sum(map(len, self.pieces)) / self.sample_rate

    def wav(self) -> bytes:
        """Return all sound as a WAV file of 16 bits; speaks what is still to come."""
        return wav.wav(self.samples, self.sample_rate)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``wav()`` to a file, whole or not at all."""
        data = self.wav()
        with replacing(path_of("path", path)) as unfinished:
            unfinished.write_bytes(data)


class Synthesizer(Bound):
    """Text to speech, with a model that was trained for it: Pocket TTS, or Qwen3-TTS (``mtmd_helper_gen_audio``).

    Several threads may use one: they take turns, text by text.

    Args:
        model: the Model, which makes a row of numbers for each frame of sound.
        projector: the model's Projector, which makes sound of the rows.
        n_ctx: positions of a voice, a text and its speech; None is 4,096, or what the model was trained for. A frame is
            80 ms. Pocket TTS speaks long texts sentence by sentence, and needs room for the longest one.
        n_threads: see Context.

    Raises:
        MediaError: the projector makes no sound.
        ContextError: as for a Context. ValueError: the projector is that of another model.

    Attributes:
        sample_rate: of the sound, in Hz.
        takes_voice: whether ``speak`` takes a voice.
        languages: names for ``speak``; none where the model speaks the language that it was made for.
    """

    _instead = "make another one of the same model"

    def __init__(
        self, model: Model, projector: Projector, *, n_ctx: int | None = None, n_threads: int | None = None
    ) -> None:
        check_model(model)
        instance("projector", projector, Projector)
        if projector.model is not model:
            raise ValueError(f"projector is that of {projector.model.handle.name}, and model is {model.handle.name}")
        if projector.speech_rate is None:
            raise MediaError(f"{projector.handle.name} makes no sound: it is no projector of a model that speaks")
        self.model, self.projector = model, projector
        self.sample_rate: int = projector.speech_rate
        self.takes_voice = projector.takes_voice
        self.languages = _languages(model)
        if n_ctx is None:
            n_ctx = min(N_CTX, model.n_ctx_train or N_CTX)
        # A text is decoded at once, so n_batch is all of it; and each row is read as an embedding.
        self._context = Context(
            model, n_ctx=number("n_ctx", n_ctx, PROMPT_ROOM), n_batch=n_ctx, embeddings=True, pooling_type="none",
            n_threads=n_threads, perf=True,
        )  # fmt: skip
        try:
            self._pipeline = SpeechPipeline(self._context, projector)
        except BaseException:
            self._context.close()
            raise

    def close(self) -> None:
        """Free the context. Closing the model, or the projector, does so too."""
        self._context.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Synthesizer of {self.model.handle}: {self.sample_rate} Hz>"

    @property
    def n_threads(self) -> int:
        """Threads that the model computes with (``llama_n_threads``)."""
        return self._context.n_threads

    def set_n_threads(self, n_threads: int) -> None:
        """Compute with ``n_threads`` threads from the next frame on (``llama_set_n_threads``)."""
        self._context.set_n_threads(n_threads)

    def speak(
        self,
        text: str,
        *,
        voice: Audio | None = None,
        language: str | None = None,
        seed: int | None = None,
        temperature: float = 0.9,
        top_k: int = 50,
        top_p: float = 1.0,
        max_seconds: float = MAX_SPEECH_SECONDS,
    ) -> Speech:
        """Return a Speech of a text. Nothing is computed before it is iterated over, or asked for its samples.

        Args:
            text: is said. Its line breaks are spaces.
            voice: a sound of a voice, to speak like it; 30 seconds at most are used. None is the model's own.
            language: one of ``languages``, or a code such as "de"; None is English, or the language of the model.
            seed: of the random numbers; None is another one each time.
            temperature, top_k, top_p: how the codes of a frame are drawn, by models that draw codes (Qwen3-TTS).
            max_seconds: the speech is cut there.

        Raises:
            ContextLengthError: the text does not fit; the message says what would.
            MediaError: the voice is damaged, or the model takes none.
            ValueError, TypeError: an argument is not as above; raised by the call itself.
        """
        instance("text", text, str)
        text = " ".join(text.split())  # as one line
        if not text:
            raise ValueError("text must have something to say; it is empty")
        with text_of_argument("text"):
            # As libmtmd reads it, which takes marks in the text of a model that draws codes for control tokens.
            n_tokens = len(self.model.vocab.tokenize(text, add_special=False, parse_special=self._pipeline.draws))
        if n_tokens + PROMPT_ROOM > self._context.n_ctx:
            raise ContextLengthError(
                f"the text has {n_tokens} tokens, and n_ctx is {self._context.n_ctx}: speak it in parts",
                n_tokens=n_tokens, n_ctx=self._context.n_ctx, argument="text",
            )  # fmt: skip
        if voice is not None:
            instance("voice", voice, Audio)
            if not self.takes_voice:
                raise MediaError(f"{self.projector.handle.name} takes no voice")
        name = self._named(language)
        seed = secrets.randbelow(2**31) if seed is None else number("seed", seed, 0, 2**32 - 2)
        params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=0.0, seed=seed)
        n_frames = ceil(real("max_seconds", max_seconds, 0) * FRAMES_PER_SECOND)
        speech = Speech(self.sample_rate, seed, n_tokens)
        speech._steps = self._steps(speech, text, voice, name, params, n_frames)
        return speech

    def _named(self, language: str | None) -> str | None:
        """Return the name of a language that the model knows it by. Raises ValueError where it does not."""
        if language is None:
            return None
        if not isinstance(language, str):
            raise TypeError(f"language must be a str, not {type(language).__name__}")
        if not self.languages:
            raise ValueError(f"language must be left out: {self.model.handle.name} speaks the one that it was made for")
        name = LANGUAGES.get(language.lower(), language.lower())
        if name not in self.languages:
            raise ValueError(f"language must be one of {', '.join(self.languages)}, not {language!r}")
        return name

    def _steps(
        self, speech: Speech, text: str, voice: Audio | None, language: str | None, params: SamplingParams, most: int
    ) -> Iterator[npt.NDArray[np.float32]]:
        pipeline, n_spoken, ended = self._pipeline, 0, False
        with self.projector.speaking, closing(params.chain(self.model.vocab)) as chain:
            pipeline.begin(
                text, voice=voice, language=language, top_k=params.top_k, top_p=params.top_p, seed=speech.seed
            )
            while pipeline.n_frames < most:
                ended = pipeline.step(chain.sample(self._context, -1)) if pipeline.draws else pipeline.step()
                if ended:
                    break
                speech.n_frames = pipeline.n_frames
                if speech.is_cancelled or pipeline.is_full:
                    break
                if pipeline.has_window:
                    piece = pipeline.samples(n_spoken)
                    n_spoken += len(piece)
                    yield piece
            last = pipeline.samples(n_spoken)
        unfinished = FinishReason.CANCELLED if speech.is_cancelled else FinishReason.LENGTH
        speech.finish_reason = FinishReason.STOP if ended else unfinished
        yield last


def _languages(model: Model) -> tuple[str, ...]:
    """Return the names of the languages that a model has a token for."""
    return tuple(
        sorted(name[len(_LANGUAGE) : -2] for name in model.vocab.control_tokens() if name.startswith(_LANGUAGE))
    )
