"""Text that knows which of its characters came from the caller.

A chat template is written by the model's author, the messages come from anybody. Both end up in one prompt, in which
"<|im_end|>" must be a control token where the template has it and plain text where a message has it. Searching the
finished prompt for the messages cannot tell the two apart: a message that is found in the template's own text hides
another one. So the origin is carried along. A ``Text`` is a str with the spans of its characters that came from the
caller, and every operation that a template can reach gives a ``Text`` with the right spans.

What makes that safe: an operation either moves characters from its operands to its result, and their origins with
them; or it is opaque, and then one operand from the caller makes the whole result the caller's. A plain ``str`` counts
as the template's, so an operation that forgets to give a ``Text`` would be the one fatal mistake. Therefore templates
reach no method of str but those in ``METHODS``, and no filter but those listed in ``_sandbox``.

Numbers, booleans and None count as the template's.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from jinja2 import Undefined

from offgrid_llama.chat._budget import CHARS_PER_STEP, CONTAINERS, VIEWS, Budget, current, each, walk
from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import SupportsIndex

    from jinja2.sandbox import SandboxedFormatter

__all__ = ["METHODS", "Text", "formatted", "from_caller", "indented", "joined", "opaque"]
__all__ += ["percent", "recased", "replaced", "sliced", "splitlines", "string", "written"]

_MAX_PIECES = 100_000  # that one split() may give: the sandbox's limit for range() as well
_OBJECT_BYTES = 160  # of an empty Text, rounded up

Spans = tuple[tuple[int, int], ...]


class Text(str):
    """A str with ``spans``: start and end of what came from the caller, in order, none empty, none touching the next.

    It gives back the memory that it was charged for when it dies.
    """

    __slots__ = ("_budget", "_bytes", "spans")
    _budget: Budget
    _bytes: int
    spans: Spans

    def __del__(self) -> None:
        self._budget.memory -= self._bytes

    def __str__(self) -> Text:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        return sliced(self, key)

    def __iter__(self) -> Iterator[str]:
        return (_cut(self, at, at + 1) for at in range(len(self)))


def _make(value: str, spans: Spans) -> Text:
    """Make a text. Whatever text comes into being while rendering is made here."""
    budget = current.get()
    budget.tick(1 + len(value) // CHARS_PER_STEP)
    budget.room_for_text(len(value), is_ascii=value.isascii())
    text = str.__new__(Text, value)
    text.spans = spans
    text._budget = budget
    text._bytes = _OBJECT_BYTES + (len(value) if value.isascii() else 4 * len(value))
    budget.memory += text._bytes
    return text


def from_caller(value: str) -> Text:
    """Return ``value`` as text that came from the caller."""
    return _make(value, ((0, len(value)),) if value else ())


def opaque(value: str, *sources: Any) -> Text:
    """Return ``value`` as the caller's if any source is, even in part, and as the template's otherwise."""
    return from_caller(value) if any(isinstance(s, Text) and s.spans for s in sources) else _make(value, ())


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
    budget = current.get()
    budget.tick(len(pieces) + len(spans))
    budget.room_for_text(length, is_ascii=is_ascii)
    return _make("".join(pieces), tuple(spans))


def _cut(text: str, start: int, end: int) -> str:
    """Return ``text[start:end]`` for 0 <= start <= end <= len(text)."""
    spans: Spans = ()
    if isinstance(text, Text):
        current.get().tick(len(text.spans))
        spans = tuple((max(a, start) - start, min(b, end) - start) for a, b in text.spans if a < end and b > start)
    return _make(str.__getitem__(text, slice(start, end)), spans)


def sliced(text: str, key: SupportsIndex | slice) -> str:
    """Return ``text[key]``."""
    value = str.__getitem__(text, key)
    if not isinstance(key, slice):
        start = key.__index__() % len(text)
        return _cut(text, start, start + 1)
    start, _, step = key.indices(len(text))
    return _cut(text, start, start + len(value)) if step == 1 else opaque(value, text)


def string(value: Any) -> str:
    """Return str(value). Text stays as it is; the text of a container counts as the caller's throughout."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, (int, float, Undefined)):
        return _make(str(value), ())
    if not isinstance(value, (*CONTAINERS, *VIEWS)):
        raise TypeError(f"a {type(value).__name__} cannot be turned into text")
    current.get().room(sum(8 + written(item, 10) for _, item in walk(value)))  # \U000e0001 is the longest escape
    return from_caller(str(value))


