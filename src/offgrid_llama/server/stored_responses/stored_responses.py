"""StoredResponses: the responses of clients, and the conversations that they are turns of."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.server.dialects.responses_items import Item, response_of_item

from .access import Access
from .record import Backend, Record

__all__ = ["StoredResponses", "not_found"]

MANY_BYTES = 256 * 2**10
"""Events of this size are compressed beside the event loop."""
PREFIX = "resp_"
"""How the ids of responses begin. Chat completions are kept beside them."""


def not_found(id_: str) -> ApiError:
    """Return the error about a response that is not here, or belongs to another key."""
    return ApiError(404, f"Response with id '{id_:.100}' not found.", code="not_found")


class StoredResponses:
    """The responses that the server keeps.

    Args:
        backend: where they are kept.
        max_context_bytes: of a conversation that a request goes on from, at most.

    Attributes:
        access: to what is kept.
    """

    def __init__(self, backend: Backend, max_context_bytes: int) -> None:
        self.access = Access(backend)
        self._max_context_bytes = max_context_bytes

    async def put(
        self,
        key: str,
        response: Mapping[str, Any],
        items: bytes,
        events: Sequence[bytes] = (),
        *,
        running: bool = False,
    ) -> None:
        """Keep a response, in place of what was kept of it. Raises ApiError where that is not possible.

        The arguments are those of ``Record.of``.
        """
        make = partial(Record.of, key, response, items, events, running=running)
        record = make() if sum(map(len, events)) < MANY_BYTES else await asyncio.to_thread(make)
        await self.access.run(lambda backend: backend.put(record))

    async def get(self, key: str, id_: str) -> Record:
        """Return a response. Raises ApiError 404."""
        record = await self.access.run(lambda backend: _get(backend, key, id_))
        if record is None:
            raise not_found(id_)
        return record

    async def delete(self, key: str, id_: str) -> bool:
        """Forget a response; return whether it was there."""
        return id_.startswith(PREFIX) and await self.access.run(lambda backend: backend.delete(key, id_))

    async def context(self, key: str, previous: str | None) -> list[Item]:
        """Return the items of a conversation up to a response, its output included.

        Raises ApiError for a response that is not here any more, or is not done.
        """
        records = await self.access.run(lambda backend: self._chain(backend, key, previous))
        if records and records[-1].running:
            raise ApiError(
                400, f"Previous response with id '{previous}' is still in progress.", code="invalid_value",
                param="previous_response_id",
            )  # fmt: skip
        return [item for record in records for item in record.items()]

    def _chain(self, backend: Backend, key: str, last: str | None) -> list[Record]:
        """Return the responses of a conversation, the first one first."""
        found: list[Record] = []
        n_bytes = 0
        while last is not None:
            record = _get(backend, key, last)
            if record is None:
                raise ApiError(
                    400, f"Previous response with id '{last:.100}' not found.", code="previous_response_not_found",
                    param="previous_response_id",
                )  # fmt: skip
            found.append(record)
            n_bytes += record.n_bytes
            if n_bytes > self._max_context_bytes:
                message = f"the conversation so far has more than {self._max_context_bytes:,} bytes"
                raise ApiError(413, message, code="body_too_large", param="previous_response_id")
            last = record.previous
        return found[::-1]

    async def item(self, key: str, id_: str) -> Item:
        """Return an item of a response. Raises ApiError 404."""
        record = await self.access.run(lambda backend: _get(backend, key, response_of_item(id_)))
        for item in [] if record is None else record.items():
            if item["id"] == id_:
                return item
        raise ApiError(404, f"Item with id '{id_:.100}' not found.", code="not_found", param="input")

    async def close(self) -> None:
        """Let go of what is held."""
        await self.access.close()


def _get(backend: Backend, key: str, id_: str) -> Record | None:
    return backend.get(key, id_) if id_.startswith(PREFIX) else None
