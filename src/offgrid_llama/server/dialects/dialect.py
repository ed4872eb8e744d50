"""The parts that every dialect has: how it reads a request, and how it writes answers and errors.

A dialect is one API that clients speak. Its file is pure: it turns bodies into what a worker is asked for, and the worker's
frames into bytes; routes connect the two.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from offgrid_llama.server.api_error import ApiError
from offgrid_llama.text.json_text import read_json_text
from offgrid_llama.worker.frames import Answered, CallChunk, Chunk
from offgrid_llama.worker.generation import Task, Texts

__all__ = ["Asked", "Dialect", "Writer", "arguments_of_call"]

MAX_CALL_DEPTH = 400
"""Levels of lists and objects in arguments that are sent as an object; JSON is written by recursion."""


class Writer(ABC):
    """Writes the response to one request: at once, or as the events of a stream.

    Attributes:
        media_type: of a stream.
        sign_of_life: what a stream has while its first event does not come; empty where its clients would not ignore it.
        load_seconds: how long the request has waited for its model to be loaded, once it is.
    """

    media_type = "text/event-stream"
    sign_of_life = b": the answer has not begun\n\n"
    load_seconds = 0.0

    def begin(self) -> bytes:
        """Return what comes before the first token of a stream."""
        return b""

    @abstractmethod
    def event(self, chunk: Chunk) -> bytes:
        """Return what a stream has for a chunk; it may be nothing."""

    @abstractmethod
    def end(self, answered: Answered) -> bytes:
        """Return what ends a stream, after all chunks."""

    @abstractmethod
    def failed(self, error: ApiError) -> bytes:
        """Return what ends a stream that has begun, and fails."""

    @abstractmethod
    def whole(self, answered: Answered) -> Any:
        """Return the body of a response that is not streamed, to be written as JSON. A str or bytes are sent as they are."""


@dataclass(frozen=True)
class Asked:
    """A request, as a dialect has read it.

    Attributes:
        model: that the client named, or None.
        what: the worker is asked for.
        stream: whether the response is a stream.
        writer: returns the writer of the response, for the name of the model that answers.
        in_chunks: whether the writer gets chunks even where the response is not a stream.
        keep_alive: seconds for which the model stays loaded while nothing uses it, from this request on; None leaves that.
    """

    model: str | None
    what: Task
    stream: bool
    writer: Callable[[str], Writer]
    in_chunks: bool = False
    keep_alive: float | None = None

    @property
    def n_completions(self) -> int:
        """How many completions are generated for the request."""
        return (self.what.options.best_of or self.what.options.n) * (
            len(self.what.prompts) if isinstance(self.what, Texts) else 1
        )


@dataclass(frozen=True)
class Dialect:
    """An API that clients speak.

    Attributes:
        name: of it.
        error: returns the body of a response that is an error, to be written as JSON.
        request_id_header: where a response has the id of its request.
    """

    name: str
    error: Callable[[ApiError], Any]
    request_id_header: str = "x-request-id"


def arguments_of_call(call: CallChunk) -> dict[str, Any] | None:
    """Return the arguments of a whole call; None where they are cut off: such a call must not be carried out."""
    try:
        found = read_json_text(call.arguments or "{}", MAX_CALL_DEPTH)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
