"""Uploads: forms with a file, received within their limits."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from time import monotonic
from typing import Any

from fastapi import Request
from starlette.datastructures import FormData, UploadFile

from .api_error import ApiError

__all__ = ["receive_form", "the_file"]

MAX_FIELDS = 16
FORM_BYTES = 64 * 2**10
"""The fields and bytes that a form may have besides its file."""
MEBIBYTE = 2**20


async def receive_form(request: Request, max_bytes: int, seconds: float) -> FormData:
    """Return the fields of a form, of which one is a file. Close it after use.

    Args:
        request: with a body of the type multipart/form-data.
        max_bytes: of the file.
        seconds: time for the body, and as long again for each MiB that has come.

    Raises ApiError.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError(415, "the Content-Type must be multipart/form-data", code="unsupported_media_type")
    begin, n_bytes, limit = monotonic(), 0, max_bytes + FORM_BYTES

    async def receive() -> MutableMapping[str, Any]:
        nonlocal n_bytes
        left = begin + seconds * (1 + n_bytes / MEBIBYTE) - monotonic()
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, left))
        except asyncio.TimeoutError:
            raise _ended(ApiError(408, "the body arrives too slowly", code="request_timeout")) from None
        n_bytes += len(message.get("body", b""))
        if n_bytes > limit:
            raise _ended(ApiError(413, f"files may have {max_bytes:,} bytes", code="body_too_large"))
        return message

    return await Request(request.scope, receive).form(max_files=1, max_fields=MAX_FIELDS, max_part_size=FORM_BYTES)


def the_file(form: FormData) -> UploadFile:
    """Return the file of a form, its field "file". Raises ApiError."""
    found = form.get("file")
    if not isinstance(found, UploadFile):
        raise ApiError(400, "file: a file is required", code="invalid_value", param="file")
    return found


def _ended(error: ApiError) -> ApiError:
    """Return an error that closes the connection, as the rest of the body is not read."""
    error.headers["Connection"] = "close"
    return error
