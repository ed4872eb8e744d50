"""Grammars that take much memory."""

from __future__ import annotations

import random

import offgrid_llama as og


def dense(i: int) -> og.Grammar:
    """Return a grammar that takes more memory for its length than most: optional numbers with ranges, all different."""
    rng = random.Random(i)
    ranges = {
        f"p{k}": {
            "type": "number", "minimum": rng.random() * 10 ** rng.randint(-9, 9), "maximum": 10**10 + rng.random() * 10**12,
        }
        for k in range(390)
    }  # fmt: skip
    return og.Grammar.json_schema({"type": "object", "properties": ranges})
