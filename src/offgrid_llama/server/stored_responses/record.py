"""Record: a response as it is kept: as bytes, so that its size is known."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

__all__ = ["INTERRUPTED", "Backend", "Record"]

INTERRUPTED = "the server ended while it generated this response; it does not begin again by itself"
"""The error message of such a response."""


@dataclass(frozen=True)
class Record:
    """A response that is kept.

    Attributes:
        id: of the response.
        key: of the client that it belongs to.
        previous: the id of the response that it goes on from, or None.
        running: whether it is not done yet.
        response: its JSON.
        input: the JSON of its own input items.
        events: the events of its stream, compressed; b"" if it was not streamed.
    """

    id: str
    key: str
    previous: str | None
    running: bool
    response: bytes
    input: bytes
    events: bytes = b""

    @classmethod
    def of(
        cls, key: str, response: Mapping[str, Any], items: bytes, events: Sequence[bytes] = (), *, running: bool = False
    ) -> Record:
        """Return the record of a response.

        Args:
            key: of the client that it belongs to.
            response: of OpenAI's shape.
            items: the JSON of its own input items.
            events: of its stream.
            running: whether it is not done yet.
        """
        return cls(
            response["id"], key, response["previous_response_id"], running, msgspec.json.encode(response), items,
            zlib.compress(b"".join(events)) if events else b"",
        )  # fmt: skip

    @property
    def n_bytes(self) -> int:
        """How many bytes it takes."""
        return len(self.response) + len(self.input) + len(self.events)

    def items(self) -> list[dict[str, Any]]:
        """Return the items that it adds to its conversation: its input and then its output."""
        output: list[dict[str, Any]] = msgspec.json.decode(self.response)["output"]
        return [*self.input_items(), *output]

    def input_items(self) -> list[dict[str, Any]]:
        """Return its own input items."""
        found: list[dict[str, Any]] = msgspec.json.decode(self.input)
        return found

    def streamed(self) -> list[bytes]:
        """Return the events of its stream."""
        return [event + b"\n\n" for event in zlib.decompress(self.events).split(b"\n\n")[:-1]] if self.events else []


class Backend(Protocol):
    """Where records are kept.

    Attributes:
        on_disk: whether its methods may wait for the disk, and raise OSError.
    """

    on_disk: bool

    def put(self, record: Record) -> None:
        """Keep a record, in place of one with its id."""

    def get(self, key: str, id_: str) -> Record | None:
        """Return the record with an id, if it belongs to this key."""

    def records(self, key: str, prefix: str, *, newest_first: bool) -> Iterator[Record]:
        """Yield the records of a key whose ids begin with a prefix, in the order in which they were kept."""

    def delete(self, key: str, id_: str) -> bool:
        """Forget the record with an id, if it belongs to this key; return whether it did."""

    def close(self) -> None:
        """Let go of what it holds."""
