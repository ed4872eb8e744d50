"""Guessing the next tokens, for a step to check several at once (speculative decoding, pure).

A guess costs little where it is right, and it never changes what is said: the runner samples from each row as it would have,
and goes on as long as that is what was guessed. Whether guessing pays is known before it is tried, as guesses are compared
with what comes also while they are not used.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Costs", "Lookup"]

NGRAM = 3
"""A guess is what has followed the last so many tokens before."""

MOST = 15
"""Most tokens to guess at once."""

GAIN = 1.1
"""What a guess must promise: so many times the tokens a second."""

ROWS = 4
"""llama.cpp's kernels compute so many rows together."""

FORGOTTEN = 500
"""After so many steps it is tried again what a number of rows takes."""

_CLASSES = (0, 1, 2, 3, 3, 4, 4, 4, 5)
"""By how many guesses in a row were right: how probable it is that the next one is, too, is counted for each class."""
_PRIORS = (0.3, 0.4, 0.5, 0.7, 0.8, 0.9)
_RATE = 0.1


class Costs:
    """Learns how long steps take by their number of rows, without prompts."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._when: dict[int, int] = {}
        self._n = 0

    def observe(self, n_rows: int, seconds: float) -> None:
        """Take what a step with so many rows has taken."""
        self._n += 1
        old = self._seconds.get(n_rows)
        self._seconds[n_rows] = seconds if old is None else 0.7 * old + 0.3 * seconds
        self._when[n_rows] = self._n

    def slowdown(self, n_rows: int, more: int) -> float:
        """Return how many times as long a step takes with ``more`` rows: as it was seen lately, or as it may be."""
        total = n_rows + more
        before, after = self._seconds.get(n_rows), self._seconds.get(total)
        if before is None or after is None or self._n - self._when[total] > FORGOTTEN:
            return 1 + 0.5 * more / n_rows
        return max(after / before, 1.0)


class Lookup:
    """Guesses that a text goes on as it did after the same tokens before (prompt lookup; Saxena 2023).

    Args:
        tokens: the prompt.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the text went on after these tokens the last time
        self._at: int | None = None  # the place that the text is following
        self._streak = 0  # how long it has
        self._chances = list(_PRIORS)
        for token in tokens:
            self._append(token)

    def _append(self, token: int) -> None:
        text = self._text
        text.append(token)
        if len(text) >= NGRAM:
            key = tuple(text[-NGRAM:])
            if self._at is None:
                self._at = self._after.get(key)
            self._after[key] = len(text)

    def follow(self, tokens: Sequence[int]) -> None:
        """Take what was sampled, and see whether it was to be expected."""
        for token in tokens:
            at = self._at
            if at is not None:
                kind = _CLASSES[min(self._streak, len(_CLASSES) - 1)]
                right = self._text[at] == token
                self._chances[kind] += _RATE * (right - self._chances[kind])
                self._at, self._streak = (at + 1, self._streak + 1) if right else (None, 0)
            self._append(token)

    def guess(self, costs: Costs, n_rows: int, room: int) -> list[int]:
        """Return the tokens that it pays to check, of a step that has ``n_rows`` without them: none where none does."""
        at = self._at
        if at is None:
            return []
        room = min(room, MOST, len(self._text) - at)
        expected, chance = float(n_rows), 1.0
        best, n = GAIN * n_rows, 0
        for more in range(1, room + 1):
            chance *= self._chances[_CLASSES[min(self._streak + more - 1, len(_CLASSES) - 1)]]
            expected += chance
            if (n_rows + more) % ROWS == 0 or more == room:
                gain = expected / costs.slowdown(n_rows, more)
                if gain > best:
                    best, n = gain, more
        return self._text[at : at + n]
