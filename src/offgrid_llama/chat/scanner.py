"""Scanner: reads text that is still to come, as generators that wait for more (pure).

Each method that reads is a generator: it yields where it cannot go on without more text, and returns what it has found. So
who reads a text writes as if all of it was there. Marks are found whatever spaces and new lines are in and before them.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence

from offgrid_llama.chat.reasoning import MARK
from offgrid_llama.chat.tool import NAME

__all__ = ["Reading", "Scanner"]

Reading = Generator[None, None, bool]
"""What waits at each yield, and returns whether it has found what it looked for."""


class Scanner:
    """A text that grows at its end, and is forgotten up to where it is read.

    Attributes:
        text: what is kept of it.
        at: how far that is read.
        kept: where to go back to, if what looks like something turns out to be nothing; None where there is no way back.
        over: whether no more will come.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.kept: int | None = None
        self.over = False

    @property
    def rest(self) -> str:
        """What has come and is not read."""
        return self.text[self.at :]

    def add(self, text: str) -> None:
        """Take more text, and forget what will not be needed."""
        begin = self.at if self.kept is None else self.kept
        self.text = self.text[begin:] + text
        self.at -= begin
        if self.kept is not None:
            self.kept = 0

    def at_least(self, n: int) -> Generator[None]:
        """Wait for so many characters, or the end."""
        while len(self.text) - self.at < n and not self.over:
            yield

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
        """Pass a text; return False and stay where it is not there."""
        return (yield from self.which([text], take=True)) is not None

    def as_far_as(self, text: str) -> Generator[None]:
        """Pass as much of a text as is there, in whole marks."""
        for wanted in re.findall(rf"{MARK.pattern}|\S", text):
            if not (yield from self.literal(wanted)):
                return

    def follows(self, one: str, other: str) -> Reading:
        """Return whether the first of two texts comes next, rather than the second or anything else; stay there."""
        return (yield from self.which([one, other])) == 0

    def which(self, texts: Sequence[str], *, take: bool = False) -> Generator[None, None, int | None]:
        """Return which of several texts comes next, the longest of those that do."""
        cores = ["".join(text.split()) for text in texts]
        while True:
            lengths = [_match(self.text, self.at, core) for core in cores]
            if -1 not in lengths or self.over:
                break
            yield
        fitting = [i for i, length in enumerate(lengths) if length is not None and length >= 0]
        if not fitting:
            return None
        best = max(fitting, key=lambda i: (len(cores[i]), -i))
        if take:
            self.at += lengths[best] or 0
        return best

    def until(self, mark: str) -> Generator[None, None, str | None]:
        """Return what comes before a mark, and go there; None where it does not come."""
        while True:
            at = self.text.find(mark, self.at)
            if at >= 0:
                found = self.text[self.at : at]
                self.at = at
                return found
            if self.over:
                return None
            yield


def _match(text: str, at: int, core: str) -> int | None:
    """Return how far a text without spaces reaches at a place, with the spaces that are there; -1 is not known yet."""
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
