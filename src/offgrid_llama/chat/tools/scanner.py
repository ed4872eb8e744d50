"""Scanner: reads a text that is still arriving, with generators that wait for more (pure).

Each method that reads is a generator: it yields where it needs more text to go on, and returns what it has found. So a
reader is written as if all of its text was there. Spaces and new lines in a mark and before it do not matter.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from offgrid_llama.chat.marks import MARK

from .tool import NAME

__all__ = ["Reading", "Scanner"]

Reading = Generator[None, None, bool]
"""A generator that waits for more text at each yield, and returns whether it has found what it looked for."""

_MARK_OR_SIGN = re.compile(rf"{MARK.pattern}|\S")


class Scanner:
    """A text that grows at its end. The part that was read is forgotten.

    Attributes:
        text: the part that is kept.
        at: the place in ``text`` up to which it is read.
        return_to: the place to go back to if what looks like a call is none; None where there is no way back. The text from
            there on is kept.
        over: whether no more text comes.
        cut: whether the text that is over did not end by itself.
        starved: whether the end of the text has come within what could be a mark.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.return_to: int | None = None
        self.over = False
        self.cut = False
        self.starved = False

    @property
    def rest(self) -> str:
        """The text that has arrived and is not read."""
        return self.text[self.at :]

    def add(self, text: str) -> None:
        """Take more text, and forget what is no longer needed."""
        begin = self.at if self.return_to is None else self.return_to
        self.text = self.text[begin:] + text
        self.at -= begin
        if self.return_to is not None:
            self.return_to = 0

    def at_least(self, n: int) -> Generator[None]:
        """Wait for ``n`` characters, or the end of the text."""
        while len(self.text) - self.at < n and not self.over:
            yield

    def skip(self, text: str) -> None:
        """Pass a text that stands here exactly; without waiting for it."""
        if self.text.startswith(text, self.at):
            self.at += len(text)

    def spaces(self) -> Generator[None]:
        """Pass spaces and new lines."""
        while True:
            rest = self.rest
            self.at += len(rest) - len(rest.lstrip())
            if self.at < len(self.text) or self.over:
                return
            yield

    def word(self) -> Generator[None, None, str]:
        """Read a name, an id or a number."""
        yield from self.spaces()
        while True:
            match = NAME.match(self.text, self.at)
            end = match.end() if match else self.at
            if end < len(self.text) or self.over:
                break
            yield
        word = self.text[self.at : end]
        self.at = end
        return word

    def literal(self, text: str) -> Reading:
        """Pass a text; where another one stands, return False and stay."""
        return (yield from self.which([text], take=True)) is not None

    def as_far_as(self, text: str) -> Generator[None]:
        """Pass as much of the beginning of a text as stands here, in whole marks."""
        for wanted in _MARK_OR_SIGN.findall(text):
            if not (yield from self.literal(wanted)):
                return

    def follows(self, one: str, other: str) -> Reading:
        """Return whether the first of two texts comes next, rather than the second or another text; stay here."""
        return (yield from self.which([one, other])) == 0

    def which(self, texts: Sequence[str], *, take: bool = False) -> Generator[None, None, int | None]:
        """Return the index of the text that comes next, of the longest where several do; None where none does.

        With ``take`` the text is passed.
        """
        cores = ["".join(text.split()) for text in texts]
        while True:
            lengths = [_match(self.text, self.at, core) for core in cores]
            if -1 not in lengths or self.over:
                self.starved = self.starved or -1 in lengths
                break
            yield
        best: int | None = None
        for i, length in enumerate(lengths):
            if length is not None and length >= 0 and (best is None or len(cores[i]) > len(cores[best])):
                best = i
        if take and best is not None:
            self.at += lengths[best] or 0
        return best

    def until(self, mark: str) -> Generator[None, None, str | None]:
        """Return the text before a mark, and go to the mark; return None where it does not come."""
        while True:
            at = self.text.find(mark, self.at)
            if at >= 0:
                found = self.text[self.at : at]
                self.at = at
                return found
            if self.over:
                self.starved = True
                return None
            yield


def _match(text: str, at: int, core: str) -> int | None:
    """Return how many characters of a text at a place are ``core``, with the spaces in and before it.

    None is that another text stands there, -1 that more text is needed to tell.
    """
    begin = at
    for wanted in core:
        while at < len(text) and text[at].isspace():
            at += 1
        if at == len(text):
            return -1
        if text[at] != wanted:
            return None
        at += 1
    return at - begin
