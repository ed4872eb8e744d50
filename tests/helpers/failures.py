"""Functions that fail, for the children of tests."""

from __future__ import annotations

from offgrid_llama import errors

__all__ = ["too_long"]


def too_long(n_tokens: int) -> None:
    """Fail as a prompt of this length does."""
    raise errors.ContextLengthError("too long", n_tokens=n_tokens, n_ctx=1)
