"""Frames: what the server and a worker say to each other, and the channel that carries it (msgpack, by length).

Whatever comes is decoded into these types and nothing else; there is no pickle. The end of the file means that the other
process is gone.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Any

import msgspec

__all__ = [
    "Answered",
    "Call",
    "CallPart",
    "Cancel",
    "Channel",
    "Failed",
    "Generate",
    "Heartbeat",
    "Load",
    "Loaded",
    "Loading",
    "Message",
    "Part",
    "Result",
    "Stop",
    "Threads",
    "TokenLogprob",
    "Usage",
    "packed",
]  # fmt: skip

MOST_BYTES = 256 * 2**20
"""Of what is sent at once: vectors of many texts are the largest."""

_LENGTH = struct.Struct("!I")


# From the server --------------------------------------------------------------------------------------------------------


class Load(msgspec.Struct, tag="load", array_like=True):
    """Load a model. It comes first, and once. ``spec`` is the arguments of Service."""

    spec: dict[str, Any]


class Generate(msgspec.Struct, tag="generate", array_like=True):
    """Answer a request of OpenAI's chat ("chat") or text completions ("text").

    Attributes:
        id: of the request, chosen by the server.
        kind: "chat" or "text".
        stream: whether to send Parts as they come, instead of one Answered.
        request: its checked parameters.
        partition: requests of others find nothing of what this one has computed.
    """

    id: int
    kind: str
    stream: bool
    request: dict[str, Any]
    partition: str


class Call(msgspec.Struct, tag="call", array_like=True):
    """Do something that takes one step: "embed", "rerank", "tokenize", "detokenize", "template", "stats"."""

    id: int
    what: str
    arguments: dict[str, Any]


class Cancel(msgspec.Struct, tag="cancel", array_like=True):
    """Nobody waits for a request any more."""

    id: int


class Threads(msgspec.Struct, tag="threads", array_like=True):
    """Compute with so many threads from now on."""

    n: int


class Stop(msgspec.Struct, tag="stop", array_like=True):
    """End the process."""


# From the worker --------------------------------------------------------------------------------------------------------


class TokenLogprob(msgspec.Struct, array_like=True):
    """The logprob of a token, and those of the most probable ones, each with its bytes."""

    piece: bytes
    logprob: float
    top: list[tuple[bytes, float]] = []


class CallPart(msgspec.Struct, array_like=True):
    """Some of a call of a tool; the first of a call has its id and name."""

    index: int
    id: str
    name: str
    arguments: str


class Part(msgspec.Struct, tag="part", array_like=True):
    """Some of an answer, as it comes.

    Attributes:
        id: of the request. index: of the answer.
        n_tokens: how many tokens it has.
        finish_reason: with the last part of an answer.
    """

    id: int
    index: int
    content: str
    reasoning: str = ""
    calls: list[CallPart] = []
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    n_tokens: int = 0


class Usage(msgspec.Struct, array_like=True):
    """Tokens of a request."""

    prompt: int
    cached: int
    completion: int


class Message(msgspec.Struct, array_like=True):
    """A whole answer."""

    content: str
    reasoning: str
    calls: list[CallPart]
    finish_reason: str
    logprobs: list[TokenLogprob] | None = None


class Answered(msgspec.Struct, tag="answered", array_like=True):
    """A request has ended. ``messages`` are those of one that was not streamed; ``seconds`` to the first token."""

    id: int
    usage: Usage
    messages: list[Message] = []
    seconds: float | None = None


class Result(msgspec.Struct, tag="result", array_like=True):
    """What a Call has given."""

    id: int
    value: Any


class Failed(msgspec.Struct, tag="failed", array_like=True):
    """A request has failed, or with ``id`` 0 the model could not be loaded. ``status`` is the one of HTTP."""

    id: int
    status: int
    message: str
    code: str | None = None
    param: str | None = None


class Loading(msgspec.Struct, tag="loading", array_like=True):
    """How much of the model is loaded, from 0 to 1."""

    fraction: float


class Loaded(msgspec.Struct, tag="loaded", array_like=True):
    """The model is ready. ``info`` is what there is to tell of it."""

    info: dict[str, Any]


class Heartbeat(msgspec.Struct, tag="heartbeat", array_like=True):
    """Once a second: memory in bytes, and the numbers of EngineStats."""

    rss_bytes: int
    stats: dict[str, float]


ToWorker = Load | Generate | Call | Cancel | Threads | Stop
FromWorker = Part | Answered | Result | Failed | Loading | Loaded | Heartbeat


_encoder = msgspec.msgpack.Encoder()


def packed(frames: list[Any]) -> bytes:
    """Return the bytes that carry frames. Raises ValueError where they are too many."""
    data = _encoder.encode(frames)
    if len(data) > MOST_BYTES:
        raise ValueError(f"a frame of {len(data):,} bytes is larger than {MOST_BYTES:,}")
    return _LENGTH.pack(len(data)) + data


class Channel:
    """Frames over a stream socket, on an event loop. What is sent within one turn of the loop goes out at once.

    Args:
        reader, writer: of ``asyncio.open_connection``.
        receives: the union of what may come.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, receives: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = msgspec.msgpack.Decoder(list[receives])
        self._waiting: list[Any] = []
        self._loop = asyncio.get_running_loop()

    def send(self, frame: Any) -> None:
        """Send a frame soon; do nothing where the other side is gone."""
        if not self._waiting:
            self._loop.call_soon(self.flush)
        self._waiting.append(frame)

    def flush(self) -> None:
        """Send now what was to be sent soon."""
        frames, self._waiting = self._waiting, []
        if frames and not self._writer.is_closing():
            self._writer.write(packed(frames))

    async def receive(self) -> list[Any] | None:
        """Return the next frames, or None where the other side is gone or says what is no frame."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MOST_BYTES:
                return None
            return self._decoder.decode(await self._reader.readexactly(length))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            return None

    def close(self) -> None:
        """Send what waits, and close the socket."""
        self.flush()
        self._writer.close()
