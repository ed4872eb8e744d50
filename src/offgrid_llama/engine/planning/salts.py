"""Salts: they keep the prefixes of requests apart that must not find each other's (pure)."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

__all__ = ["Salts"]

MAX_SALTED_TOKENS = 10_000
"""First tokens that are remembered, before those are forgotten with which no text begins any more."""


class Salts:
    """Gives the first token of a salted prompt a number that is no token: another one with each salt.

    A late salt does so for a token within the prompt; what is before that is found with another one, too.

    Args:
        begins: returns the first tokens of all texts that can be found.
    """

    def __init__(self, begins: Callable[[], Set[int]]) -> None:
        self._begins = begins
        self._numbers: dict[tuple[str, int], int] = {}
        self._n = 0

    def salted(self, prompt: Sequence[int], salt: str, late: tuple[int, str] | None = None) -> Sequence[int]:
        """Return a prompt as a text that is found with the same salt only; an empty salt changes nothing.

        ``late`` is a position and the salt from there on.
        """
        if late is not None:
            pos, late_salt = late
            prompt = [*prompt[:pos], self._number(late_salt, prompt[pos]), *prompt[pos + 1 :]]
        return [self._number(salt, prompt[0]), *prompt[1:]] if salt else prompt

    def _number(self, salt: str, token: int) -> int:
        """Return the number of a token with a salt."""
        key = salt, token
        if key not in self._numbers:
            if len(self._numbers) >= MAX_SALTED_TOKENS:
                begins = self._begins()
                self._numbers = {each: number for each, number in self._numbers.items() if number in begins}
            self._n += 1
            self._numbers[key] = -1 - self._n
        return self._numbers[key]

    def plain(self, text: Sequence[int], salt: str) -> list[int]:
        """Return the tokens of a text that ``salted`` has made with this salt; none for one with another or a late salt."""
        if min(text[1:], default=0) < 0:
            return []
        if not salt:
            return list(text) if text and text[0] >= 0 else []
        firsts = {number: token for (own, token), number in self._numbers.items() if own == salt}
        return [firsts[text[0]], *text[1:]] if text and text[0] in firsts else []
