"""Text that knows which of its characters came from the caller.

A chat template is written by the model's author, the messages by the application's users. Both end up in one prompt, in
which "<|im_end|>" must be a control token where the template has it and plain text where a message has it. Searching the
finished prompt for the messages cannot tell the two apart: a message that is found in the template's own text hides
another one. So the origin is carried along. A ``Text`` is a str with the spans of its characters that came from the
caller, and every operation that a template can reach returns a ``Text`` with the right spans.

One rule makes that safe: an operation either moves characters from its operands to its result, and their origins with them;
or it is opaque, and then one operand from the caller makes the whole result the caller's. A plain ``str`` counts as the
template's, so an operation that forgets to return a ``Text`` would be the one fatal mistake. Therefore templates reach no
method of str but those in ``text_methods.METHODS``, and no filter but those in ``filters.FILTERS``.

Numbers, booleans and None count as the template's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import Undefined

from .limits import CHARACTERS_PER_STEP, CONTAINERS, VIEWS, RenderBudget, current_budget, walk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import SupportsIndex

__all__ = ["Spans", "Text", "cut", "from_caller", "joined", "made_text", "opaque", "sliced", "string", "written_length"]

TEXT_OBJECT_BYTES = 160
"""The memory of an empty Text, rounded up."""

Spans = tuple[tuple[int, int], ...]


class Text(str):
    """A str with ``spans``: start and end of what came from the caller, in order, none empty, none touching the next.

    It gives back the memory that its budget was charged for when it dies. ``made_text`` makes it.
    """

    __slots__ = ("budget", "charged_bytes", "spans")
    budget: RenderBudget
    charged_bytes: int
    spans: Spans

    def __del__(self) -> None:
        self.budget.memory -= self.charged_bytes

    def __str__(self) -> Text:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return sliced(self, key)

    def __iter__(self) -> Iterator[str]:
        return (cut(self, at, at + 1) for at in range(len(self)))


def made_text(value: str, spans: Spans) -> Text:
    """Make a text. Every text that comes into being in a rendering is made here."""
    budget = current_budget.get()
    budget.tick(1 + len(value) // CHARACTERS_PER_STEP)
    budget.check_text(len(value), is_ascii=value.isascii())
    text = str.__new__(Text, value)
    text.spans = spans
    text.budget = budget
    text.charged_bytes = TEXT_OBJECT_BYTES + (len(value) if value.isascii() else 4 * len(value))
    budget.memory += text.charged_bytes
    return text


def from_caller(value: str) -> Text:
    """Return ``value`` as text that came from the caller."""
    return made_text(value, ((0, len(value)),) if value else ())


def opaque(value: str, *sources: Any) -> Text:
    """Return ``value`` as the caller's if any source is, even in part, and as the template's otherwise."""
    return from_caller(value) if any(isinstance(s, Text) and s.spans for s in sources) else made_text(value, ())


def joined(pieces: Sequence[str]) -> str:
    """Return the pieces as one text."""
    if len(pieces) == 1:
        return pieces[0]
    length, is_ascii = 0, True
    spans: list[tuple[int, int]] = []
    for piece in pieces:
        if isinstance(piece, Text):
            for start, end in piece.spans:
                if spans and spans[-1][1] == length + start:
                    spans[-1] = (spans[-1][0], length + end)
                else:
                    spans.append((length + start, length + end))
        length += len(piece)
        is_ascii = is_ascii and piece.isascii()
    budget = current_budget.get()
    budget.tick(len(pieces) + len(spans))
    budget.check_text(length, is_ascii=is_ascii)
    return made_text("".join(pieces), tuple(spans))


def cut(text: str, start: int, end: int) -> str:
    """Return ``text[start:end]`` for 0 <= start <= end <= len(text)."""
    spans: Spans = ()
    if isinstance(text, Text):
        current_budget.get().tick(len(text.spans))
        spans = tuple((max(a, start) - start, min(b, end) - start) for a, b in text.spans if a < end and b > start)
    return made_text(str.__getitem__(text, slice(start, end)), spans)


def sliced(text: str, key: SupportsIndex | slice) -> str:
    """Return ``text[key]``."""
    value = str.__getitem__(text, key)
    if not isinstance(key, slice):
        start = key.__index__() % len(text)
        return cut(text, start, start + 1)
    start, _, step = key.indices(len(text))
    return cut(text, start, start + len(value)) if step == 1 else opaque(value, text)


def string(value: Any) -> str:
    """Return str(value). Text stays as it is; the text of a container counts as the caller's throughout."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (int, float, Undefined)):
        return made_text(str(value), ())
    if not isinstance(value, (*CONTAINERS, *VIEWS)):
        raise TypeError(f"a {type(value).__name__} cannot be turned into text")
    # \U000e0001 is the longest escape
    current_budget.get().check_memory(sum(8 + written_length(item, 10) for _, item in walk(value)))
    return from_caller(str(value))


def written_length(item: Any, escape: int) -> int:
    """Return how many characters repr() or JSON take for ``item`` at most, its elements not counted.

    ``escape`` is how many they take for a character that is not printable.
    """
    if isinstance(item, str):
        return 2 + len(item) * (2 if item.isprintable() else escape)
    return item.bit_length() // 3 if isinstance(item, int) else 32
