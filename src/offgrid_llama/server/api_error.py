"""ApiError: an error as clients get it, in OpenAI's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from offgrid_llama.errors import restored

__all__ = ["ApiError", "busy", "stopping", "without_folders"]

_FOLDERS = re.compile(r"(?<![\w.~:/\\])(?:[A-Za-z]:\\|/)(?:[^\s/\\'\"]+[/\\])+")

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A response that is an error.

    Args:
        status: the HTTP status.
        message: what is wrong and what to do, for people.
        code: the same for programs.
        param: the parameter at fault.
        headers: further headers of the response.
        details: numbers in the message, by their names; with the code "context_length_exceeded" these are "n_tokens", those
            of the prompt, and "n_ctx", the limit of a sequence.

    Attributes:
        request_id: of the request that it answers; None until it is known.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.details = dict(details or {})
        self.request_id: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return restored, (type(self), self.args, self.__dict__)

    @property
    def type(self) -> str:
        """OpenAI's kind of error for the status."""
        return _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def as_dict(self) -> dict[str, Any]:
        """Return the body of the response."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def body(self) -> bytes:
        """Return the body of the response as JSON."""
        return msgspec.json.encode(self.as_dict())


def without_folders(error: ApiError) -> ApiError:
    """Return an error whose message names files of this machine without their folders, which are not for its clients."""
    return ApiError(
        error.status, _FOLDERS.sub("", error.message), code=error.code, param=error.param, headers=error.headers
    )


def busy(status: int, message: str, code: str, retry_seconds: float) -> ApiError:
    """Return an error that tells the client in how many seconds to retry (at least 1)."""
    return ApiError(status, message, code=code, headers={"Retry-After": str(max(1, round(retry_seconds)))})


def stopping() -> ApiError:
    """Return the error of a request that a stop of the server refuses or cuts off."""
    return busy(503, "the server is stopping", "stopping", 5)
