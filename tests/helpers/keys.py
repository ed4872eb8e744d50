"""Keys of a server."""

from __future__ import annotations

KEYS = ["the-first-key", "the-second-key"]
