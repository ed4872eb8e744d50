"""LoRA adapters with random weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from helpers.twin import (
    Array,
    Weights,
    write_gguf,
)

RANK, ALPHA = 4, 8.0
INVOCATION = "adapter.alora.invocation_tokens"
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


def write_lora(path: Path, weights: Weights, seed: int, invocation_tokens: Sequence[int] = ()) -> Weights:
    """Write an adapter for two of the matrices, or one that these tokens switch on; return what it adds at scale 1."""
    tensors, added = {}, {}
    for name in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        a, b = pair(weights, name, seed)
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = a, b
        added[name] = ALPHA / RANK * b @ a
    late = {INVOCATION: [*invocation_tokens]} if invocation_tokens else {}
    write_gguf(path, {**KEYS, **late}, tensors)
    if invocation_tokens:  # they are unsigned
        data = path.read_bytes()
        at = data.index(INVOCATION.encode()) + len(INVOCATION) + 4
        path.write_bytes(data[:at] + (4).to_bytes(4, "little") + data[at + 4 :])
    return added
