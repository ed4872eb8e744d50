"""Failures: exceptions of a worker as the errors that clients get.

The library's errors name its arguments, and give advice to programs that call it. A client knows neither: its errors name
the fields of its request.
"""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from offgrid_llama.errors import (
    ChatTemplateError,
    ClosedError,
    ContextError,
    ContextLengthError,
    DecodeError,
    GrammarError,
    MediaError,
    NativeError,
    OffgridLlamaError,
    QueueFullError,
    TokenizeError,
    ToolError,
)

from .frames import Failed

__all__ = ["RequestError", "client_data", "failure"]

_logger = logging.getLogger("offgrid_llama.worker")

_NOT_THE_CLIENTS = (
    ClosedError,
    ContextError,
    DecodeError,
    MemoryError,
    NativeError,
    QueueFullError,
)
"""Exceptions that the engine and the machine can raise while they take a request. These have a status of their own."""
_EXPECTED = (OffgridLlamaError, ValueError, TypeError)
"""Exceptions that the library raises about arguments, with a message that says what is wrong."""


_ARGUMENT = re.compile(r"(?:the )?(\w+)")
"""The argument of the library with which a message begins."""


class RequestError(Exception):
    """A request whose data cannot be used. Another request can succeed.

    Attributes:
        param: the field of the request that is wrong, or None.
        code: for programs.
        details: numbers in the message, by their names.
    """

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str = "invalid_value",
        details: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
        self.details = dict(details or {})


_BAD_REQUESTS = (ChatTemplateError, GrammarError, MediaError, TokenizeError, ToolError)
"""Exceptions that are about a request wherever they are raised: a grammar can get over its limits while it is used, and a
picture shows that it is damaged when it is decoded."""


@contextmanager
def client_data(fields: Mapping[str, str] | None = None, n_completion: int | None = None) -> Iterator[None]:
    """Raise RequestError for any failure in the block, which does nothing but use a client's data.

    That makes it the client's fault by where it is raised. An exception that is not expected is logged, without its message,
    in which the client's data may be.

    Args:
        fields: where the client has given each argument of the library, such as ``{"texts": "input"}``.
        n_completion: the tokens of the completion that the client asks for, if it asks for one.
    """
    try:
        yield
    except (RequestError, *_NOT_THE_CLIENTS):
        raise
    except ContextLengthError as error:
        raise _too_long(error, fields or {}, n_completion) from error
    except _EXPECTED as error:
        raise _named(_message(error), fields or {}) from error
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        kind = type(error).__name__
        _logger.warning("a request cannot be used: %s at %s:%s", kind, place.filename, place.lineno)
        raise RequestError(f"this request cannot be used: {kind}: {error}") from error


def _named(message: str, fields: Mapping[str, str]) -> RequestError:
    """Return the error of a client for a message that begins with an argument of the library."""
    found = _ARGUMENT.match(message)
    field = fields.get(found[1]) if found else None
    if found is None or field is None:
        return RequestError(message)
    return RequestError(field + message[found.end() :], param=_param(field))


def _too_long(error: ContextLengthError, fields: Mapping[str, str], n_completion: int | None) -> RequestError:
    """Return the error for a text that does not fit. OpenAI's words are for prompts, by which clients know them."""
    argument, bracket, index = error.argument.partition("[")
    field = fields.get(argument, argument)
    if n_completion is None:
        beside = " with the query" if argument == "documents" else ""
        message = f"{field}{bracket}{index}{beside} has {error.n_tokens} tokens, more than {error.n_ctx}"
    else:
        place = field if "[" in field else f"the {field}"
        message = (
            f"This model's maximum context length is {error.n_ctx} tokens. However, you requested "
            f"{error.n_tokens + n_completion} tokens ({error.n_tokens} in {place}, {n_completion} in the completion). "
            f"Please reduce the length of {place} or completion."
        )
    details = {"n_tokens": error.n_tokens, "n_ctx": error.n_ctx}
    return RequestError(message, param=_param(field), code="context_length_exceeded", details=details)


def _param(field: str) -> str:
    return field.partition("[")[0]


def failure(id_: int, error: BaseException) -> Failed:
    """Return the frame that tells a client of an exception, with its HTTP status and code."""
    if isinstance(error, ContextLengthError):
        error = _too_long(error, {}, None)
    if isinstance(error, RequestError):
        return Failed(id_, 400, str(error), error.code, error.param, error.details)
    message = _message(error)
    if isinstance(error, _BAD_REQUESTS):
        return Failed(id_, 400, message, "invalid_value")
    if isinstance(error, QueueFullError):
        return Failed(id_, 503, f"this model has no room now: {error.n_waiting} requests wait or run", "queue_full")
    if isinstance(error, ClosedError):
        return Failed(id_, 503, "this model is unloaded; the next request loads it again", "model_closed")
    return Failed(id_, 500, f"{type(error).__name__}: {message}", "internal_error")


def _message(error: BaseException) -> str:
    return error.message if isinstance(error, OffgridLlamaError) else str(error)
