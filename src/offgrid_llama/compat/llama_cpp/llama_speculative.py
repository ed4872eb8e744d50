"""Draft models: what guesses the next tokens, for a model that verifies the guesses in one step."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["LlamaDraftModel", "LlamaPromptLookupDecoding"]


class LlamaDraftModel(abc.ABC):
    """A callable that guesses tokens."""

    @abc.abstractmethod
    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """Return the guesses after ``input_ids``, the tokens so far; none is an empty array."""


class LlamaPromptLookupDecoding(LlamaDraftModel):
    """Prompt lookup: the tokens that followed the first earlier occurrence of the last tokens.

    Args:
        max_ngram_size: how many of the last tokens are looked for first. Where they do not occur, one fewer are looked for.
        num_pred_tokens: the number of guesses, at most.
    """

    def __init__(self, max_ngram_size: int = 2, num_pred_tokens: int = 10) -> None:
        self.max_ngram_size = max_ngram_size
        self.num_pred_tokens = num_pred_tokens

    @staticmethod
    def find_candidate_pred_tokens(
        input_ids: npt.NDArray[np.intc], max_ngram_size: int, num_pred_tokens: int
    ) -> npt.NDArray[np.intc]:
        """Return what followed the first occurrence, as a view of ``input_ids``, or an empty array."""
        import numpy as np

        length = len(input_ids)
        for size in range(min(max_ngram_size, length - 1), 0, -1):
            # An occurrence begins before the last `size` tokens do, so at least one token follows it.
            found = np.ones(length - size, bool)
            for at in range(size):
                found &= input_ids[at : at + length - size] == input_ids[length - size + at]
            if num_pred_tokens > 0 and found.any():
                start = int(found.argmax()) + size
                return input_ids[start : start + num_pred_tokens]
        return np.array([], np.intc)

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """Return the guesses after ``input_ids``."""
        return self.find_candidate_pred_tokens(input_ids, self.max_ngram_size, self.num_pred_tokens)
