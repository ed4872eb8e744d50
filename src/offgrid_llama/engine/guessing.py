"""Guessing the next tokens, for a step to check several at once (speculative decoding, pure).

A guess never changes what is said: the runner samples from each row as it would have, and goes on as long as that is what
was guessed. Whether it pays to look up what has followed before is known before it is tried, as that is compared with what
comes also while it is not used. What a draft model says is not known without asking it: where that has not paid, it is asked
again from time to time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["MOST", "Acceptance", "Costs", "Drafting", "Lookup"]

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

PAUSE = 128
"""So many steps after a draft has not paid the draft model is asked again, then after twice as many, and so on."""

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
            return min(1 + 0.5 * more / n_rows, self._as_near(n_rows, total))
        return max(after / before, 1.0)

    def _as_near(self, n_rows: int, total: int) -> float:
        """Return the slowdown that goes on as it does to the nearest number of rows that was seen."""
        before = self._seconds.get(n_rows)
        near = min((n for n in self._seconds if n_rows < n != total), key=lambda n: abs(n - total), default=None)
        if before is None or near is None:
            return math.inf
        return 1 + max(self._seconds[near] / before - 1, 0.1) * (total - n_rows) / (near - n_rows)

    def seconds(self, n_rows: int) -> float | None:
        """Return how long a step with so many rows has taken; None where none was seen."""
        return self._seconds.get(n_rows)


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


class Acceptance:
    """How probable it is that the next token of a draft is right, by those of the same request lately.

    Args:
        chance: what it is with others.
    """

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def learn(self, n_guessed: int, n_right: int) -> None:
        """Take how many tokens were drafted, and how many of the first of them were right."""
        for i in range(min(n_right + 1, n_guessed)):
            self.chance += _RATE * ((i < n_right) - self.chance)


class Drafting:
    """Decides how many tokens a draft model is to guess in a step, for all that generate together."""

    def __init__(self) -> None:
        self.chance = 0.7  # of requests that begin
        self._seconds: float | None = None
        self._pause = 0  # steps without a draft that are left
        self._next_pause = PAUSE

    def observe(self, seconds: float) -> None:
        """Take how long the draft model has taken for a token of each request."""
        self._seconds = seconds if self._seconds is None else 0.7 * self._seconds + 0.3 * seconds

    def length(self, requests: Sequence[Acceptance], costs: Costs, n_rows: int, room: int) -> int:
        """Return how many tokens to draft for each of the requests, of a step that has ``n_rows`` without them.

        ``room`` is for all of them together. 0 where it does not pay, or where it has not lately.
        """
        most = min(room // len(requests), MOST) if requests else 0
        if not most:
            return 0
        if costs.seconds(n_rows) is None:  # a step without a draft is to be seen first
            return 0
        if self._seconds is None:
            return min(most, ROWS - 1)
        self.chance += 0.01 * (sum(each.chance for each in requests) / len(requests) - self.chance)
        if self._pause:
            self._pause -= 1
            return min(most, 2) if not self._pause and self._may_pay(costs, n_rows, most) else 0
        best = self._best([each.chance for each in requests], costs, n_rows, most)
        if best:
            self._next_pause = PAUSE
        else:
            self._pause, self._next_pause = self._next_pause, 2 * self._next_pause
        return best

    def _may_pay(self, costs: Costs, n_rows: int, most: int) -> bool:
        """Return whether it would pay if all were right."""
        return self._best([1.0], costs, n_rows, most) > 0

    def _best(self, chances: Sequence[float], costs: Costs, n_rows: int, most: int) -> int:
        each = (self._seconds or 0.0) / (costs.seconds(n_rows) or 1.0)
        best, n = GAIN * n_rows, 0
        hits, expected = [1.0] * len(chances), float(n_rows)
        for more in range(1, most + 1):
            hits = [hit * chance for hit, chance in zip(hits, chances, strict=True)]
            expected += sum(hits)
            gain = expected / (costs.slowdown(n_rows, more * len(chances)) + more * each)
            if gain > best:
                best, n = gain, more
        return n
