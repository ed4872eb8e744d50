"""ReasoningBudget: how long a model may think before the engine makes it answer (pure)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["ReasoningBudget"]


class ReasoningBudget:
    """Counts the tokens of reasoning, and says when they are spent.

    Args:
        n_tokens: most tokens of reasoning.
        begin, end: the marks around the reasoning.
        inside: whether the prompt has opened the reasoning.
        closing: the tokens that end it.
    """

    def __init__(self, n_tokens: int, begin: bytes, end: bytes, *, inside: bool, closing: Sequence[int]) -> None:
        self.closing = closing
        self._n_left = n_tokens
        self._begin, self._end = begin, end
        self._mark: bytes | None = end if inside else begin  # the next mark; None once the reasoning is over
        self._text = b""

    def push(self, piece: bytes) -> bool:
        """Take the bytes of the next token; return whether ``closing`` must follow it."""
        if self._mark is None:
            return False
        self._text += piece
        if self._mark is self._begin:
            text = self._text.lstrip()
            if not text.startswith(self._begin):
                if not self._begin.startswith(text):
                    self._mark = None  # the model answers without reasoning
                return False
            self._mark, self._text = self._end, text[len(self._begin) :]
        if self._end in self._text:
            self._mark = None
            return False
        self._n_left -= 1
        self._text = self._text[-len(self._end) - 3 :]
        if self._n_left > 0 or not _ends_with_a_whole_character(self._text):
            return False
        self._mark = None
        return True


def _ends_with_a_whole_character(text: bytes) -> bool:
    """Return whether text in UTF-8 does not end within a character."""
    for n in range(1, min(4, len(text)) + 1):
        byte = text[-n]
        if byte < 0x80:
            return True
        if byte >= 0xC0:
            return n == (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return True
