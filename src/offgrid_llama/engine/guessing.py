"""Guessing the next tokens, for a step to check several at once (speculative decoding, pure).

A guess never changes what is said: the runner samples from each row as it would have, and goes on as long as that is what
was guessed. Whether it pays to look up what has followed before is known before it is tried, as that is compared with what
comes also while it is not used. What a draft model says is not known without asking it: where that has not paid, it is asked
again from time to time.

Under a grammar some tokens must come. These are computed together anyway; a guess saves the steps of the others there.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["MOST", "Acceptance", "Costs", "Drafting", "Lookup"]

NGRAM = 3
"""A guess is what has followed the last so many tokens before."""

MOST = 15
"""Most tokens to guess at once."""

GAIN = 1.1
"""What a guess must promise: so many times the tokens a second."""

WORTH = 1.03
"""What it must promise where a grammar has a say: the same in time for what comes in any case."""

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
    """Learns how long steps without prompts take, by how many generate and how many tokens are guessed.

    A row that is guessed is not like one more that generates: llama.cpp computes what one sequence has more than the others
    apart from them, unless they share their cells.

    Args:
        apart: whether they do not.
    """

    def __init__(self, *, apart: bool = True) -> None:
        self._apart = apart
        self._plain: dict[int, float] = {}  # seconds by how many generate, without guesses
        self._more: dict[tuple[int, int], float] = {}  # seconds more with so many guesses
        self._when: dict[tuple[int, int], int] = {}
        self._n = 0

    def observe(self, n_generating: int, n_guessed: int, seconds: float) -> None:
        """Take what a step has taken."""
        self._n += 1
        plain = self._plain.get(n_generating)
        if not n_guessed:
            self._plain[n_generating] = seconds if plain is None else 0.7 * plain + 0.3 * seconds
        elif plain is not None:
            key = n_generating, n_guessed
            old, new = self._more.get(key), max(seconds - plain, 0.0)
            self._more[key] = new if old is None else 0.7 * old + 0.3 * new
            self._when[key] = self._n

    def slowdown(self, n_generating: int, n_guessed: int) -> float:
        """Return how many times as long a step takes with so many guesses: as it was seen lately, or as it may be.

        What was not seen goes by what is nearest to it. Where nothing was, what is computed apart takes as long as a step
        for as many that generate.
        """
        nearest = min(self._plain, key=lambda n: abs(n - n_generating), default=None)
        lately = [key for key in self._more if self._n - self._when[key] <= FORGOTTEN]
        if nearest is None:
            return 1 + 0.5 * n_guessed / n_generating
        plain = self._plain[nearest]
        if not lately:
            apart = self._apart and n_generating > 1
            return 1 + (self._rows(n_guessed) / plain if apart else 0.5 * n_guessed / n_generating)
        near = min(lately, key=lambda key: (abs(key[0] - n_generating), abs(key[1] - n_guessed)))
        return 1 + self._more[near] / plain * n_guessed / near[1]

    def _rows(self, n: int) -> float:
        """Return how long a step takes in which so many generate, by what fewer and more have taken."""
        fewer = max((seen for seen in self._plain if seen <= n), default=None)
        more = min((seen for seen in self._plain if seen >= n), default=None)
        if fewer is None:
            return self._plain[min(self._plain)]
        if more is None:
            return float(self._plain[fewer] * (n / fewer) ** 0.5)  # between what memory and what arithmetic takes
        share = (n - fewer) / (more - fewer) if more > fewer else 0.0
        return self._plain[fewer] + share * (self._plain[more] - self._plain[fewer])

    def seconds(self, n_generating: int) -> float | None:
        """Return how long a step without guesses takes in which so many generate; None where none was seen."""
        return self._plain.get(n_generating)


class Lookup:
    """Guesses that a text goes on as it did after the same tokens before (prompt lookup; Saxena 2023).

    Args:
        tokens: the prompt.
        guided: whether a grammar has a say, so that ``worth`` decides how much of a guess is checked.
    """

    def __init__(self, tokens: Sequence[int], *, guided: bool = False) -> None:
        self._guided = guided
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # where the text went on after these tokens the last time
        self._at: int | None = None  # the place that the text is following
        self._streak = 0  # how long it has
        self._chances = list(_PRIORS)
        self._asked = (Costs(), 1, 0)  # what the last guess was made for
        self._choices: Sequence[bool] = ()  # of what comes next
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

    def follow(self, tokens: Sequence[int], n_forced: int = 0) -> None:
        """Take what was sampled, and see whether it was to be expected.

        The last ``n_forced`` of the tokens had to come: these say nothing of how good guesses are.
        """
        choices, self._choices = self._choices, ()
        for i, token in enumerate(tokens):
            at = self._at
            if i >= len(tokens) - n_forced or (i < len(choices) and not choices[i]):
                if at is not None:
                    self._at, self._streak = (at + 1, self._streak) if self._text[at] == token else (None, 0)
            elif at is not None:
                kind = _CLASSES[min(self._streak, len(_CLASSES) - 1)]
                right = self._text[at] == token
                self._chances[kind] += _RATE * (right - self._chances[kind])
                self._at, self._streak = (at + 1, self._streak + 1) if right else (None, 0)
            self._append(token)

    @property
    def follows(self) -> bool:
        """Whether the text is following an earlier place, so that there is something to guess."""
        return self._at is not None

    def guess(self, costs: Costs, n_generating: int, n_guessed: int, room: int) -> list[int]:
        """Return the tokens that it pays to check, of a step in which so many generate, with so many guesses already.

        What must be computed besides one token each counts as such guesses. None where none does.
        """
        at = self._at
        self._asked = costs, n_generating, n_guessed
        if at is None:
            return []
        room = min(room, MOST, len(self._text) - at)
        if self._guided:
            return self._text[at : at + max(min(room, max(MOST // n_generating, ROWS)), 0)]
        before = costs.slowdown(n_generating, n_guessed) if n_guessed else 1.0
        expected, chance = float(n_generating + n_guessed), 1.0
        best, n = GAIN * expected / before, 0
        for more in range(1, room + 1):
            chance *= self._chances[_CLASSES[min(self._streak + more - 1, len(_CLASSES) - 1)]]
            expected += chance
            if (more + (n_guessed + 1 if n_generating == 1 else 0)) % ROWS == 0 or more == room:
                gain = expected / costs.slowdown(n_generating, n_guessed + more)
                if gain > best:
                    best, n = gain, more
        return self._text[at : at + n]

    def worth(self, choices: Sequence[bool]) -> int:
        """Return how many of the tokens last guessed it still pays to check, where a grammar has a say in them.

        A token that must come after another is computed with it also without a guess, and there as cheaply.

        Args:
            choices: for each of them whether there is a choice.
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
            saved = seconds - WORTH * costs.slowdown(n_generating, n_guessed + end)
            if saved > best:
                best, n = saved, end
        self._choices = choices[:n]
        return n


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

    def length(self, requests: Sequence[Acceptance], costs: Costs, n_generating: int, room: int) -> int:
        """Return how many tokens to draft for each of the requests, of a step in which ``n_generating`` generate.

        ``room`` is for all of them together. 0 where it does not pay, or where it has not lately.
        """
        most = min(room // len(requests), MOST) if requests else 0
        if not most:
            return 0
        if costs.seconds(n_generating) is None:  # a step without a draft is to be seen first
            return 0
        if self._seconds is None:
            return min(most, ROWS - 1)
        self.chance += 0.01 * (sum(each.chance for each in requests) / len(requests) - self.chance)
        if self._pause:
            self._pause -= 1
            return min(most, 2) if not self._pause and self._may_pay(costs, n_generating, most) else 0
        best = self._best([each.chance for each in requests], costs, n_generating, most)
        if best:
            self._next_pause = PAUSE
        else:
            self._pause, self._next_pause = self._next_pause, 2 * self._next_pause
        return best

    def _may_pay(self, costs: Costs, n_generating: int, most: int) -> bool:
        """Return whether it would pay if all were right."""
        return self._best([1.0], costs, n_generating, most) > 0

    def _best(self, chances: Sequence[float], costs: Costs, n_generating: int, most: int) -> int:
        each = (self._seconds or 0.0) / (costs.seconds(n_generating) or 1.0)
        best, n = GAIN * n_generating, 0
        hits, expected = [1.0] * len(chances), float(n_generating)
        for more in range(1, most + 1):
            hits = [hit * chance for hit, chance in zip(hits, chances, strict=True)]
            expected += sum(hits)
            gain = expected / (costs.slowdown(n_generating, more * len(chances)) + more * each)
            if gain > best:
                best, n = gain, more
        return n
