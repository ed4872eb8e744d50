"""Events of models: all subscribers get all of them in order, and none can hold up another or fill the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import msgspec
import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.model_events import (
    MAX_SUBSCRIBERS,
    MAX_WAITING_EVENTS,
    ModelEvent,
    ModelEvents,
    Subscription,
)


def run(check: Callable[[ModelEvents], Awaitable[None]], share: float = 1.0) -> None:
    async def main() -> None:
        await asyncio.wait_for(check(ModelEvents(share)), 30)

    asyncio.run(main())


def loading(value: float) -> dict[str, object]:
    return {"status": "loading", "progress": {"value": value}}


async def kinds(subscription: Subscription) -> list[object]:
    return [(event.model, event.kind, event.data) for event in await subscription.next()]


def test_all_subscribers_get_all_events() -> None:
    """In order, and from when they subscribe; a part of the server may want those of one model."""

    async def check(events: ModelEvents) -> None:
        with events.subscribed("k") as first, events.heard("b") as of_b:
            events.status("a", {"status": "loaded"})
            with events.subscribed("k") as second:
                events.reload()
                events.publish(ModelEvent("b", "model_remove"))
                later: list[object] = [("*", "models_reload", None), ("b", "model_remove", None)]
                assert await kinds(second) == later
            assert await kinds(first) == [("a", "model_status", {"status": "loaded"}), *later]
            assert await kinds(of_b) == later[1:]
            assert await first.next(0.01) == []
            waiting = asyncio.create_task(first.next())
            await asyncio.sleep(0)
            events.reload()
            assert [event.kind for event in await waiting] == ["models_reload"]

    run(check)


def test_what_is_sent() -> None:
    """A line of JSON in llama-server's shape, without data where there are none."""
    event = ModelEvent("a", "model_status", {"status": "loaded"})
    assert event.as_bytes.startswith(b"data: ")
    assert event.as_bytes.endswith(b"\n\n")
    told = msgspec.json.decode(event.as_bytes.removeprefix(b"data: "))
    assert told == {"model": "a", "event": "model_status", "data": {"status": "loaded"}}
    assert b'"data"' not in ModelEvent("a", "model_remove").as_bytes


def test_progress_that_waits_is_replaced() -> None:
    """By later progress of the same model and kind, unless something else has come between for this model."""

    async def check(events: ModelEvents) -> None:
        with events.subscribed("k") as one:
            for i in range(10 * MAX_WAITING_EVENTS):
                events.status("a", loading(i))
                events.status("b", loading(-i))
            events.status("a", {"status": "loaded"})
            events.status("a", loading(0.5))
            last = 10 * MAX_WAITING_EVENTS - 1
            assert await kinds(one) == [
                ("a", "model_status", loading(last)), ("b", "model_status", loading(-last)),
                ("a", "model_status", {"status": "loaded"}), ("a", "model_status", loading(0.5)),
            ]  # fmt: skip
            assert not one.is_over

    run(check)


def test_one_that_does_not_read_is_dropped() -> None:
    """When too many events wait; others get all, and what has waited is still given."""

    async def check(events: ModelEvents) -> None:
        with events.subscribed("k") as slow, events.subscribed("k") as other:
            n_got = 0
            for _ in range(2 * MAX_WAITING_EVENTS):
                events.reload()
                n_got += len(await other.next())
            assert n_got == 2 * MAX_WAITING_EVENTS
            assert (slow.is_over, other.is_over) == (True, False)
            assert len(await slow.next()) == MAX_WAITING_EVENTS
            assert await slow.next() == []

    run(check)


@pytest.mark.parametrize(("share", "status", "n"), [(1.0, 503, MAX_SUBSCRIBERS), (0.5, 429, MAX_SUBSCRIBERS // 2)])
def test_the_number_of_subscribers(share: float, status: int, n: int) -> None:
    """It is limited in all and for each key; one that ends makes room."""

    async def check(events: ModelEvents) -> None:
        for _ in range(2):
            with ExitStack() as held:
                for i in range(n):
                    held.enter_context(events.subscribed("k" if status == 429 else str(i)))
                with pytest.raises(ApiError) as refused, events.subscribed("k"):
                    pass
                assert refused.value.status == status
                assert int(refused.value.headers["Retry-After"]) >= 1
                if status == 429:
                    held.enter_context(events.subscribed("another"))

    run(check, share)


def test_the_end() -> None:
    """When the server stops, all subscriptions end, those that wait and those that begin later."""

    async def check(events: ModelEvents) -> None:
        with events.subscribed("k") as one:
            waiting = asyncio.create_task(one.next())
            await asyncio.sleep(0)
            events.close()
            assert await waiting == []
            assert one.is_over
        with events.subscribed("k") as late:
            assert await late.next() == []

    run(check)
