"""Where the pieces of a call stand in a rendered text, found by comparing it with a text that has one call more (pure)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from offgrid_llama.chat.marks import MARK, shared, shared_end

from .call_format import Slot

__all__ = ["Layout", "Place", "find_json", "find_numbered", "find_repeated", "find_slots"]

TOOL, OTHER_TOOL = "zorblax", "quimby"
"""Names of tools that no template has in its own text; so are the others here."""
PARAMETER, OTHER_PARAMETER = "frobniz", "grault"
TEXT = "Waldo plugh"
CALL_ID, OTHER_CALL_ID = "abcabcabc", "defdefdef"  # some templates refuse ids of other than nine letters

Place = tuple[Slot, int, int]
"""A slot with the start and the end of its value in a call."""


@dataclass(frozen=True)
class Layout:
    """A text with one item, such as a call, and where the item stands.

    Attributes:
        begin, item, end: the text in three pieces.
        separator: the text between two items; None where it is not known.
        number_at: the place of the item's number in the item; None where items are not numbered.
        number: that number.
    """

    begin: str
    item: str
    end: str
    separator: str | None = None
    number_at: int | None = None
    number: int = 0

    def with_spaces_in_begin(self) -> Layout:
        """Return the layout with the spaces that an item begins with as part of the text before it."""
        n = len(self.item) - len(self.item.lstrip())
        return Layout(
            self.begin + self.item[:n],
            self.item[n:],
            self.end,
            None if self.separator is None else self.separator + self.item[:n],
            None if self.number_at is None else self.number_at - n,
            self.number,
        )


def find_repeated(one: str, two: str, inside: str) -> Layout | None:
    """Return the layout of a text with one item, by a text with the same item twice; None where two is not that.

    Where the second item begins is not always certain, as the text before it may be the same as the text at its end. The
    last place that cuts no mark is taken.

    Args:
        one: the text with one item.
        two: the text with two.
        inside: a text that the item has in it.
    """
    more = len(two) - len(one)
    if more <= 0:
        return None
    marks = [match.span() for match in MARK.finditer(one)]

    def cuts_mark(at: int) -> bool:
        return any(begin < at < end for begin, end in marks)

    for at in range(shared(one, two), -1, -1):
        if one[at:] != two[at + more :]:
            break
        added = two[at : at + more]
        n = shared_end(one[:at], added)
        while n and cuts_mark(at - n):
            n -= 1
        item = one[at - n : at]
        if inside in item and not cuts_mark(at):
            return Layout(one[: at - n], item, one[at:], added[: more - n])
    return None


def find_numbered(one: str, two: str, inside: str) -> Layout | None:
    """Return what ``find_repeated`` does for items that are numbered, from 0 or from 1; None where they are not."""
    for match in re.finditer(r"(?<!\w)[01](?!\w)", one):
        number = int(match[0])
        for other in re.finditer(rf"(?<!\w){number + 1}(?!\w)", two):
            found = find_repeated(one, two[: other.start()] + match[0] + two[other.end() :], inside)
            if found is None:
                continue
            at = match.start() - len(found.begin)
            further = len(found.item) + len(found.separator or "")
            if 0 <= at < len(found.item) and other.start() == match.start() + further:
                return replace(found, number_at=at, number=number)
    return None


def find_json(call: str, arguments: Mapping[str, object]) -> tuple[int, int] | None:
    """Return where in a call its arguments stand as a JSON object; None where they do not."""
    decoder = json.JSONDecoder()
    for match in re.finditer(r"\{", call):
        try:
            value, end = decoder.raw_decode(call, match.start())
        except ValueError:
            continue
        if value == arguments:
            return match.start(), end
    return None


def find_slots(call: str, places: Sequence[Place]) -> tuple[str | Slot, ...] | None:
    """Return the texts and slots of a call to TOOL; None where it does not have the name.

    ``places`` are those known already. An id without a name beside it is one that has the name in it.
    """
    found = list(places)
    for slot, text in ((Slot.NAME, TOOL), (Slot.ID, CALL_ID)):
        found += [(slot, match.start(), match.end()) for match in re.finditer(text, call)]
    pieces: list[str | Slot] = []
    at = 0
    for slot, begin, end in sorted(found, key=lambda place: place[1:]):
        if begin < at:
            continue  # inside of the slot before
        pieces += [call[at:begin], slot]
        at = end
    pieces.append(call[at:])
    if Slot.NAME in pieces:
        return tuple(piece for piece in pieces if piece)
    if Slot.ID not in pieces:
        return None
    return tuple(Slot.PATH if piece is Slot.ID else piece for piece in pieces if piece)
