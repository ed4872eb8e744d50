"""Lookup: prompt lookup guesses the next tokens, and one step verifies several of them (speculative decoding, pure).

A guess never changes the answer: the runner samples from each row as it would have, and goes on as long as the sampled token
is the guessed one. A guess is compared with what is sampled even when it is not used, so whether it pays is known before it
is tried.

Under a grammar some tokens are forced. Those are computed together in any case; there a guess saves the steps of the others.
"""

from __future__ import annotations

from collections.abc import Sequence

from .costs import CHANCE_STEP, KERNEL_ROWS, MAX_GUESS_TOKENS, MIN_SPEEDUP, Costs
from .predicted import NGRAM_TOKENS, Predicted

__all__ = ["Lookup"]

GUIDED_MIN_SPEEDUP = 1.03
"""Seconds that a guess must save under a grammar, divided by those that it costs."""

_CLASSES = (0, 1, 2, 3, 3, 4, 4, 4, 5)
"""The class of a guess, by how many guesses before it were right in a row: each class has its own probability."""
_PRIORS = (0.3, 0.4, 0.5, 0.7, 0.8, 0.9)
"""The probability of each class to begin with."""


class Lookup:
    """Guesses that a text goes on as it did after the same tokens before (prompt lookup; Saxena 2023).

    Args:
        tokens: the prompt.
        guided: whether a grammar restricts the tokens, so that ``worth`` decides how much of a guess is verified.
        predicted: the tokens that the caller expects as the answer: they are looked up first, from their beginning on.

    Attributes:
        predicted: the expected tokens, and which have come; None without any.
    """

    def __init__(self, tokens: Sequence[int], *, guided: bool = False, predicted: Sequence[int] = ()) -> None:
        self._guided = guided
        self.predicted: Predicted | None = None
        self._text: list[int] = []  # the expected tokens, and behind them the prompt and the answer
        self._after: dict[tuple[int, ...], int] = {}  # the place that follows the last occurrence of these tokens
        self._at: int | None = None  # the earlier place that the text follows
        self._streak = 0  # how many tokens in a row it has followed it
        self._chances = list(_PRIORS)
        self._asked = (Costs(), 1, 0)  # the step that the last guess was made for
        self._choices: Sequence[bool] = ()  # whether each of the next tokens is a choice
        for token in tokens:
            self._append(token)
        if predicted:
            self._expect(predicted)

    def _expect(self, predicted: Sequence[int]) -> None:
        """Put the expected tokens before the text, and take that their first one comes next."""
        n = len(predicted)
        self.predicted = Predicted(predicted)
        self._text[:0] = predicted
        self._after = {key: place + n for key, place in self._after.items()}
        self._at, self._streak = 0, len(_CLASSES)

    def _append(self, token: int) -> None:
        text = self._text
        text.append(token)
        if len(text) >= NGRAM_TOKENS:
            key = tuple(text[-NGRAM_TOKENS:])
            if self._at is None and self.predicted is not None:
                self._at = self.predicted.after(key)
            if self._at is None:
                self._at = self._after.get(key)
            self._after[key] = len(text)

    def _next(self, at: int, right: bool) -> int | None:
        """Return the place that the text follows after it has, or has not, followed ``at``."""
        if not right:
            return None
        predicted = self.predicted
        return predicted.came(at) if predicted is not None and at < len(predicted.tokens) else at + 1

    def _end(self, at: int) -> int:
        """Return where the text ends that a place belongs to."""
        n = 0 if self.predicted is None else len(self.predicted.tokens)
        return n if at < n else len(self._text)

    def follow(self, tokens: Sequence[int], n_forced: int = 0) -> None:
        """Append sampled tokens, and learn whether each would have been guessed.

        The last ``n_forced`` of the tokens were forced by a grammar, and tell nothing about guesses.
        """
        choices, self._choices = self._choices, ()
        for i, token in enumerate(tokens):
            at = self._at
            if i >= len(tokens) - n_forced or (i < len(choices) and not choices[i]):
                if at is not None:
                    right = self._text[at] == token
                    self._at, self._streak = self._next(at, right), self._streak if right else 0
            elif at is not None:
                kind = _CLASSES[min(self._streak, len(_CLASSES) - 1)]
                right = self._text[at] == token
                self._chances[kind] += CHANCE_STEP * (right - self._chances[kind])
                self._at, self._streak = self._next(at, right), self._streak + 1 if right else 0
            self._append(token)

    @property
    def follows(self) -> bool:
        """Whether the text follows an earlier place, which gives a guess."""
        return self._at is not None

    def guess(self, costs: Costs, n_generating: int, n_guessed: int, room: int) -> list[int]:
        """Return the guesses, at most ``room``, that pay in a step; an empty list if none do.

        Args:
            costs: of steps.
            n_generating: the requests that generate in the step.
            n_guessed: the tokens that the step computes already besides one for each of them.
            room: most tokens to guess.
        """
        at = self._at
        self._asked = costs, n_generating, n_guessed
        if at is None:
            return []
        room = min(room, MAX_GUESS_TOKENS, self._end(at) - at)
        if self._guided:
            return self._text[at : at + max(min(room, max(MAX_GUESS_TOKENS // n_generating, KERNEL_ROWS)), 0)]
        before = costs.slowdown(n_generating, n_guessed) if n_guessed else 1.0
        expected, chance = float(n_generating + n_guessed), 1.0
        best, n = MIN_SPEEDUP * expected / before, 0
        for more in range(1, room + 1):
            chance *= self._chances[_CLASSES[min(self._streak + more - 1, len(_CLASSES) - 1)]]
            expected += chance
            if (more + (n_guessed + 1 if n_generating == 1 else 0)) % KERNEL_ROWS == 0 or more == room:
                gain = expected / costs.slowdown(n_generating, n_guessed + more)
                if gain > best:
                    best, n = gain, more
        return self._text[at : at + n]

    def worth(self, choices: Sequence[bool]) -> int:
        """Return how many of the tokens last guessed pay to verify under a grammar.

        A token that is forced after another one is computed with it even without a guess, and there as cheaply.

        Args:
            choices: for each of the tokens whether the grammar leaves a choice.
        """
        costs, n_generating, n_guessed = self._asked
        seconds = costs.slowdown(n_generating, n_guessed) if n_guessed else 1.0  # without guesses, in plain steps
        best, n, chance, end, streak = 0.0, 0, 1.0, 0, self._streak
        while end < len(choices):
            chance *= self._chances[_CLASSES[min(streak, len(_CLASSES) - 1)]]
            streak += 1
            begin = end
            end = next((i for i in range(begin + 1, len(choices)) if choices[i]), len(choices))
            must = end - begin - 1
            more = costs.slowdown(n_generating, must) - 1 if must else 0.0
            seconds += chance * (more + 1 / n_generating)
            saved = seconds - GUIDED_MIN_SPEEDUP * costs.slowdown(n_generating, n_guessed + end)
            if saved > best:
                best, n = saved, end
        self._choices = choices[:n]
        return n
