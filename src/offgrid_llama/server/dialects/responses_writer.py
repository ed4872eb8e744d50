"""Writing responses of the Responses API: the object, and the events of a stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import time
from typing import Any

import msgspec

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.worker.frames import Answered, Chunk, TokenCounts

from .dialect import Writer
from .llama_server_options import progress, timings
from .responses_items import item_id
from .responses_output import Output
from .responses_tools import CalledTool

__all__ = ["Form", "ResponsesWriter", "replayed"]


@dataclass(frozen=True)
class Form:
    """The parts of a request that decide how its response is written.

    Attributes:
        response_id: of the response.
        settings: fields of the response that come from the request.
        n_input: items of the request.
        tools: that the model may call, by the names with which it does.
        with_encrypted: whether reasoning has ``encrypted_content``.
        with_events: whether there are events; a response that is not streamed needs none.
        keep_events: keep all events, for clients that come back for them.
        queued: whether the response waits in the background before it begins.
        n_sent: events that were sent before.
    """

    response_id: str
    settings: Mapping[str, Any]
    n_input: int
    tools: Mapping[str, CalledTool] = field(default_factory=dict)
    with_encrypted: bool = False
    with_events: bool = True
    keep_events: bool = True
    queued: bool = False
    n_sent: int = 0


class ResponsesWriter(Writer):
    """Writes a response.

    Args:
        form: see Form.
        model: the name that the client used for the model.
        created_at: when the response was created, in seconds since 1970; None is now.

    Attributes:
        events: all events so far, if they are kept: at an event's index is the event with that ``sequence_number``.
        status: of the response.
    """

    def __init__(self, form: Form, model: str, created_at: int | None = None) -> None:
        self.id = form.response_id
        self.events: list[bytes] = []
        self.status = "queued" if form.queued else "in_progress"
        self._form = form
        self._head = {
            "id": self.id, "object": "response", "created_at": int(time()) if created_at is None else created_at,
            "model": model,
        }  # fmt: skip
        self._output = Output(self._emit, self._new_item_id, form.tools, form.with_encrypted)
        self._new: list[bytes] = []  # events that have not been sent
        self._n_events = form.n_sent
        self._is_cut = False
        self._more: dict[str, Any] = {}  # fields of all events from now on
        self._ended: dict[str, Any] = {"completed_at": None, "error": None, "incomplete_details": None, "usage": None}

    def _new_item_id(self, kind: str, index: int) -> str:
        return item_id(kind, self.id, self._form.n_input + index)

    def response(self) -> dict[str, Any]:
        """Return the response as it is now."""
        return {
            **self._head, "status": self.status, "output": self._output.items(), **self._form.settings, **self._ended,
        }  # fmt: skip

    # A stream -----------------------------------------------------------------------------------------------------------

    def queue(self) -> bytes:
        """Return the events of a response that waits."""
        self._tell("created")
        self._tell("queued")
        return self._sent()

    def begin(self) -> bytes:
        """Return the events before the first item."""
        if self.status == "queued":
            self.status = "in_progress"
        else:
            self._tell("created")
        self._tell("in_progress")
        return self._sent()

    def event(self, chunk: Chunk) -> bytes:
        """Return the events of a chunk; some chunks have none. Those of a request with timings have those so far."""
        if chunk.measures is not None:
            if chunk.n_computed is not None:
                self._tell("in_progress", prompt_progress=progress(chunk.n_computed, chunk.measures))
                return self._sent()
            self._more = {"timings": timings(chunk.measures)}
        self._output.add(chunk)
        if chunk.finish_reason is not None:
            self._is_cut = chunk.finish_reason == "length"
            self._output.end(is_cut=self._is_cut)
        if chunk.warnings:
            self._ended["warnings"] = chunk.warnings
        return self._sent()

    def end(self, answered: Answered) -> bytes:
        """Return the last event."""
        self._ended["usage"] = _usage(answered.tokens)
        self._ended |= self._more
        if answered.warnings:
            self._ended["warnings"] = answered.warnings
        if self._is_cut:
            self._ended["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self._ended["completed_at"] = int(time())
        return self._end("incomplete" if self._is_cut else "completed")

    def failed(self, error: ApiError) -> bytes:
        """Return the events of an error, which are the last ones."""
        self._output.close("incomplete")
        self._ended["error"] = _error(error)
        self._emit_named("error", code=error.code, message=error.message, param=error.param)
        return self._end("failed")

    def cancelled(self) -> bytes:
        """Return the last event of a response that was cancelled. OpenAI has none with this name."""
        self._output.close("incomplete")
        return self._end("cancelled", "incomplete")

    def whole(self, answered: Answered) -> dict[str, Any]:
        """Return the response, after all chunks."""
        self.end(answered)
        return self.response()

    def replay(self, response: Mapping[str, Any], *, whole: bool) -> None:
        """Write the events of a response that is done, or with ``whole`` False the last ones of one that has failed."""
        self._ended = {name: response.get(name) for name in self._ended}
        if whole:
            self.begin()
        for item in response["output"] if whole else ():
            self._output.replay(item)
        if response["status"] == "failed":
            self._emit_named("error", code=response["error"]["code"], message=response["error"]["message"], param=None)
        self._end(response["status"], _EVENT_OF.get(response["status"]))

    # Events -------------------------------------------------------------------------------------------------------------

    def _end(self, status: str, kind: str | None = None) -> bytes:
        self.status = status
        self._tell(kind or status)
        return self._sent()

    def _tell(self, kind: str, **more: Any) -> None:
        if self._form.with_events:
            self._emit(kind, response=self.response(), **more)

    def _emit(self, kind: str, **fields: Any) -> None:
        self._emit_named(f"response.{kind}", **fields)

    def _emit_named(self, kind: str, **fields: Any) -> None:
        if not self._form.with_events:
            return
        data = msgspec.json.encode({"type": kind, "sequence_number": self._n_events, **fields, **self._more})
        self._n_events += 1
        self._new.append(b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n")

    def _sent(self) -> bytes:
        new, self._new = self._new, []
        if self._form.keep_events:
            self.events += new
        return b"".join(new)


_EVENT_OF = {"cancelled": "incomplete"}
_HEAD = (
    "id",
    "object",
    "created_at",
    "model",
    "status",
    "output",
    "completed_at",
    "error",
    "incomplete_details",
    "usage",
)


def replayed(response: Mapping[str, Any], after: int = -1) -> list[bytes]:
    """Return the events behind one, by its number, of a response that is done and whose events are not kept.

    They are those of a stream with one delta for each item. Of a response that has failed, a client may have seen others;
    it then gets the failure.
    """
    output, is_lost = response["output"], response["status"] == "failed" and after >= 0
    form = Form(
        response["id"], {name: value for name, value in response.items() if name not in _HEAD},
        n_input=min((int(item["id"][-4:], 16) for item in output), default=0),
        with_encrypted=any("encrypted_content" in item for item in output), n_sent=after + 1 if is_lost else 0,
    )  # fmt: skip
    writer = ResponsesWriter(form, response["model"], response["created_at"])
    writer.replay(response, whole=not is_lost)
    return writer.events if is_lost else writer.events[after + 1 :]


def _usage(tokens: TokenCounts) -> dict[str, Any]:
    return {
        "input_tokens": tokens.prompt,
        "input_tokens_details": {"cached_tokens": tokens.cached, "cache_write_tokens": tokens.prompt - tokens.cached},
        "output_tokens": tokens.completion,
        "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
        "total_tokens": tokens.prompt + tokens.completion,
    }  # fmt: skip


def _error(error: ApiError) -> dict[str, str]:
    """Return an error as a response has it, whose codes are OpenAI's."""
    code = "rate_limit_exceeded" if error.status == 429 else "invalid_prompt" if error.status < 500 else "server_error"
    return {"code": code, "message": error.message}
