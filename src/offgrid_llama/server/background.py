"""Background: responses that are generated whether or not their clients are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import msgspec

from .admission import Admission
from .api_error import ApiError
from .body_bytes import BodyBytes
from .dialects.dialect import Asked
from .dialects.responses_writer import ResponsesWriter
from .generation import Generation
from .metrics import Metrics
from .picture_urls import with_pictures
from .stored_responses.record import INTERRUPTED
from .stored_responses.stored_responses import StoredResponses
from .supervision.served_model import ServedModel
from .supervision.supervisor import Supervisor

__all__ = ["Background", "Run"]


class Run:
    """A response that is being generated.

    Args:
        key: of the client that it belongs to.
        writer: of the response, which keeps its events.
        items: the JSON of the input items.

    Attributes:
        task: that generates it.
        is_ending: whether it was ended before its end.
        failure: why it was, unless its client has cancelled it.
    """

    def __init__(self, key: str, writer: ResponsesWriter, items: bytes) -> None:
        self.key = key
        self.writer = writer
        self.task: asyncio.Task[None] | None = None
        self.is_ending = False
        self.failure: ApiError | None = None
        self.items = items
        self._n_told = 0  # events that clients may see
        self._is_done = False
        self._news = asyncio.Event()

    def tell(self, *, is_last: bool = False) -> None:
        """Let clients see all events so far."""
        self._n_told = len(self.writer.events)
        self._is_done = is_last
        self._news.set()
        self._news = asyncio.Event()

    async def events(self, after: int) -> AsyncIterator[bytes]:
        """Yield the events behind one, by its sequence number, as they come."""
        at = after + 1
        while True:
            news = self._news
            yield b"".join(self.writer.events[at : self._n_told])
            at = max(at, self._n_told)
            if self._is_done:
                return
            await news.wait()


class Background:
    """The responses that are being generated in the background.

    Args:
        supervisor: has the models' workers.
        metrics: counts tokens and times.
        admission: counts these responses as requests.
        body_bytes: counts what they hold of their requests.
        stored: keeps the responses.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        metrics: Metrics,
        admission: Admission,
        body_bytes: BodyBytes,
        stored: StoredResponses,
    ) -> None:
        self._supervisor = supervisor
        self._metrics = metrics
        self._admission = admission
        self._body_bytes = body_bytes
        self._stored = stored
        self._runs: dict[str, Run] = {}

    def find(self, key: str, id_: str) -> Run | None:
        """Return the response with an id, if it is being generated and belongs to this key."""
        run = self._runs.get(id_)
        return run if run is not None and run.key == key else None

    async def start(self, key: str, model: ServedModel, asked: Asked, writer: ResponsesWriter, items: bytes) -> Run:
        """Return a response that is being generated from now on, once it is kept. Raises ApiError.

        Args:
            key: of the client that it belongs to.
            model: that generates it.
            asked: what the client asks for.
            writer: of the response.
            items: the JSON of the input items.
        """
        run = Run(key, writer, items)
        with ExitStack() as held:
            held.enter_context(self._admission.request(key, model.name))
            hold = held.enter_context(self._body_bytes.holding(key))
            hold(len(items) + len(msgspec.json.encode(asked.what)))
            writer.queue()
            await self._stored.put(key, writer.response(), items, running=True)
            run.tell()
            self._runs[writer.id] = run
            run.task = asyncio.create_task(self._generate(run, model, asked, held.pop_all()))
        await asyncio.sleep(0)  # a task that is cancelled before it begins would not keep its response
        return run

    async def cancel(self, run: Run, failure: ApiError | None = None) -> None:
        """End a response, and wait until it is kept as it is then: as cancelled, or with a failure as failed."""
        if run.task is None:
            return
        if not run.is_ending:
            run.is_ending, run.failure = True, failure
            run.task.cancel()
        await asyncio.wait({run.task})

    async def close(self) -> None:
        """End all responses. They have failed."""
        failure = ApiError(503, INTERRUPTED, code="stopping")
        await asyncio.gather(*(self.cancel(run, failure) for run in list(self._runs.values())))

    async def _generate(self, run: Run, model: ServedModel, asked: Asked, held: ExitStack) -> None:
        writer = run.writer
        try:
            with held:
                what = await with_pictures(asked.what, self._supervisor.settings.image_hosts)
                asked = replace(asked, what=what)
                generation = Generation(
                    self._supervisor, self._metrics, model, writer, run.key, partial(self._keep, run)
                )
                async for _ in generation.events(generation.ask(asked)):
                    run.tell()
        except ApiError as error:  # before the first token
            writer.failed(error)
            await self._keep_anyway(run)
        except asyncio.CancelledError:
            if writer.status in ("queued", "in_progress"):
                if run.failure is None:
                    writer.cancelled()
                else:
                    writer.failed(run.failure)
            await self._keep_anyway(run)
        finally:
            run.tell(is_last=True)
            del self._runs[writer.id]

    async def _keep(self, run: Run) -> None:
        await self._stored.put(run.key, run.writer.response(), run.items, run.writer.events)

    async def _keep_anyway(self, run: Run) -> None:
        """Keep a response that has failed or was cancelled, if that is possible."""
        with suppress(ApiError):
            await self._keep(run)
