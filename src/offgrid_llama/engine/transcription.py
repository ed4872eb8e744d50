"""``transcribe``: what is said in a sound, asked of a model that hears, a window at a time and several windows at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from math import fsum
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ContextLengthError
from offgrid_llama.files.projector_preflight import MIN_SAMPLES
from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.media.audio import Audio
from offgrid_llama.media.sound_windows import windows
from offgrid_llama.native.bound import Bound
from offgrid_llama.native.check import real
from offgrid_llama.native.kinds import instance
from offgrid_llama.text import subtitles
from offgrid_llama.text.joined_text import JoinedText

from .chat_completion import ChatCompletion
from .chat_options import ChatArguments
from .engine import Engine

if TYPE_CHECKING:
    import os

    from typing_extensions import Self, Unpack

    from offgrid_llama.media.projector import Projector

__all__ = ["WINDOW_SECONDS", "Segment", "Transcript", "Transcription", "Window", "transcribe"]

WINDOW_SECONDS = 29.9
"""Seconds of sound that a model is given at once, at most. Encoders like Whisper's take 30 at once, and twice as many tokens
for more."""
TOKENS_PER_SECOND = 20
LEAST_TOKENS = 64
"""An answer has up to these tokens for each second of its window, and as many more: a model that repeats itself must end."""
_ORDERS = {"lfm2a": ("Perform ASR.", "")}
"""What models with these encoders are told, as system and as user, to write what they hear. Others take any order."""


@dataclass(frozen=True)
class Segment:
    """What is said in one window of a sound.

    Attributes:
        start, end: of the window, in seconds.
        text: that was said.
        finish_reason: ``FinishReason.LENGTH`` if the text was cut.
        tokens: token ids of the answer.
        mean_logprob: of these; None unless ``logprobs`` was asked for.
    """

    start: float
    end: float
    text: str
    finish_reason: FinishReason | None = None
    tokens: Sequence[int] = ()
    mean_logprob: float | None = None


@dataclass(frozen=True)
class Transcript:
    """What is said in a sound.

    Attributes:
        text: all of it.
        segments: the same by windows, without those in which nothing is said.
        seconds: length of the sound.
    """

    text: str
    segments: Sequence[Segment] = field(repr=False)
    seconds: float

    def srt(self) -> str:
        """Return the segments as a SubRip file (.srt)."""
        return subtitles.srt(self.segments)

    def vtt(self) -> str:
        """Return the segments as a WebVTT file (.vtt)."""
        return subtitles.vtt(self.segments)


@dataclass(frozen=True)
class Window:
    """A window of a sound, in seconds, and the answer to it."""

    start: float
    end: float
    reply: ChatCompletion[Any]

    def segment(self) -> Segment:
        """Return what was said, once the answer is complete."""
        answer = self.reply.completion.answers[0]
        logprobs = [own for own, _ in answer.logprobs]
        return Segment(
            self.start, self.end, self.reply.content.strip(), self.reply.finish_reason, list(answer.tokens),
            fsum(logprobs) / len(logprobs) if logprobs else None,
        )  # fmt: skip


class Transcription(Bound):
    """A sound that is being transcribed.

    Iterate over it for its segments as they come (``for``, or ``async for``), call ``result()`` or ``await`` it for the
    whole; each may be done more than once. When its ``with`` block ends, or it is closed, what is still running is
    cancelled.

    Attributes:
        seconds: length of the sound.
    """

    _instead = "keep its result()"

    def __init__(self, engine: Engine, audio: Audio, longest: float, orders: Orders, options: ChatArguments) -> None:
        projector = _hearing(engine)
        self.seconds = audio.seconds
        self._engine = engine
        self._orders = orders
        self._options = options
        self._rate = projector.sample_rate or audio.sample_rate
        self._samples = projector.samples(audio)
        longest = _that_fits(engine, projector, min(longest, max(1.0, audio.seconds)))
        self._left: Iterator[tuple[int, int]] = windows(self._samples, self._rate, longest)
        self._asked: deque[Window] = deque()
        self._segments: list[Segment] = []

    def next_window(self) -> Window | None:
        """Return the next window that was asked for, and ask for further ones: as many as the engine answers at once.

        None is the end. Its answer need not be complete, so that it can be read as it comes.
        """
        while len(self._asked) < self._engine.n_seq_max:
            window = self._ask()
            if window is None:
                break
            self._asked.append(window)
        return self._asked.popleft() if self._asked else None

    def _ask(self) -> Window | None:
        for begin, end in self._left:
            samples = self._samples[begin:end]
            if len(samples) < MIN_SAMPLES:
                continue
            start, stop = begin / self._rate, end / self._rate
            options: Any = {"max_tokens": LEAST_TOKENS + int(TOKENS_PER_SECOND * (stop - start)), **self._options}
            messages = self._orders.about(Audio(samples, sample_rate=self._rate))
            try:
                return Window(start, stop, self._engine.chat(messages, **options))
            except BaseException:
                self._left = chain([(begin, end)], self._left)  # nothing is left out: the next try begins here
                raise
        return None

    @contextmanager
    def _read(self, window: Window) -> Iterator[None]:
        """Keep what was said in a window whose answer is complete when the block ends; else it is the next one again."""
        try:
            yield
        except BaseException:
            self._asked.appendleft(window)
            raise
        self._segments.append(window.segment())

    def __iter__(self) -> Iterator[Segment]:
        at = 0
        while True:
            if at == len(self._segments):
                window = self.next_window()
                if window is None:
                    return
                with self._read(window):
                    window.reply.result()
            at += 1
            yield self._segments[at - 1]

    async def __aiter__(self) -> AsyncIterator[Segment]:
        at = 0
        while True:
            if at == len(self._segments):
                window = await asyncio.to_thread(self.next_window)
                if window is None:
                    return
                with self._read(window):
                    await window.reply
            at += 1
            yield self._segments[at - 1]

    def result(self) -> Transcript:
        """Return all that is said; waits for the end."""
        for _ in self:
            pass
        return self._transcript()

    def __await__(self) -> Generator[Any, None, Transcript]:
        return self._whole().__await__()

    async def _whole(self) -> Transcript:
        async for _ in self:
            pass
        return self._transcript()

    def _transcript(self) -> Transcript:
        joined = JoinedText()
        for segment in self._segments:
            joined.begin()
            joined.push(segment.text)
        return Transcript(joined.text, [each for each in self._segments if each.text], self.seconds)

    def close(self) -> None:
        """Cancel what is still running, and ask for nothing more; the segments so far stay."""
        self._left = iter(())
        while self._asked:
            self._asked.popleft().reply.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Orders:
    """What a model is told to do with a window.

    Attributes:
        system: of the conversation; "" for none.
        user: what stands before the sound; "" for nothing.
    """

    system: str
    user: str

    def about(self, audio: Audio) -> list[Mapping[str, Any]]:
        """Return the conversation about a sound."""
        parts: list[Any] = [{"type": "text", "text": self.user}, audio] if self.user else [audio]
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, {"role": "user", "content": parts}]


def transcribe(
    engine: Engine,
    audio: Audio | str | os.PathLike[str] | bytes,
    *,
    language: str | None = None,
    translate: bool = False,
    context: str = "",
    instruction: str | None = None,
    window_seconds: float = WINDOW_SECONDS,
    **options: Unpack[ChatArguments],
) -> Transcription:
    """Return a Transcription of a sound: what a model that hears writes when it is told to write what is said.

    The sound is cut at its pauses into windows, which are asked for side by side, as many as the engine answers at once.
    The times of a segment are those of its window, without silence at either side. Silent windows are left out.

    Args:
        engine: with a projector that hears.
        audio: an Audio, or what Audio takes: a path or the bytes of a WAV, FLAC or MP3 file.
        language: of the sound, such as "en" or "Polish". None leaves it to the model.
        translate: write it in English.
        context: a text that helps: names in the sound, or what was said before.
        instruction: what the model is told, in place of all of these.
        window_seconds: length of a window, at most, from 1 on. It is made shorter where a window takes more than half of
            the engine's ``n_ctx_seq``.
        options: as ``Engine.chat`` takes them. The default of ``temperature`` is 0 here, that of ``max_tokens`` 64 and 20
            for each second.

    Raises:
        ValueError: the engine has no projector that hears, or an argument is not as above.
        MediaError: the file is no sound, or a damaged one.
        ContextLengthError: not even a second of sound fits.
    """
    projector = _hearing(instance("engine", engine, Engine))
    sound = audio if isinstance(audio, Audio) else Audio(audio)
    orders = _orders(projector, language, translate, context, instruction)
    given: Any = {"temperature": 0.0, **options} if "sampling" not in options else options
    longest = real("window_seconds", window_seconds, 1)
    return Transcription(engine, sound, longest, orders, given)


def _orders(
    projector: Projector, language: str | None, translate: bool, context: str, instruction: str | None
) -> Orders:
    """Return what a model is told, from the arguments of ``transcribe``."""
    if instruction is not None:
        return Orders("", instruction)
    if translate:
        order = "Translate the speech into English. Write the translation and nothing else."
    else:
        order = "Transcribe the speech word for word. Write the transcript and nothing else."
        system, user = _ORDERS.get(projector.types.get("audio", ""), ("", order))
        if system:
            return Orders(system, user)
    more = [f"The speech is in this language: {language}."] if language else []
    more += [f"It may help to know: {context}"] if context else []
    return Orders("", "\n".join([order, *more]))


def _hearing(engine: Engine) -> Projector:
    """Return the projector of an engine. Raises ValueError if it does not hear."""
    projector = engine.projector
    if projector is None or not projector.audio:
        raise ValueError("engine has no projector that hears sound: give it one, Engine(..., projector=...)")
    return projector


def _that_fits(engine: Engine, projector: Projector, longest: float) -> float:
    """Return the seconds of a window whose tokens leave half of a sequence to the rest; ``longest`` at most."""
    import numpy as np

    rate, room = projector.sample_rate or 1, engine.n_ctx_seq // 2
    while (n := projector.n_tokens(Audio(np.zeros(int(longest * rate), np.float32), sample_rate=rate))) > room:
        if longest <= 1:
            raise ContextLengthError(
                f"a second of sound has {n} tokens and a sequence of the engine {engine.n_ctx_seq}: make n_ctx larger",
                n_tokens=n, n_ctx=engine.n_ctx_seq,
            )  # fmt: skip
        longest = max(1.0, longest / 2)
    return longest
