"""Requests for what is said in a sound: from a Generate frame to the engine, window by window, and to Chunks."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from math import ceil
from typing import Any

import msgspec

from offgrid_llama.chat import ChatTemplate
from offgrid_llama.engine import Completion, Engine
from offgrid_llama.engine.chat_options import ChatArguments
from offgrid_llama.engine.transcription import WINDOW_SECONDS, Transcription, Window, transcribe
from offgrid_llama.media.audio import MAX_SECONDS, Audio
from offgrid_llama.model.adapter import LoRA
from offgrid_llama.text.joined_text import JoinedText

from .answered import answered_with, counts
from .arguments import check_template, request_arguments
from .channel import Channel
from .failures import RequestError, client_data
from .fair_pool import FairPool
from .frames import Chunk, Generate, Transcribed, TranscribedSegment
from .generation import Sound
from .logprobs import token_logprobs

__all__ = ["SoundRequests"]

MAX_HELD_SECONDS = 4 * MAX_SECONDS
"""Of all sounds whose samples are held at a time; of one client as much as the longest sound has. An hour takes 230 MB."""


class SoundRequests:
    """Writes what is said in sounds.

    Args:
        engine: generates the answers.
        template: of conversations; None is the model's own.
        sampling: SamplingParams for requests that do not set them.
        threads: for work that would block the event loop.
        loras: the model's adapters, which requests know by their numbers.
    """

    def __init__(
        self,
        engine: Engine,
        template: ChatTemplate | None,
        sampling: Mapping[str, Any],
        threads: FairPool,
        loras: Sequence[LoRA] = (),
    ) -> None:
        self._engine = engine
        self._template = template
        self._sampling = sampling
        self._threads = threads
        self._loras = loras
        self._seconds: dict[str, int] = defaultdict(int)  # of the sounds that are held, by partition
        self._changed = asyncio.Condition()

    async def answer(self, asked: Generate, what: Sound, channel: Channel) -> None:
        """Send what is said. When this is cancelled, the request is cancelled."""
        in_thread = partial(self._threads.run, asked.partition)
        audio: Audio = await in_thread(self._audio, what)
        async with self._held(asked.partition, ceil(audio.seconds)):
            await self._answer(asked, what, await in_thread(self._begin, what, audio, asked.partition), channel)

    async def _answer(self, asked: Generate, what: Sound, transcription: Transcription, channel: Channel) -> None:
        in_thread = partial(self._threads.run, asked.partition)
        joined, completions, segments = JoinedText(), list[Completion](), list[TranscribedSegment]()
        with transcription:
            while (window := await in_thread(_next, transcription, what)) is not None:
                completions.append(window.reply.completion)
                joined.begin()
                await self._read(asked, window, joined, channel, is_first=len(completions) == 1)
                found = window.segment()
                if found.text:
                    answer = window.reply.completion.answers[0]
                    logprobs = token_logprobs(self._engine.model.vocab, answer.tokens, answer.logprobs)
                    tokens = list(answer.tokens)
                    segments.append(TranscribedSegment(found.start, found.end, found.text, tokens, logprobs))
            answered = answered_with(asked.id, completions, [])
            answered.transcribed = Transcribed(joined.text, transcription.seconds, segments)
            channel.send(answered)

    async def _read(
        self, asked: Generate, window: Window, joined: JoinedText, channel: Channel, is_first: bool
    ) -> None:
        """Send the answer to a window as it comes."""
        with window.reply as reply:
            async for delta in reply:
                text = joined.push(delta.content)
                if text and asked.stream:
                    chunk = Chunk(asked.id, 0, text, n_tokens=len(delta.tokens))
                    if is_first:
                        chunk.tokens, is_first = counts([reply.completion]), False
                    channel.send(chunk)

    @asynccontextmanager
    async def _held(self, partition: str, seconds: int) -> AsyncIterator[None]:
        """Wait until there is room for the samples of a sound, and hold it until the block ends."""
        held = self._seconds
        async with self._changed:
            await self._changed.wait_for(
                lambda: held[partition] + seconds <= MAX_SECONDS and sum(held.values()) + seconds <= MAX_HELD_SECONDS
            )
            held[partition] += seconds
        try:
            yield
        finally:
            held[partition] -= seconds
            if not held[partition]:
                del held[partition]
            async with self._changed:
                self._changed.notify_all()

    def _audio(self, asked: Sound) -> Audio:
        check_template(self._engine.model, self._template)
        if self._engine.projector is None or not self._engine.projector.audio:
            raise RequestError("this model hears no sound", param="model")
        with client_data(asked.names):
            return Audio(asked.file)

    def _begin(self, asked: Sound, audio: Audio, partition: str) -> Transcription:
        options = msgspec.structs.replace(asked.options)
        if options.sampling.temperature is None:
            options.sampling = msgspec.structs.replace(options.sampling, temperature=0.0)
        with client_data(asked.names, asked.n_completion):
            arguments: Any = request_arguments(
                options, self._engine.n_ctx_seq, self._sampling, self._engine.model.vocab, self._loras, can_shift=False
            )
            if options.max_tokens is None:
                del arguments["max_tokens"]
            more: ChatArguments = {"template": self._template, "cache_salt": partition, "tenant": partition}
            return transcribe(
                self._engine, audio, language=asked.language, translate=asked.translate,
                context=asked.context, instruction=asked.instruction,
                window_seconds=asked.window_seconds or WINDOW_SECONDS, **{**arguments, **more},
            )  # fmt: skip


def _next(transcription: Transcription, asked: Sound) -> Window | None:
    with client_data(asked.names, asked.n_completion):
        return transcription.next_window()
