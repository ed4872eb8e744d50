"""Predicted: the text that a caller expects as the answer, looked up as the answer comes (pure)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["NGRAM_TOKENS", "Predicted"]

NGRAM_TOKENS = 3
"""Tokens that must match an earlier place of the text before its continuation is guessed."""


class Predicted:
    """The tokens that are expected, and which of them have come.

    Args:
        tokens: the expected tokens.

    Attributes:
        tokens: as given.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens = tokens
        self._places: dict[tuple[int, ...], list[int]] = {}  # that follow these tokens
        self._has_come = bytearray(len(tokens))
        self._latest = 0  # the text does not go back to before this place
        for end in range(NGRAM_TOKENS, len(tokens)):
            self._places.setdefault(tuple(tokens[end - NGRAM_TOKENS : end]), []).append(end)

    @property
    def n_accepted(self) -> int:
        """How many of the tokens have come in the answer, in their order."""
        return sum(self._has_come)

    def came(self, at: int) -> int | None:
        """Take that the token at a place has come; return the next place, None at the end."""
        self._has_come[at] = 1
        self._latest = at + 1
        return at + 1 if at + 1 < len(self.tokens) else None

    def after(self, ngram: tuple[int, ...]) -> int | None:
        """Return the place that follows the last tokens of the answer: the next one, or if there is none any; or None.

        Those tokens have come, then.
        """
        places = self._places.get(ngram)
        if places is None:
            return None
        at = next((place for place in places if place >= self._latest), places[-1])
        self._has_come[at - NGRAM_TOKENS : at] = b"\1" * NGRAM_TOKENS
        self._latest = at + 1
        return at
