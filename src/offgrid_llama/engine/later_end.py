"""LaterEnd: a logits processor that forbids the tokens that end a text until it has a number of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["LaterEnd"]


class LaterEnd:
    """Forbids the tokens that end a text.

    Args:
        n_tokens: of the prompt and the answer together, before which it does.
        ends: the tokens.
    """

    def __init__(self, n_tokens: int, ends: Iterable[int]) -> None:
        self._n_tokens = n_tokens
        self._ends = list(ends)

    def __call__(self, tokens: Sequence[int], logits: npt.NDArray[np.float32]) -> None:
        """Change the logits of the next token."""
        if len(tokens) < self._n_tokens:
            logits[self._ends] = float("-inf")
