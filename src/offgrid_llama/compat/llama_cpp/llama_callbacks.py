"""Lists of functions that a completion calls before it samples a token: logits processors and stopping criteria."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
import numpy.typing as npt

__all__ = ["LogitsProcessor", "LogitsProcessorList", "StopTokens", "StoppingCriteria", "StoppingCriteriaList"]

LogitsProcessor = Callable[[npt.NDArray[np.intc], npt.NDArray[np.single]], npt.NDArray[np.single]]
"""Takes the tokens so far and the logits; returns the logits."""
StoppingCriteria = Callable[[npt.NDArray[np.intc], npt.NDArray[np.single]], bool]
"""Takes the tokens so far and the logits; returns whether the completion ends."""


class LogitsProcessorList(list[LogitsProcessor]):
    """Logits processors, each of which gets the logits of the one before it."""

    def __call__(self, input_ids: npt.NDArray[np.intc], scores: npt.NDArray[np.single]) -> npt.NDArray[np.single]:
        """Return the logits that the last one has returned."""
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StopTokens:
    """A stopping criterion that ends a completion behind one of these tokens."""

    def __init__(self, stop_token_ids: Collection[int]) -> None:
        self.stop_token_ids = stop_token_ids

    def __call__(self, input_ids: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> bool:
        """Return whether the last token is one of them."""
        return input_ids[-1] in self.stop_token_ids


class StoppingCriteriaList(list[StoppingCriteria]):
    """Stopping criteria, any of which ends the completion."""

    def __call__(self, input_ids: npt.NDArray[np.intc], logits: npt.NDArray[np.single]) -> bool:
        """Return whether the completion ends; each one is called."""
        return any([criterion(input_ids, logits) for criterion in self])  # noqa: C419 - each one, as they may count
