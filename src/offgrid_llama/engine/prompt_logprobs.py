"""PromptLogprobs: how probable the tokens of a prompt are, as its rows are computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from offgrid_llama.sampling.scores import Scores

__all__ = ["PromptLogprobs", "TokenLogprobs"]

TokenLogprobs = tuple[float, list[tuple[int, float]]]
"""A token's own logprob, and the most probable tokens, each with its own."""


class PromptLogprobs:
    """The logprobs of a prompt's tokens, from the model's own logits. The first token has none.

    Args:
        tokens: the prompt's, and the one behind them that is scored, too.
        n_top: how many of the most probable tokens are told at each place.

    Attributes:
        tokens, n_top: as given.
    """

    def __init__(self, tokens: Sequence[int], n_top: int) -> None:
        self.tokens = tokens
        self.n_top = n_top
        self._known: dict[int, Scores] = {}  # by the index of the first token

    def put(self, first: int, scores: Scores) -> None:
        """Take those of the tokens from the index ``first`` on."""
        self._known[first] = scores

    def scores(self) -> tuple[int, list[Scores]]:
        """Return the index of the first token that is scored, and the scores as they were computed, in order."""
        return min(self._known), [self._known[first] for first in sorted(self._known)]

    def ranks(self) -> list[int | None]:
        """Return for each token its rank, as far as it is known: 1 is the most probable one; None for the first."""
        return [None, *(rank for first in sorted(self._known) for rank in self._known[first].ranks.tolist())]

    def told(self) -> list[TokenLogprobs | None]:
        """Return for each token its own logprob and the most probable ones, as far as they are known; None for the first."""
        told: list[TokenLogprobs | None] = [None]
        for first in sorted(self._known):
            scores = self._known[first]
            rows = zip(scores.logprobs.tolist(), scores.top.tolist(), scores.top_logprobs.tolist(), strict=True)
            told += [
                (own, [(token, each) for token, each in zip(top, logprobs, strict=True) if token >= 0])
                for own, top, logprobs in rows
            ]
        return told
