"""LoRA adapters with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.twin import (
    Array,
    Weights,
    write_gguf,
)

RANK, ALPHA = 4, 8.0
KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.type": "adapter",
    "adapter.type": "lora",
    "adapter.lora.alpha": ALPHA,
}


def pair(weights: Weights, name: str, seed: int) -> tuple[Array, Array]:
    """Return A and B for a weight, strong enough to change every result."""
    rng = np.random.default_rng(seed)
    rows, columns = weights[name].shape
    a = (rng.standard_normal((RANK, columns)) / np.sqrt(columns)).astype(np.float32)
    return a, rng.standard_normal((rows, RANK)).astype(np.float32)


def write_lora(path: Path, weights: Weights, seed: int) -> Weights:
    """Write an adapter for two of the matrices; return what it adds to them at scale 1."""
    tensors, added = {}, {}
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        a, b = pair(weights, name, seed)
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = a, b
        added[name] = ALPHA / RANK * b @ a
    write_gguf(path, KEYS, tensors)
    return added
