"""JoinedText: one text of the passages that a sound was cut into, as it comes."""

from __future__ import annotations

__all__ = ["JoinedText"]


class JoinedText:
    """Joins passages, each of which comes in pieces, with a space between two of them where their script has spaces.

    Attributes:
        text: so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._held = ""  # spaces at the end of a passage, or before more of it
        self._begins = True

    def begin(self) -> None:
        """Begin the next passage."""
        self._held, self._begins = "", True

    def push(self, piece: str) -> str:
        """Return what a piece of this passage adds to the text: nothing for the spaces around a passage."""
        piece = self._held + piece
        if self._begins:
            piece = piece.lstrip()
        kept = piece.rstrip()
        self._held = piece[len(kept) :]
        if not kept:
            return ""
        if self._begins and self.text and not (_has_no_spaces(self.text[-1]) and _has_no_spaces(kept[0])):
            kept = " " + kept
        self._begins = False
        self.text += kept
        return kept


def _has_no_spaces(character: str) -> bool:
    """Return whether a character is of Chinese or Japanese, which have no spaces between words; Korean has."""
    return "\u2e80" <= character <= "\u9fff" or "\uf900" <= character <= "\uffef" or character >= "\U00020000"
