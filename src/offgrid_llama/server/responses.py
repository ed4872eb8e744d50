"""JSON answers."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import Response

__all__ = ["json_response"]


def json_response(value: Any, status: int = 200) -> Response:
    """Return a value as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