def written(item: Any, escape: int) -> int:
    """Return how many characters repr() or JSON take for ``item`` at most, its elements not counted.

    ``escape`` is how many they take for a character that is not printable.
    """
    if isinstance(item, str):
        return 2 + len(item) * (2 if item.isprintable() else escape)
    return item.bit_length() // 3 if isinstance(item, int) else 32


def recased(text: str, how: Callable[[str], str]) -> Text:
    """Return ``how(text)`` for str.upper and the like."""
    # str.upper() works with 12 bytes for each character if one of them is not ASCII.
    current.get().room_for_text(len(text) if text.isascii() else 3 * len(text), is_ascii=text.isascii())
    value = how(text)
    # These never make fewer characters of one. So where the length is the same, each is still in its place.
    return _make(value, text.spans) if isinstance(text, Text) and len(value) == len(text) else opaque(value, text)


def indented(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Return ``text`` with each line but the first indented: jinja2's filter ``indent``."""
    if isinstance(width, int):
        current.get().room_for_text(width, is_ascii=True)
    by = width if isinstance(width, str) else " " * width
    # jinja2 adds the last newline, too, so that splitlines() does not lose it.
    lines = splitlines(joined([text, "\n"]))
    out: list[str] = []
    for at, line in enumerate(lines):
        if at:
            out.append("\n")
        if (line or blank) if at else first:
            out.append(by)
        out.append(line)
    return joined(out)


def _strip(name: str) -> Callable[..., str]:
    def method(text: str, *args: Any) -> str:
        current.get().tick(len(text) * sum(len(arg) for arg in args if arg is not None) // CHARS_PER_STEP)
        core = getattr(str, name)(text, *args)
        if name == "strip":
            start = len(text) - len(str.lstrip(text, *args))
        elif name in ("lstrip", "removeprefix"):
            start = len(text) - len(core)
        else:
            start = 0
        return _cut(text, start, start + len(core))

    return method


def _pieces(text: str, pieces: Iterable[str], sep_length: int | None) -> list[str]:
    """Cut ``text`` into ``pieces``, which are in it in this order.

    A separator of ``sep_length`` is between them. If that is not known, a piece is where it is found first, as none
    begins with anything that separates it from the one before.
    """
    cut, at = [], 0
    for piece in pieces:
        start = str.find(text, piece, at) if sep_length is None else at
        cut.append(_cut(text, start, start + len(piece)))
        at = start + len(piece) + (sep_length or 0)
    return cut


def _split(name: str) -> Callable[..., list[str]]:
    def method(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        if name == "rsplit" and sep is not None:
            _backwards(text, sep)
        few = 0 <= maxsplit <= _MAX_PIECES
        pieces = getattr(str, name)(text, sep, maxsplit if few else _MAX_PIECES)
        if len(pieces) > _MAX_PIECES and not few:
            raise ChatTemplateError(f"{name}() gives more than {_MAX_PIECES:,} pieces")
        return _pieces(text, pieces, None if sep is None else len(sep))

    return method


def splitlines(text: str, keepends: bool = False) -> list[str]:
    """Return the lines of ``text``, as str.splitlines() does."""
    if sum(text.count(end) for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029") > _MAX_PIECES:
        raise ChatTemplateError(f"splitlines() gives more than {_MAX_PIECES:,} pieces")
    return _pieces(text, str.splitlines(text, keepends), None)


def _partition(name: str) -> Callable[..., tuple[str, ...]]:
    def method(text: str, sep: str) -> tuple[str, ...]:
        if name == "rpartition":
            _backwards(text, sep)
        return tuple(_pieces(text, getattr(str, name)(text, sep), 0))

    return method


def _backwards(text: str, sep: str) -> None:
    """Charge for a search from the right, which str does in quadratic time at worst."""
    current.get().tick(len(text) * len(sep) // CHARS_PER_STEP)


def replaced(text: str, old: str, new: str, count: int | None = -1) -> str:
    """Return ``text`` with ``old`` replaced: what stays and what comes in each keep their origin."""
    found = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    if not found:
        return text
    length = len(text) + found * (len(new) - len(old))
    current.get().room_for_text(length, is_ascii=text.isascii() and new.isascii())
    if not old or found > _MAX_PIECES:
        return opaque(str.replace(text, old, new, found), text, new)
    pieces = _pieces(text, str.split(text, old, found), len(old))
    return joined([piece for pair in zip([new] * len(pieces), pieces, strict=True) for piece in pair][1:])


def _pad(name: str) -> Callable[..., Text]:
    def method(text: str, width: int, *fill: str) -> Text:
        current.get().room_for_text(max(width, 0), is_ascii=text.isascii() and "".join(fill).isascii())
        return opaque(getattr(str, name)(text, width, *fill), text, *fill)

    return method


def _plain(name: str) -> Callable[..., Any]:
    """Make a method that gives a number or a boolean."""

    def method(text: str, *args: Any) -> Any:
        if name in ("rfind", "rindex"):
            _backwards(text, args[0])
        return getattr(str, name)(text, *args)

    return method


def _join(text: str, pieces: Iterable[str]) -> str:
    out: list[str] = []
    for piece in each(pieces):
        if not isinstance(piece, str):
            raise TypeError(f"join() takes texts, not {type(piece).__name__}")
        out += (text, piece)
    return joined(out[1:])


_PERCENT = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<flags>[-#0 +]*\d{0,3}(?:\.\d{0,3})?)[hlL]?(?P<kind>[a-zA-Z%])|%")


def percent(text: str, values: Any) -> str:
    """Return ``text % values``. Widths have three digits at most and are no ``*``."""
    rest = list(values) if isinstance(values, tuple) else [values]
    keyed = False
    out: list[str] = []
    at = 0
    for match in _PERCENT.finditer(text):
        out.append(_cut(text, at, match.start()))
        at = match.end()
        flags, kind, key = match["flags"], match["kind"], match["key"]
        if kind is None:
            raise ValueError(f"not supported in a format: {text[match.start() : match.start() + 20]!r}")
        if kind == "%":
            out.append(_cut(text, at - 1, at))
            continue
        if key is not None:
            value, keyed = values[key], True
        elif rest:
            value = rest.pop(0)
        else:
            raise TypeError("not enough arguments for format string")
        if kind == "s":
            value = string(value)
        elif not isinstance(value, (int, float)):
            raise TypeError(f"%{kind} takes a number, not {type(value).__name__}")
        out.append(value if kind == "s" and not flags else opaque(f"%{flags}{kind}" % value, value))
    if rest and not keyed and not isinstance(values, dict):
        raise TypeError("not all arguments converted during string formatting")
    out.append(_cut(text, at, len(text)))
    return opaque(joined(out), text) if isinstance(text, Text) and text.spans else joined(out)


def formatted(formatter: SandboxedFormatter, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return ``text.format(*args, **kwargs)``. Widths have three digits at most and hold no further fields."""
    out: list[str] = []
    auto = 0
    for literal, field, spec, conversion in formatter.parse(text):
        out.append(literal)
        if field is None:
            continue
        if not field or field[0] in ".[":
            field = f"{auto}{field}"  # noqa: PLW2901
            auto += 1
        value, _ = formatter.get_field(field, args, kwargs)
        if conversion == "s":
            value = string(value)
        elif conversion or re.search(r"\d{4}|[{]", spec or ""):
            raise ValueError(f"not supported in a format: {conversion or spec!r}")
        out.append(opaque(format(value, spec), value) if spec else string(value))
    return opaque(joined(out), text) if isinstance(text, Text) and text.spans else joined(out)


METHODS: dict[str, Callable[..., Any]] = {
    **{name: _strip(name) for name in ("strip", "lstrip", "rstrip", "removeprefix", "removesuffix")},
    **{name: _split(name) for name in ("split", "rsplit")},
    **{name: _partition(name) for name in ("partition", "rpartition")},
    **{name: _pad(name) for name in ("center", "ljust", "rjust", "zfill")},
    **{name: _plain(name) for name in ("count", "endswith", "find", "index", "rfind", "rindex", "startswith")},
    **{name: _plain(name) for name in dir(str) if re.match("is[a-z]", name)},
    "capitalize": lambda text: recased(text, str.capitalize),
    "casefold": lambda text: recased(text, str.casefold),
    "lower": lambda text: recased(text, str.lower),
    "swapcase": lambda text: recased(text, str.swapcase),
    "title": lambda text: recased(text, str.title),
    "upper": lambda text: recased(text, str.upper),
    "join": _join,
    "replace": replaced,
    "splitlines": splitlines,
}
"""The methods of str that templates can reach, but for format(), which needs the environment."""
