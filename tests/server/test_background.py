"""Responses in the background: they count while they run, and are kept however they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from offgrid_llama.server.admission import Admission
from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.background import Background, Run
from offgrid_llama.server.body_bytes import BodyBytes
from offgrid_llama.server.dialects.responses import Turn, read_response
from offgrid_llama.server.dialects.responses_items import input_items, new_response_id
from offgrid_llama.server.dialects.responses_schemas import ResponseRequest
from offgrid_llama.server.metrics import Metrics
from offgrid_llama.server.settings import ModelSettings, Settings
from offgrid_llama.server.stored_responses.in_memory import InMemory
from offgrid_llama.server.stored_responses.record import Record
from offgrid_llama.server.stored_responses.stored_responses import StoredResponses
from offgrid_llama.server.supervision.names import Names
from offgrid_llama.server.supervision.presets import Presets
from offgrid_llama.server.supervision.served_model import ServedModel
from offgrid_llama.worker.frames import Answered, Chunk, TokenCounts

SETTINGS = Settings(
    models=[ModelSettings("m", n_parallel=1)], max_queue=1, max_body_bytes=4096, max_held_body_bytes=4096
)
END = [Chunk(1, 0, "b", finish_reason="stop"), Answered(1, TokenCounts(5, 2, 4))]


class Workers:
    """A supervisor whose workers send a chunk, and then what a test says."""

    def __init__(self) -> None:
        self.models: dict[str, Any] = {}
        self.settings = SETTINGS
        self.presets = Presets(Names())
        self.end = asyncio.Event()
        self.frames: list[Any] = END

    async def ask(self, *_: Any) -> AsyncIterator[Any]:
        yield Chunk(1, 0, "a")
        await self.end.wait()
        for frame in self.frames:
            if isinstance(frame, ApiError):
                raise frame
            yield frame


class Failing(InMemory):
    """It takes nothing but responses that run."""

    def put(self, record: Record) -> None:
        if not record.running:
            raise ApiError(500, "the disk is full")
        super().put(record)


class Server:
    """The parts that run responses in the background."""

    def __init__(self, backend: InMemory | None = None) -> None:
        self.workers = Workers()
        supervisor: Any = self.workers
        self.admission = Admission(SETTINGS)
        self.body_bytes = BodyBytes(SETTINGS)
        self.stored = StoredResponses(backend or InMemory(10, 10**6, 0), 10**6)
        metrics = Metrics(supervisor, self.admission)
        self.background = Background(supervisor, metrics, self.admission, self.body_bytes, self.stored)

    async def start(self, **more: Any) -> Run:
        body = ResponseRequest.model_validate({"input": "a", "background": True, **more})
        id_ = new_response_id()
        asked = read_response(body, Turn(id_, [], input_items(body.input, id_, {})))
        writer: Any = asked.writer("m")
        return await self.background.start("k", ServedModel(SETTINGS.models[0]), asked, writer, b"[]")

    async def kept(self, run: Run) -> Any:
        return msgspec.json.decode((await self.stored.get("k", run.writer.id)).response)


async def followed(run: Run, after: int = -1) -> list[Any]:
    data = b"".join([each async for each in run.events(after)])
    return [msgspec.json.decode(event.partition(b"data: ")[2]) for event in data.split(b"\n\n")[:-1]]


def run_it(main: Callable[[Server], Awaitable[None]], backend: InMemory | None = None) -> None:
    async def run() -> None:
        server = Server(backend)
        await main(server)
        assert (server.admission.n, server.body_bytes.n) == (0, 0)

    asyncio.run(run())


def test_it_is_kept_at_its_end_and_at_its_beginning() -> None:
    """Until its end it counts as a request, with its bytes; its clients get all events, from wherever they come."""

    async def main(server: Server) -> None:
        run = await server.start()
        assert (await server.kept(run))["status"] == "queued"
        assert server.admission.n == 1
        assert server.body_bytes.n > 10
        assert server.background.find("k", run.writer.id) is run
        assert server.background.find("other", run.writer.id) is None
        following = asyncio.gather(followed(run), followed(run, 3), followed(run, 1000))
        server.workers.end.set()
        whole, rest, none = await following
        assert [event["sequence_number"] for event in whole] == [*range(len(whole))]
        assert (rest, none) == (whole[4:], [])
        assert whole[-1]["response"] == await server.kept(run)
        assert server.background.find("k", run.writer.id) is None

    run_it(main)


@pytest.mark.parametrize(("how", "status"), [("cancel", "cancelled"), ("close", "failed"), ("fail", "failed")])
def test_other_ends(how: str, status: str) -> None:
    """A response that is cancelled, interrupted or fails is kept as far as it has come, and its clients get an end."""

    async def main(server: Server) -> None:
        run = await server.start()
        following = asyncio.create_task(followed(run))
        if how == "cancel":
            await asyncio.gather(server.background.cancel(run), server.background.cancel(run))
        elif how == "close":
            await server.background.close()
        else:
            server.workers.frames = [ApiError(503, "the worker ended")]
            server.workers.end.set()
        last = (await following)[-1]["response"]
        assert last == await server.kept(run)
        assert last["status"] == status

    run_it(main)


def test_a_response_that_cannot_be_kept() -> None:
    """Its clients are told that it has failed."""

    async def main(server: Server) -> None:
        run = await server.start()
        following = asyncio.create_task(followed(run))
        server.workers.end.set()
        last = (await following)[-1]["response"]
        assert (last["status"], last["error"]["message"]) == ("failed", "the disk is full")

    run_it(main, Failing(10, 10**6, 0))


def test_too_many() -> None:
    """There is no room for more of them than for other requests, nor for more bytes."""

    async def main(server: Server) -> None:
        with pytest.raises(ApiError, match="bytes of other bodies"):
            await server.start(instructions="a" * 5000)
        runs = [await server.start(), await server.start()]
        with pytest.raises(ApiError, match="requests wait"):
            await server.start()
        await asyncio.gather(*map(server.background.cancel, runs))

    run_it(main)
