"""Generation: a request that generates, with a model's worker, and what its dialect writes of the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from time import monotonic
from typing import Any

from offgrid_llama.worker.frames import Answered, Chunk, Generate

from .api_error import ApiError
from .dialects.dialect import Asked, Writer
from .metrics import Metrics
from .supervision.served_model import ServedModel
from .supervision.supervisor import Supervisor
from .supervision.suspects import fingerprint

__all__ = ["Generation"]


SMALL_ANSWER_LOGPROBS = 1000
"""Tokens of prompts whose logprobs are written on the event loop, at most. More would hold up the streams of others."""


async def _keep_nothing() -> None:
    pass


class Generation:
    """A request that generates.

    Args:
        supervisor: has the model's worker.
        metrics: counts tokens and times.
        model: the model that generates.
        writer: of the response.
        key: of the client.
        keep: waited for when the response is complete, before its end is sent. It may raise ApiError.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        metrics: Metrics,
        model: ServedModel,
        writer: Writer,
        key: str,
        keep: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._supervisor = supervisor
        self._metrics = metrics
        self._model = model
        self._writer = writer
        self._key = key
        self._keep = keep or _keep_nothing
        self._asked_at = monotonic()

    def ask(self, asked: Asked) -> AsyncIterator[Any]:
        """Return the frames that the model's worker will send; the worker is asked with the first of them."""
        what = self._supervisor.presets.applied(asked.model, asked.what)

        def generate(id_: int) -> Generate:
            self._writer.load_seconds = monotonic() - self._asked_at
            return Generate(id_, what, asked.stream or asked.in_chunks, self._key)

        return self._supervisor.ask(self._model, generate, fingerprint(self._model.name, what), asked.keep_alive)

    async def whole(self, frames: AsyncIterator[Any]) -> Any:
        """Return the body of a response that is not streamed."""
        async with aclosing(frames) as found:  # type: ignore[type-var]
            async for frame in found:
                if isinstance(frame, Chunk):
                    self._writer.event(frame)
                elif isinstance(frame, Answered):
                    self._count(frame)
                    if frame.timings is not None:
                        first = frame.timings.waiting + frame.timings.prompt
                        self._metrics.first_token.labels(self._model.name).observe(first)
                    is_large = sum(map(len, frame.prompts)) > SMALL_ANSWER_LOGPROBS
                    body = await asyncio.to_thread(self._writer.whole, frame) if is_large else self._writer.whole(frame)
                    await self._keep()
                    return body
        raise ApiError(500, "the worker sent no answer", code="internal_error")

    async def events(self, frames: AsyncIterator[Any]) -> AsyncIterator[bytes]:
        """Yield the events of a stream. An error after the first event becomes the last event."""
        writer, metrics, name = self._writer, self._metrics, self._model.name
        first_token, between = metrics.first_token.labels(name), metrics.between_tokens.labels(name)
        last: float | None = None
        async with aclosing(frames) as found:  # type: ignore[type-var]
            try:
                async for frame in found:
                    if isinstance(frame, Chunk):
                        now = monotonic()
                        if last is None:
                            first_token.observe(now - self._asked_at)
                            yield writer.begin() + writer.event(frame)
                        else:
                            between.observe(now - last)
                            yield writer.event(frame)
                        last = now
                    elif isinstance(frame, Answered):
                        self._count(frame)
                        end = writer.end(frame)
                        await self._keep()
                        yield end
            except ApiError as error:
                if last is None:
                    raise
                end = writer.failed(error)
                with suppress(ApiError):
                    await self._keep()
                yield end

    def _count(self, answered: Answered) -> None:
        self._metrics.llama_server.count(answered)
        tokens = answered.tokens
        for kind, n in (("prompt", tokens.prompt), ("cached", tokens.cached), ("completion", tokens.completion)):
            self._metrics.tokens.labels(self._model.name, kind).inc(n)
