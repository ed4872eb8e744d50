"""StoredChats: the chat completions that clients have asked the server to keep, beside their responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError

from .access import Access
from .pages import page_of
from .record import Backend, Record

__all__ = ["StoredChats"]

PREFIX = "chatcmpl-"
"""How the ids of chat completions begin; those of responses do not."""


class _Head(msgspec.Struct):
    """The fields by which a list of chat completions is filtered."""

    model: str
    metadata: dict[str, str]


class StoredChats:
    """The chat completions that the server keeps. They belong to the keys that have asked for them.

    Args:
        access: to what is kept.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def put(self, key: str, completion: Mapping[str, Any], messages: bytes) -> None:
        """Keep a chat completion. Raises ApiError where that is not possible.

        Args:
            key: of the client that it belongs to.
            completion: of OpenAI's shape, with its metadata.
            messages: the JSON of the messages that it answers.
        """
        record = Record(completion["id"], key, None, False, msgspec.json.encode(completion), messages)
        await self._access.run(lambda backend: backend.put(record))

    async def get(self, key: str, id_: str) -> Record:
        """Return a chat completion. Raises ApiError 404."""
        record = await self._access.run(lambda backend: backend.get(key, id_)) if id_.startswith(PREFIX) else None
        if record is None:
            raise _not_found(id_)
        return record

    async def set_metadata(self, key: str, id_: str, metadata: Mapping[str, str]) -> bytes:
        """Set the metadata of a chat completion, and return its JSON. Raises ApiError 404."""
        record = await self.get(key, id_)
        completion = msgspec.json.decode(record.response) | {"metadata": metadata}
        changed = replace(record, response=msgspec.json.encode(completion))
        await self._access.run(lambda backend: backend.put(changed))
        return changed.response

    async def delete(self, key: str, id_: str) -> None:
        """Forget a chat completion. Raises ApiError 404."""
        if not id_.startswith(PREFIX) or not await self._access.run(lambda backend: backend.delete(key, id_)):
            raise _not_found(id_)

    async def page(
        self, key: str, after: str | None, limit: int, order: str, model: str | None, metadata: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return a page of the chat completions of a key. Raises ApiError where none has the id ``after``.

        Args:
            key: of the client.
            after, limit: as ``page_of`` takes them.
            order: "asc" begins with the one that was kept first, "desc" with the last one.
            model: the name of the model that has answered; None is any.
            metadata: that they have, among others.
        """

        def read(backend: Backend) -> Iterator[dict[str, Any]]:
            for record in backend.records(key, PREFIX, newest_first=order == "desc"):
                head = msgspec.json.decode(record.response, type=_Head)
                if (model is None or head.model == model) and metadata.items() <= head.metadata.items():
                    yield msgspec.json.decode(record.response)

        def page(backend: Backend) -> dict[str, Any]:
            return page_of(read(backend), after, limit)

        return await self._access.run(page)


def _not_found(id_: str) -> ApiError:
    return ApiError(404, f"Chat completion with id '{id_:.100}' not found.", code="not_found")
