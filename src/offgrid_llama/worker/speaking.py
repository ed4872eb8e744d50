"""Requests for speech: from a Generate frame to the Synthesizer, in a thread of its own, and to Chunks of sound."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from offgrid_llama.finish_reason import FinishReason
from offgrid_llama.media import wav
from offgrid_llama.media.audio import Audio
from offgrid_llama.tasks.speech import Speech, Synthesizer

from .channel import Channel
from .failures import RequestError, client_data
from .fair_pool import FairPool
from .frames import Answered, Chunk, Generate, Spoken, TokenCounts
from .generation import Utterance

__all__ = ["SpeechRequests"]

_logger = logging.getLogger("offgrid_llama.worker")
_PARAMS = ("temperature", "top_k", "top_p", "seed")


class SpeechRequests:
    """Speaks texts, one at a time: clients have turns.

    Args:
        synthesizer: speaks them.
        voices: files of voices, by the names that requests use.
        sampling: SamplingParams for requests that do not set them, of which those of ``Synthesizer.speak`` are used.

    Raises as Audio does for the file of a voice.
    """

    def __init__(self, synthesizer: Synthesizer, voices: Mapping[str, str], sampling: Mapping[str, Any]) -> None:
        self._synthesizer = synthesizer
        self._voices = {name: Audio(Path(file)) for name, file in voices.items()}
        self._sampling = {name: value for name, value in sampling.items() if name in _PARAMS}
        self._thread = FairPool(1, "offgrid_llama speech")
        self._n_threads = self._n_most = synthesizer.n_threads
        self._speeches: list[Speech] = []  # that wait for the thread, or have it

    def set_n_threads(self, n: int) -> None:
        """Compute with up to ``n`` threads from the next text on, and no more than at the beginning."""
        self._n_threads = min(n, self._n_most)

    async def answer(self, asked: Generate, what: Utterance, channel: Channel) -> None:
        """Send the sound of a text as it is made. When this is cancelled, the speech ends with its next frame."""
        loop = asyncio.get_running_loop()
        speech = self._begin(what)
        self._speeches.append(speech)

        def send(part: bytes) -> None:
            loop.call_soon_threadsafe(channel.send, Chunk(asked.id, 0, "", sound=part))

        try:
            spoken = await self._thread.run(asked.partition, self._speak, speech, what, send if asked.stream else None)
        finally:
            speech.cancel()
            self._speeches.remove(speech)
        tokens = TokenCounts(speech.n_tokens, 0, speech.n_frames)
        channel.send(Answered(asked.id, tokens, spoken=spoken))

    def shutdown(self) -> None:
        """End the speech that runs with its next frame, and free what speaks."""
        for speech in self._speeches:
            speech.cancel()
        self._thread.shutdown()
        self._synthesizer.close()

    def _begin(self, what: Utterance) -> Speech:
        voice = self._voice(what.voice)
        given = {name: getattr(what.options.sampling, name) for name in _PARAMS}
        arguments = {**self._sampling, **{name: value for name, value in given.items() if value is not None}}
        with client_data(what.names):
            return self._synthesizer.speak(what.text, voice=voice, language=what.language, **arguments)

    def _voice(self, name: str | None) -> Audio | None:
        if name is None or not self._voices:
            return None
        if name not in self._voices:
            raise RequestError(f"voice: must be one of {', '.join(self._voices)}, not {name!r}", param="voice")
        return self._voices[name]

    def _speak(self, speech: Speech, what: Utterance, send: Callable[[bytes], None] | None) -> Spoken:
        head = wav.header(speech.sample_rate) if what.as_wav else b""
        self._synthesizer.set_n_threads(self._n_threads)
        with client_data(what.names), speech:
            for piece in speech:
                if send is not None:
                    send(head + wav.pcm16(piece))
                    head = b""
        if speech.finish_reason is FinishReason.LENGTH:
            _logger.warning("a speech was cut after %.0f s: the model has found no end", speech.seconds)
        sound = b""
        if send is None:
            sound = speech.wav() if what.as_wav else wav.pcm16(speech.samples)
        return Spoken(speech.seconds, sound)
