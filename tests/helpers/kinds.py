"""Helpers that the tests of every architecture share: a text, contexts, and the rows that one batch gives."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import offgrid_llama as og
from helpers.architectures import ARCHITECTURES, Architecture
from helpers.twin import CLOSE, EXACT, decode

Rows = npt.NDArray[np.float32]

FELT = 0.02
"""How much a row differs, at least, when a token of its past does."""
TEXT = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58, 9, 7, 32, 38, 46, 26, 43, 38, 32, 7, 9, 50, 28, 8]
KEYS_THAT_STAY = {"cohere2", "gpt2", "hunyuan-dense", "llama4", "qwen2vl", "smollm3"}
"""Positions that are learned, layers without RoPE, keys that are scaled after RoPE, and several positions for one token."""
OTHER = [27, 18, 28, 18, 28, 45, 9, 4, 52, 35, 36]
BOTH = pytest.mark.parametrize("unified", [False, True], ids=["separate", "unified"])


def of_kind(*kinds: str) -> list[str]:
    return [name for name, architecture in ARCHITECTURES.items() if architecture.kind in kinds]


WITH_MEMORY = of_kind("attention", "recurrent", "hybrid")


def each(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("model", names, indirect=True, scope="module")


def architecture(model: og.Model) -> Architecture:
    return ARCHITECTURES[model.metadata["general.architecture"]]


def open_context(model: og.Model, *, n_seq_max: int = 4, unified: bool = False, **options: Any) -> og.Context:
    return og.Context(model, n_ctx=128 * n_seq_max, n_seq_max=n_seq_max, kv_unified=unified, **{**EXACT, **options})


@cache
def alone(model: og.Model, tokens: tuple[int, ...]) -> Rows:
    """Return the logits of each row of a text that one batch of a context of its own computes."""
    with open_context(model, n_seq_max=1) as context:
        return decode(context, tokens)


def same(rows: Rows, expected: Rows) -> None:
    np.testing.assert_allclose(rows, expected, rtol=0, atol=CLOSE)
