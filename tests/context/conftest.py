"""A text that fills a context."""

from __future__ import annotations

import pytest

from helpers.twin import TOKENS, Array, Twin, Weights


@pytest.fixture(scope="module")
def long_text(weights: Weights) -> tuple[list[int], Array]:
    """A text that fills a context of 256 but for 4 positions, and the twin's logits of its last 16 tokens."""
    tokens = TOKENS[::-1] * 14 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12] + TOKENS
    return tokens, Twin(weights).sequence(tokens)[-16:]
