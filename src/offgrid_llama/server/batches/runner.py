"""BatchRunner: answers the requests of a batch, several at a time, by the workers of a Supervisor."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from functools import partial
from typing import Any

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.dialect import Asked, Writer
from offgrid_llama.server.dialects.openai_vectors import AskedVectors
from offgrid_llama.server.picture_urls import with_pictures
from offgrid_llama.server.supervision.served_model import ServedModel
from offgrid_llama.server.supervision.supervisor import Supervisor
from offgrid_llama.server.supervision.suspects import fingerprint
from offgrid_llama.worker.frames import Answered, Call, Chunk, Generate, Result

from .lines import BatchLine, response_line

__all__ = ["BatchRunner"]

MAX_TRIES = 10
"""A request for which there is no room, or whose worker restarts, is tried so often."""
MAX_REST_SECONDS = 10.0
"""The longest rest between two tries."""


class BatchRunner:
    """Answers requests.

    Args:
        supervisor: of the models.
        n: requests at a time.
        key: on whose behalf they are.
        ignore_unknown: whether parameters that are not known have no effect.
        priority: of the requests; those with a larger one come first.
    """

    def __init__(
        self, supervisor: Supervisor, n: int, key: str = "", *, ignore_unknown: bool = False, priority: int = 0
    ) -> None:
        self._supervisor = supervisor
        self._n = n
        self._key = key
        self._ignore_unknown = ignore_unknown
        self._priority = priority

    async def run(self, lines: Iterable[BatchLine], answered: Callable[[bytes, int], object]) -> None:
        """Answer all requests. They end in any order; one that fails ends no other.

        Args:
            lines: the requests, which are taken one by one.
            answered: called with the line of each response and its status, as they come.
        """
        rest = iter(lines)

        async def client() -> None:
            for line in rest:
                status, body = await self._answer(line)
                answered(response_line(line.custom_id, status, body), status)

        clients = [asyncio.create_task(client()) for _ in range(self._n)]
        try:
            await asyncio.gather(*clients)
        finally:
            for each in clients:
                each.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _answer(self, line: BatchLine) -> tuple[int, Any]:
        """Return the status and the body of a response."""
        try:
            asked = line.asked(self._ignore_unknown)
            if isinstance(asked, Asked):
                asked.what.options.priority = self._priority
            for _ in range(MAX_TRIES - 1):
                try:
                    return 200, await self._ask(asked)
                except ApiError as error:
                    if error.status != 503:
                        raise
                    await asyncio.sleep(min(MAX_REST_SECONDS, float(error.headers.get("Retry-After", 1))))
            return 200, await self._ask(asked)
        except ApiError as error:
            return error.status, error.as_dict()

    async def _ask(self, asked: Asked | AskedVectors) -> Any:
        """Return the body of the response."""
        model = self._supervisor.find_to_answer(asked.model)
        if isinstance(asked, AskedVectors):
            arguments = asked.arguments(model.settings.matryoshka)
            vectors = await self._last(model, partial(Call, what="embed", arguments=arguments), asked.texts)
            return await asyncio.to_thread(asked.body, vectors.value, model.name)
        what = await with_pictures(asked.what, self._supervisor.settings.image_hosts)
        what = self._supervisor.presets.applied(asked.model, what)
        writer = asked.writer(asked.model or model.name)
        make = partial(Generate, what=what, stream=asked.in_chunks)
        return writer.whole(await self._last(model, make, what, writer))

    async def _last(self, model: ServedModel, make: Callable[..., Any], what: Any, writer: Writer | None = None) -> Any:
        """Return the last frame of a request to a model's worker; its chunks go to the writer."""
        frames: AsyncIterator[Any] = self._supervisor.ask(
            model, lambda id_: make(id=id_, partition=self._key), fingerprint(model.name, what)
        )
        last: Any = None
        async with aclosing(frames) as found:  # type: ignore[type-var]
            async for frame in found:
                if writer is not None and isinstance(frame, Chunk):
                    writer.event(frame)
                last = frame
        if not isinstance(last, (Answered, Result)):
            raise ApiError(500, "the worker sent no answer", code="internal_error")
        return last
