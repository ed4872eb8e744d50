"""Service: a worker's model, and what answers requests with it. It knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from offgrid_llama.chat.template.choice import has_template, read_template
from offgrid_llama.engine import Engine
from offgrid_llama.media.projector import Projector
from offgrid_llama.model.adapter import LoRA
from offgrid_llama.model.model import Model
from offgrid_llama.tasks.speech import Synthesizer

from .calls import FIELDS, Calls
from .channel import Channel
from .engine_calls import EngineCalls
from .failures import RequestError, client_data, failure
from .fair_pool import FairPool
from .frames import Call, Generate, Result
from .generation import Conversation, Sound, Utterance
from .requests import ChatRequests, TextRequests
from .sounds import SoundRequests
from .speaking import SpeechRequests
from .thread_shares import ThreadShares

__all__ = ["Service"]

N_REQUEST_THREADS = 4
"""Threads for work that would block the event loop: rendering, tokenizing, compiling grammars."""


class Service:
    """Loads a model, and answers requests with it.

    Args:
        file: the model's GGUF file.
        engine: arguments of Engine; ``draft_model`` may be a file.
        model: arguments of Model.
        sampling: SamplingParams for requests that do not set them; and "stop", texts that end each answer to a conversation.
        template: a chat template to use instead of the model's.
        loras: files of LoRA adapters to use, with their scales.
        projector: arguments of Projector besides the model, and "voices", files of voices by their names; None is a model
            that neither sees nor hears nor speaks.
        progress: called with the share of the model that is loaded, from 0 to 1.

    Raises as Model and Engine do.
    """

    def __init__(
        self,
        file: str,
        *,
        engine: Mapping[str, Any],
        model: Mapping[str, Any],
        sampling: Mapping[str, Any],
        template: str | None = None,
        loras: Mapping[str, float] | None = None,
        projector: Mapping[str, Any] | None = None,
        progress: Callable[[float], object] | None = None,
    ) -> None:
        sampling = dict(sampling)
        stop: list[str] = sampling.pop("stop", [])
        self._threads = FairPool(N_REQUEST_THREADS, "offgrid_llama requests")
        self._pooled_thread = FairPool(1, "offgrid_llama embedding")
        self._model = Model(file, progress=progress, **model)
        try:
            adapters = {LoRA(self._model, path): scale for path, scale in (loras or {}).items()}
            self._template = None if template is None else read_template(self._model, template)
            n_threads = engine.get("n_threads")
            media, voices = None, dict[str, str]()
            if projector is not None:
                arguments = dict(projector)
                voices = arguments.pop("voices", {})
                media = Projector(self._model, n_threads=n_threads, **arguments)
            self._speech = self._speaking(media, voices, sampling, n_threads)
            has_engine = not self._embeds_only and self._speech is None
            self._engine = Engine(self._model, loras=adapters, projector=media, **engine) if has_engine else None
        except BaseException:
            self._model.close()
            raise
        self._shares = ThreadShares(self._engine, engine.get("n_threads"))
        self._calls = Calls(
            self._model, self._template, adapters, self._shares, projector=media, threads=self._threads,
            pooled=self._pooled_thread,
        )  # fmt: skip
        self._engine_calls = EngineCalls(self._model, self._engine, self._template, adapters, sampling, self._threads)
        if self._engine is not None:
            self._conversations = ChatRequests(
                self._engine, self._template, sampling, self._threads, list(adapters), stop
            )
            self._texts = TextRequests(self._engine, sampling, self._threads, list(adapters))
            self._sounds = SoundRequests(self._engine, self._template, sampling, self._threads, list(adapters))

    def _speaking(
        self, media: Projector | None, voices: Mapping[str, str], sampling: Mapping[str, Any], n_threads: int | None
    ) -> SpeechRequests | None:
        """Return what speaks, if the model does: it does nothing else."""
        if media is None or media.speech_rate is None:
            return None
        return SpeechRequests(Synthesizer(self._model, media, n_threads=n_threads), voices, sampling)

    @property
    def _has_template(self) -> bool:
        return self._template is not None or has_template(self._model)

    @property
    def _embeds_only(self) -> bool:
        metadata = self._model.metadata
        causal = metadata.get(f"{metadata.get('general.architecture')}.attention.causal")
        return causal == "false" or self._model.has_encoder

    def _speaks(self) -> SpeechRequests:
        """Return what speaks. Raises RequestError where the model does not."""
        if self._speech is None:
            raise RequestError("this model does not speak", param="model")
        return self._speech

    @property
    def _does(self) -> str:
        if self._speech is not None:
            return "this model speaks: /v1/audio/speech; it does not write"
        return "this model makes vectors of texts, or ranks them; it does not write any"

    def info(self) -> dict[str, Any]:
        """Return facts about the model, for ``/v1/models``."""
        model, media = self._model, None if self._engine is None else self._engine.projector
        return {
            "n_ctx_train": model.n_ctx_train, "n_ctx": self._engine.n_ctx_seq if self._engine is not None else None,
            "n_params": model.n_params, "n_embd": model.n_embd, "n_vocab": model.vocab.n_tokens, "size": model.size,
            "description": model.description, "chat": self._has_template and self._engine is not None,
            "generates": self._engine is not None,
            "vision": media is not None and media.vision, "audio": media is not None and media.audio,
            "speech": self._speech is not None,
        }  # fmt: skip

    def set_n_threads(self, n: int) -> None:
        """Let the worker compute with up to ``n`` threads, and no more than it was made with."""
        self._shares.allow(n)
        if self._speech is not None:
            self._speech.set_n_threads(n)

    def stats(self) -> dict[str, float]:
        """Return the numbers of EngineStats; those of ``finished`` as ``finished_REASON``."""
        if self._engine is None:
            return {}
        stats = asdict(self._engine.stats())
        finished: dict[str, int] = stats.pop("finished")
        return {**stats, **{f"finished_{reason}": n for reason, n in finished.items()}}

    async def generate(self, asked: Generate, channel: Channel) -> None:
        """Send the answer to a request, or its failure. When this is cancelled, the request is cancelled."""
        try:
            what = asked.what
            if isinstance(what, Utterance):
                await self._speaks().answer(asked, what, channel)
                return
            if self._engine is None:
                raise RequestError(self._does)
            if isinstance(what, Conversation) and not (what.template or what.reasons or self._has_template):
                what = what.as_texts() if what.or_text is not None else what
            if isinstance(what, Conversation):
                await self._conversations.answer(asked, what, channel)
            elif isinstance(what, Sound):
                await self._sounds.answer(asked, what, channel)
            else:
                await self._texts.answer(asked, what, channel)
        except Exception as error:
            channel.send(failure(asked.id, error))

    async def call(self, asked: Call, channel: Channel) -> None:
        """Send the result of a call, or its failure. When this is cancelled, no further batch of it is computed."""
        try:
            if asked.what == "stats":
                value: Any = self.stats()
            else:
                with client_data(FIELDS.get(asked.what)):
                    functions = {**self._calls.functions, **self._engine_calls.functions}
                    value = await functions[asked.what](asked.partition, **asked.arguments)
            channel.send(Result(asked.id, value))
        except Exception as error:
            channel.send(failure(asked.id, error))

    def close(self) -> None:
        """End all requests, and free the model."""
        if self._engine is not None:
            self._engine.close()
        self._threads.shutdown()
        self._pooled_thread.shutdown()
        if self._speech is not None:
            self._speech.shutdown()
        self._model.close()
