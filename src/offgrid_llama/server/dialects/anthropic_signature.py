"""Signatures: what a client sends back with a block of thinking, unseen.

Anthropic's API can leave out the text of thinking, while the next request still has it: in the block's signature. Here the
signature of such a block has the text itself. Other blocks have a signature, too, because clients drop those without one.
"""

from __future__ import annotations

import base64
from contextlib import suppress

__all__ = ["SHOWN", "hidden", "signature"]

SHOWN = "offgrid-llama"
"""The signature of a block whose text is there."""


def signature(thinking: str) -> str:
    """Return the signature of a block whose text is left out."""
    return f"{SHOWN}:{base64.b64encode(thinking.encode()).decode()}"


def hidden(text: str | None) -> str:
    """Return the text that was left out of a block with this signature; empty for one of another server's."""
    server, _, coded = (text or "").partition(":")
    with suppress(ValueError):
        return base64.b64decode(coded, validate=True).decode() if server == SHOWN else ""
    return ""
