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

from offgrid_llama.native.enums import TokenAttr
from offgrid_llama.text.json_text import whole_text

if TYPE_CHECKING:
    from offgrid_llama.model.vocab import Vocab

    from .template.template import PromptPart

__all__ = ["TextTokens", "prompt_tokens"]

_SPACES = " \t\n\v\f\r"  # those of C's isspace()

KNOWN_MAX_CHARACTERS = 4 * 2**20
"""The characters of all texts whose tokens are kept; the tokens take some two bytes for each."""


class TextTokens:
    """The token ids of texts between control tokens, which do not depend on what stands around them. Thread-safe.

    A conversation that goes on shares all but the last texts with the turn before. The texts used least recently are
    forgotten.

    Args:
        vocab: the vocabulary to tokenize with.
        max_characters: the characters of all texts that are kept. A longer text is not kept.
    """

    def __init__(self, vocab: Vocab, *, max_characters: int = KNOWN_MAX_CHARACTERS) -> None:
        self._vocab = vocab
        self._max_characters = max_characters
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str], array[int]] = OrderedDict()
        self._n_characters = 0

    def __call__(self, text: str, salt: str = "") -> Sequence[int]:
        """Return the token ids of a text, no control tokens among them; raises as ``Vocab.tokenize`` does.

        Only texts with the same ``salt`` are known, so that the time it takes shows nothing of other callers' texts.
        """
        key = (salt, text)
        with self._lock:
            known = self._known.get(key)
            if known is not None:
                self._known.move_to_end(key)
                return known
        tokens = array("i", self._vocab.tokenize(text, add_special=False))
        with self._lock:
            if key not in self._known and len(text) <= self._max_characters:
                self._known[key] = tokens
                self._n_characters += len(text)
                while self._n_characters > self._max_characters:
                    self._n_characters -= len(self._known.popitem(last=False)[0][1])
        return tokens

    def clear(self) -> None:
        """Forget all texts."""
        with self._lock:
            self._known.clear()
            self._n_characters = 0


def prompt_tokens(
    vocab: Vocab,
    parts: Sequence[PromptPart],
    known: Callable[[str], Sequence[int]] | None = None,
    *,
    begins: bool = True,
) -> list[int]:
    """Return the token ids of a prompt (``llama_tokenize``).

    They are those of the whole text with ``parse_special=True``, but for control tokens that are not the template's: in
    texts that came with the conversation, and across their borders, the same characters are text. The model's BOS is
    added where the model wants one and the template wrote none. Half of a character, which no UTF-8 has, becomes U+FFFD:
    others have written many of the texts.

    Args:
        vocab: the model's vocabulary.
        parts: the rendered prompt.
        known: returns the tokens of a text between control tokens, as TextTokens does.
        begins: whether the prompt begins with these parts.

    Raises TokenizeError as ``Vocab.tokenize`` does.
    """
    parts = [part._replace(text=whole_text(part.text)) for part in parts]
    text = "".join(part.text for part in parts)
    tokens: list[int] = []
    of_text = known or TextTokens(vocab)
    for piece in _pieces(vocab, text, _spans_of_template(parts)):
        tokens += [piece] if isinstance(piece, int) else of_text(piece)
    if begins and vocab.add_bos and vocab.bos is not None and tokens[:1] != [vocab.bos]:
        tokens.insert(0, vocab.bos)
    return tokens


def _spans_of_template(parts: Sequence[PromptPart]) -> list[tuple[int, int]]:
    """Return start and end of the template's texts in the prompt, neighbours as one."""
    spans: list[tuple[int, int]] = []
    at = 0
    for part in parts:
        if part.special:
            begin = spans.pop()[0] if spans and spans[-1][1] == at else at
            spans.append((begin, at + len(part.text)))
        at += len(part.text)
    return spans


def _places(text: str, controls: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """Yield start and end of each text that could be read as a control token, also where several overlap."""
    if not controls:
        return
    lengths = sorted({len(control) for control in controls})
    # Looking for their first two characters is quick, as there are few different ones.
    begins = "|".join(re.escape(begin) for begin in sorted({control[:2] for control in controls}))
    for match in re.finditer(f"(?={begins})", text):
        begin = match.start()
        for length in lengths:
            if text[begin : begin + length] in controls:
                yield begin, begin + length


def _inside(spans: Sequence[tuple[int, int]], begin: int, end: int) -> bool:
    """Return whether all of [begin, end) lies in one of the spans, which are in order."""
    at = bisect_right(spans, (begin, sys.maxsize)) - 1
    return at >= 0 and end <= spans[at][1]


def _controls_of_template(
    text: str, allowed: Sequence[tuple[int, int]], controls: Mapping[str, int]
) -> dict[tuple[int, int], int]:
    """Return the control tokens in the template's text, by start and end, the longest first, as llama.cpp reads them."""
    found: dict[tuple[int, int], int] = {}
    taken = bytearray(len(text))
    for begin, end in sorted(_places(text, controls), key=lambda place: (place[0] - place[1], place[0])):
        if _inside(allowed, begin, end) and not any(taken[begin:end]):
            taken[begin:end] = b"1" * (end - begin)
            found[begin, end] = controls[text[begin:end]]
    return found


def _pieces(vocab: Vocab, text: str, allowed: Sequence[tuple[int, int]]) -> Iterator[int | str]:
    """Yield the control tokens of the template's text, and the texts between them.

    Spaces beside a token that strips them are left out, as llama.cpp does.
    """
    found = _controls_of_template(text, allowed, vocab.control_tokens())
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
