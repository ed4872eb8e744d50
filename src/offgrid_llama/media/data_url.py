"""Files that came as text: base64, and ``data:`` URLs with it."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import unquote_to_bytes

from offgrid_llama.errors import MediaError

__all__ = ["from_base64", "from_data_url"]

_URLSAFE = str.maketrans("-_", "+/")
_SPACES = str.maketrans("", "", " \t\r\n")


def from_base64(text: str) -> bytes:
    """Return the bytes of base64 in any of its forms: without padding, with line breaks, in the alphabet for URLs.

    Raises MediaError where it is none.
    """
    plain = text.translate(_SPACES).translate(_URLSAFE).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"not base64: {error}") from None


def from_data_url(url: str) -> bytes:
    """Return the bytes of a ``data:`` URL (RFC 2397). Raises MediaError for another URL, and for broken base64."""
    head, comma, data = url.partition(",")
    if not head.lower().startswith("data:") or not comma:
        raise MediaError(f"not a data: URL: {url[:40]!r}")
    if head.lower().rstrip().endswith(";base64"):
        return from_base64(unquote_to_bytes(data).decode("latin-1") if "%" in data else data)
    return unquote_to_bytes(data)
