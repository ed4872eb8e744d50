"""The objects that hang on one of the library, for tests that nothing is left open."""

from __future__ import annotations

from offgrid_llama.native.handle import Owner


def n_children(owner: Owner) -> int:
    """Return how many open objects hang on this one."""
    return len(owner.handle.children)
