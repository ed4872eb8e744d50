"""Channel: carries frames between the server and a worker.

It carries MessagePack behind its length. It decodes into the frames that may come and no other types; there is no pickle.
The end of the stream means that the other process has ended.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec

__all__ = ["Channel", "packed"]

MAX_FRAME_BYTES = 256 * 2**20
"""Bytes that are sent at once, at most. The embeddings of many texts are the largest."""

_LENGTH = struct.Struct("!I")

_encoder = msgspec.msgpack.Encoder()


def packed(frames: list[Any]) -> bytes:
    """Return the bytes that carry frames. Raises ValueError for more than MAX_FRAME_BYTES."""
    data = _encoder.encode(frames)
    if len(data) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame has {len(data):,} bytes; at most {MAX_FRAME_BYTES:,} are allowed")
    return _LENGTH.pack(len(data)) + data


class Channel:
    """Sends and receives frames over a stream socket. Frames of one turn of the event loop are sent together.

    Args:
        reader, writer: of ``asyncio.open_connection``.
        receives: the union of frames that may come.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, receives: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.msgpack.Decoder(list[receives])
        self._unsent: list[Any] = []
        self._loop = asyncio.get_running_loop()

    def send(self, frame: Any) -> None:
        """Send a frame at the end of this turn of the event loop, unless the other process has ended."""
        if not self._unsent:
            self._loop.call_soon(self.flush)
        self._unsent.append(frame)

    def flush(self) -> None:
        """Send the frames of this turn now."""
        frames, self._unsent = self._unsent, []
        if frames and not self._writer.is_closing():
            self._writer.write(packed(frames))

    async def receive(self) -> list[Any] | None:
        """Return the next frames, or None when the other process has ended or sends something that is no frame."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME_BYTES:
                return None
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            return None

    def close(self) -> None:
        """Send the frames of this turn, and close the socket."""
        self.flush()
        self._writer.close()
