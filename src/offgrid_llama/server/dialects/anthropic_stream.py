"""Events of Anthropic's streams: those of content blocks, each begun and ended, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from offgrid_llama.worker.frames import CallChunk, Chunk

from .anthropic_signature import SHOWN, signature

__all__ = ["BlockEvents", "event"]


def event(kind: str, **fields: Any) -> bytes:
    """Return an event of a kind, whose data are its kind and these fields."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), msgspec.json.encode({"type": kind, **fields}))


class BlockEvents:
    """Makes the events of the blocks of one message.

    Args:
        hides_thinking: whether the text of thinking is left out, and in the signature only.
    """

    def __init__(self, *, hides_thinking: bool) -> None:
        self._hides_thinking = hides_thinking
        self._hidden = ""
        self._index = -1  # of the last block
        self._open = ""  # the type of the block that has not ended

    def of(self, chunk: Chunk) -> Iterator[bytes]:
        """Yield the events of a chunk."""
        calls = list(chunk.calls)
        while calls and not calls[0].name:  # of the call that is under way
            yield from self._call(calls.pop(0))
        if chunk.reasoning:
            yield from self._thinking(chunk.reasoning)
        if chunk.content:
            yield from self._begin("text", {"text": ""})
            yield self._delta("text_delta", text=chunk.content)
        for call in calls:
            yield from self._call(call)

    def end(self) -> Iterator[bytes]:
        """Yield the events that end the block that has not ended, if there is one."""
        if self._open == "thinking":
            given = signature(self._hidden) if self._hides_thinking else SHOWN
            yield self._delta("signature_delta", signature=given)
            self._hidden = ""
        if self._open:
            yield event("content_block_stop", index=self._index)
            self._open = ""

    def _thinking(self, text: str) -> Iterator[bytes]:
        yield from self._begin("thinking", {"thinking": "", "signature": ""})
        if self._hides_thinking:
            self._hidden += text
            yield event("ping")  # a connection on which nothing comes for long may be closed on its way
        else:
            yield self._delta("thinking_delta", thinking=text)

    def _call(self, call: CallChunk) -> Iterator[bytes]:
        if call.name:
            yield from self.end()
            yield from self._begin("tool_use", {"id": call.id, "name": call.name, "input": {}})
        if call.arguments:
            yield self._delta("input_json_delta", partial_json=call.arguments)

    def _begin(self, kind: str, fields: dict[str, Any]) -> Iterator[bytes]:
        """Begin a block, unless one of this kind is under way."""
        if self._open == kind:
            return
        yield from self.end()
        self._index += 1
        self._open = kind
        yield event("content_block_start", index=self._index, content_block={"type": kind, **fields})
        if self._index == 0:
            yield event("ping")

    def _delta(self, kind: str, **fields: str) -> bytes:
        return event("content_block_delta", index=self._index, delta={"type": kind, **fields})
