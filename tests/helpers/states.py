"""States for caches of the drop-in, and what writes many of them; a process that is spawned imports it from here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from offgrid_llama.compat.llama_cpp.llama_cache import LlamaDiskCache
from offgrid_llama.compat.llama_cpp.llama_state import LlamaState


def state(tokens: Sequence[int], size: int = 100) -> LlamaState:
    """Return a state whose every part says which one it is."""
    data = bytes([len(tokens)]) * size
    scores = np.arange(6, dtype=np.single).reshape(2, 3)
    return LlamaState(np.array(tokens, np.intc), scores, len(tokens), data, size, 7)


def write_many(folder: str, first: int) -> None:
    """Write and read states, as one of several processes."""
    cache = LlamaDiskCache(folder, capacity_bytes=20_000)
    for at in range(40):
        key = [first + at % 5, at]
        cache[key] = state(key, 1000)
        if key in cache:
            cache.cache_size  # noqa: B018 - files may go meanwhile
