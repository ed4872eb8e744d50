"""Stored responses: conversations of several, and what a client is told of those that are not there."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.stored_responses.in_memory import InMemory
from offgrid_llama.server.stored_responses.stored_responses import StoredResponses


def response(id_: str, previous: str | None = None, n_output: int = 1) -> dict[str, Any]:
    output = [{"id": f"msg_{id_}{i:04x}"} for i in range(1, n_output + 1)]
    return {"id": f"resp_{id_}", "previous_response_id": previous, "output": output}


async def filled(**options: Any) -> StoredResponses:
    stored = StoredResponses(InMemory(10, 10**6, 0), options.pop("max_context_bytes", 10**6))
    for id_, previous in (("a", None), ("b", "resp_a"), ("c", "resp_b")):
        await stored.put("k", response(id_, previous), msgspec.json.encode([{"id": f"msg_{id_}0000"}]), **options)
    return stored


def refused(work: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        asyncio.run(work)
    return raised.value


def test_conversations() -> None:
    """A conversation is the items of its responses, input and output, in their order."""

    async def main() -> None:
        stored = await filled()
        assert await stored.context("k", None) == []
        found = [item["id"] for item in await stored.context("k", "resp_c")]
        assert found == [f"msg_{id_}000{i}" for id_ in "abc" for i in (0, 1)]
        assert await stored.item("k", "msg_b0001") == {"id": "msg_b0001"}
        assert (await stored.get("k", "resp_b")).input_items() == [{"id": "msg_b0000"}]

    asyncio.run(main())


@pytest.mark.parametrize("key", ["k", "other"])
def test_what_is_not_there(key: str) -> None:
    """A response that is deleted, or of another key, is not found, and a conversation with it has a hole."""

    async def main(then: Any) -> None:
        stored = await filled()
        if key == "k":
            await stored.delete("k", "resp_a")
        await then(stored)

    gone = refused(main(lambda stored: stored.context(key, "resp_c")))
    assert (gone.status, gone.code, gone.param) == (400, "previous_response_not_found", "previous_response_id")
    assert refused(main(lambda stored: stored.get(key, "resp_a"))).status == 404
    assert refused(main(lambda stored: stored.item(key, "msg_a0001"))).status == 404
    assert refused(main(lambda stored: stored.item("k", "msg_b0007"))).status == 404


def test_conversations_that_are_too_large() -> None:
    """A client cannot have the server read more than a body may have."""

    async def main() -> None:
        stored = await filled(max_context_bytes=250)
        assert await stored.context("k", "resp_b")
        await stored.context("k", "resp_c")

    assert refused(main()).status == 413


def test_responses_that_run() -> None:
    """A conversation does not go on from a response that is not done."""

    async def main() -> None:
        stored = await filled(running=True)
        await stored.context("k", "resp_a")

    assert "still in progress" in refused(main()).message


@pytest.mark.parametrize("n", [1, 20_000])
def test_events(n: int) -> None:
    """They come back as they were, few or many."""

    async def main() -> None:
        stored = await filled(events=[b"event: a\ndata: {}\n\n"] * n)
        assert (await stored.get("k", "resp_a")).streamed() == [b"event: a\ndata: {}\n\n"] * n

    asyncio.run(main())
