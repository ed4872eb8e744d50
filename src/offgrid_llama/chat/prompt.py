"""From the parts of a rendered prompt to its tokens: control tokens where the template wrote them, and nowhere else."""

from __future__ import annotations

import re
import sys
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from offgrid_llama.params import TokenAttr

if TYPE_CHECKING:
    from offgrid_llama.chat.template import Part
    from offgrid_llama.vocab import Vocab

__all__ = ["TextTokens", "prompt_tokens"]

_SPACES = " \t\n\v\f\r"  # of C's isspace()

MOST_CHARACTERS = 4 * 2**20
"""Of the texts whose tokens a TextTokens keeps; they take some two bytes each."""


class TextTokens:
    """The token ids of texts between control tokens, which do not depend on what stands around them. Thread-safe.

    A conversation that goes on has all but the last ones in common with the turn before. Those used least recently go.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self._n_characters = 0

    def __call__(self, text: str, salt: str = "") -> Sequence[int]:
        """Return the token ids of a text, no control tokens among them; raises as ``Vocab.tokenize`` does.

        Only texts of the same ``salt`` are known, so that how quick this is tells nothing of others.
        """
        key = (salt, text)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        tokens = array("i", self._vocab.tokenize(text, add_special=False))
        with self._lock:
            if key not in self._known and len(text) <= MOST_CHARACTERS:
                self._known[key] = tokens
                self._n_characters += len(text)
                while self._n_characters > MOST_CHARACTERS:
                    self._n_characters -= len(self._known.popitem(last=False)[0][1])
        return tokens


def prompt_tokens(
    vocab: Vocab, parts: Sequence[Part], known: Callable[[str], Sequence[int]] | None = None
) -> list[int]:
    """Return the token ids of a prompt (``llama_tokenize``).

    They are those of the whole text with ``parse_special=True``, but for control tokens that are not the template's: in what
    came with the conversation, and across its borders, the same characters are text. The model's BOS is added where it wants
    one and the template wrote none.

    ``known`` gives the tokens of the texts between control tokens, as TextTokens does.

    Raises TokenizeError as ``Vocab.tokenize`` does.
    """
    text = "".join(part.text for part in parts)
    controls = vocab.control_tokens()
    allowed: list[tuple[int, int]] = []  # where the template's text is
    at = 0
    for part in parts:
        if part.special:
            begin = allowed.pop()[0] if allowed and allowed[-1][1] == at else at
            allowed.append((begin, at + len(part.text)))
        at += len(part.text)
    tokens: list[int] = []
    of_text = known or TextTokens(vocab)
    for piece in _cut(vocab, text, allowed, controls):
        tokens += [piece] if isinstance(piece, int) else of_text(piece)
    if vocab.add_bos and vocab.bos is not None and tokens[:1] != [vocab.bos]:
        tokens.insert(0, vocab.bos)
    return tokens


def _found(text: str, controls: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield where a control token could be read, also where several overlap."""
    if not controls:
        return
    lengths = sorted({len(control) for control in controls})
    # There are no more of them than of their beginnings, and few of these.
    begins = "|".join(re.escape(begin) for begin in sorted({control[:2] for control in controls}))
    for match in re.finditer(f"(?={begins})", text):
        begin = match.start()
        for length in lengths:
            if text[begin : begin + length] in controls:
                yield begin, begin + length


def _inside(spans: Sequence[tuple[int, int]], begin: int, end: int) -> bool:
    """Return whether one of the spans, which are in order, has all of [begin, end)."""
    at = bisect_right(spans, (begin, sys.maxsize)) - 1
    return at >= 0 and end <= spans[at][1]


def _cut(
    vocab: Vocab, text: str, allowed: Sequence[tuple[int, int]], controls: Mapping[str, int]
) -> Iterator[int | str]:
    """Yield the control tokens of the template's text, and the texts between them.

    The longest tokens first, as llama.cpp does, which then strips what stands beside some of them.
    """
    found: dict[tuple[int, int], int] = {}
    taken = bytearray(len(text))
    places = sorted(_found(text, controls), key=lambda place: (place[0] - place[1], place[0]))
    for begin, end in places:
        if _inside(allowed, begin, end) and not any(taken[begin:end]):
            taken[begin:end] = b"1" * (end - begin)
            found[begin, end] = controls[text[begin:end]]
    borders = [(0, 0), *sorted(found), (len(text), len(text))]
    for (begin, end), (next_begin, next_end) in pairwise(borders):
        before, after = found.get((begin, end)), found.get((next_begin, next_end))
        if before is not None:
            yield before
        between = text[end:next_begin]
        if before is not None and vocab.attr(before) & TokenAttr.RSTRIP:
            between = between.lstrip(_SPACES)
        if after is not None and vocab.attr(after) & TokenAttr.LSTRIP:
            between = between.rstrip(_SPACES)
        if between:
            yield between
