"""Frames: the messages between the server and its workers."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from offgrid_llama.worker import frames
from offgrid_llama.worker.channel import Channel


def test_frames_over_a_socket() -> None:
    """Frames arrive unchanged and in order; bytes that are no frame end the channel."""
    sent = [
        frames.Chunk(1, 0, "héllo", "thought", [frames.CallChunk(0, "id", "f", "{}")],
                    [frames.TokenLogprob(b"\xff", -1.0, [(b"a", -2.0)])], "stop", 3),
        frames.Answered(1, frames.TokenCounts(1, 2, 3), [frames.Message("a", "b", [], "length")], frames.Timings(0.5)),
        frames.Failed(2, 400, "no", "code", "param"), frames.Loaded({"a": [1, None]}), frames.Heartbeat(7, {"n": 1.5}),
        frames.Result(3, {"data": b"\0\1"}), frames.Loading(0.25),
    ]  # fmt: skip

    async def main() -> tuple[list[Any], Any, Any]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        one = Channel(reader, writer, frames.FromWorker)
        other = Channel(*await asyncio.open_connection(sock=theirs), frames.FromWorker)
        for frame in sent:
            one.send(frame)
        found = await other.receive()
        writer.write(b"\0\0\0\1\xc1")
        nonsense = await other.receive()
        one.close()
        gone = await other.receive()
        other.close()
        return found or [], nonsense, gone

    assert asyncio.run(main()) == (sent, None, None)
