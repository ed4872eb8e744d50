"""The methods of str that templates can reach, written anew so that their results keep the origin of each character."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from offgrid_llama.errors import ChatTemplateError

from .limits import CHARACTERS_PER_STEP, charge_iteration, current_budget
from .origin import Text, cut, joined, made_text, opaque

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["METHODS", "indented", "recased", "replaced", "splitlines"]

SPLIT_MAX_PIECES = 100_000
"""The pieces of one split(); the same as the sandbox's limit for range()."""


def recased(text: str, how: Callable[[str], str]) -> Text:
    """Return ``how(text)`` for str.upper and the like."""
    # str.upper() works with 12 bytes for each character if one of them is not ASCII.
    current_budget.get().check_text(len(text) if text.isascii() else 3 * len(text), is_ascii=text.isascii())
    value = how(text)
    # No character becomes fewer than one. So where the length is the same, each is still in its place.
    return made_text(value, text.spans) if isinstance(text, Text) and len(value) == len(text) else opaque(value, text)


def indented(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """Return ``text`` with each line but the first indented: jinja2's filter ``indent``."""
    if isinstance(width, int):
        current_budget.get().check_text(width, is_ascii=True)
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


def splitlines(text: str, keepends: bool = False) -> list[str]:
    """Return the lines of ``text``, as str.splitlines() does."""
    if sum(text.count(end) for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029") > SPLIT_MAX_PIECES:
        raise ChatTemplateError(f"splitlines() gives more than {SPLIT_MAX_PIECES:,} pieces")
    return _pieces(text, str.splitlines(text, keepends), None)


def replaced(text: str, old: str, new: str, count: int | None = -1) -> str:
    """Return ``text`` with ``old`` replaced: what stays and what comes in each keep their origin."""
    found = text.count(old) if count is None or count < 0 else min(text.count(old), count)
    if not found:
        return text
    length = len(text) + found * (len(new) - len(old))
    current_budget.get().check_text(length, is_ascii=text.isascii() and new.isascii())
    if not old or found > SPLIT_MAX_PIECES:
        return opaque(str.replace(text, old, new, found), text, new)
    pieces = _pieces(text, str.split(text, old, found), len(old))
    return joined([piece for pair in zip([new] * len(pieces), pieces, strict=True) for piece in pair][1:])


def _pieces(text: str, pieces: Iterable[str], sep_length: int | None) -> list[str]:
    """Cut ``text`` into ``pieces``, which are in it in this order.

    A separator of ``sep_length`` is between them. If that is not known, a piece is where it is found first, as none
    begins with anything that separates it from the one before.
    """
    found, at = [], 0
    for piece in pieces:
        start = str.find(text, piece, at) if sep_length is None else at
        found.append(cut(text, start, start + len(piece)))
        at = start + len(piece) + (sep_length or 0)
    return found


def _charge_search_from_right(text: str, sep: str) -> None:
    """Charge for a search from the right, which str does in quadratic time at worst."""
    current_budget.get().tick(len(text) * len(sep) // CHARACTERS_PER_STEP)


# Makers of methods by their name -------------------------------------------------------------------------------------


def _strip(name: str) -> Callable[..., str]:
    def method(text: str, *args: Any) -> str:
        n_stripped = sum(len(arg) for arg in args if arg is not None)
        current_budget.get().tick(len(text) * n_stripped // CHARACTERS_PER_STEP)
        core = getattr(str, name)(text, *args)
        if name == "strip":
            start = len(text) - len(str.lstrip(text, *args))
        elif name in ("lstrip", "removeprefix"):
            start = len(text) - len(core)
        else:
            start = 0
        return cut(text, start, start + len(core))

    return method


def _split(name: str) -> Callable[..., list[str]]:
    def method(text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        if name == "rsplit" and sep is not None:
            _charge_search_from_right(text, sep)
        few = 0 <= maxsplit <= SPLIT_MAX_PIECES
        pieces = getattr(str, name)(text, sep, maxsplit if few else SPLIT_MAX_PIECES)
        if len(pieces) > SPLIT_MAX_PIECES and not few:
            raise ChatTemplateError(f"{name}() gives more than {SPLIT_MAX_PIECES:,} pieces")
        return _pieces(text, pieces, None if sep is None else len(sep))

    return method


def _partition(name: str) -> Callable[..., tuple[str, ...]]:
    def method(text: str, sep: str) -> tuple[str, ...]:
        if name == "rpartition":
            _charge_search_from_right(text, sep)
        return tuple(_pieces(text, getattr(str, name)(text, sep), 0))

    return method


def _pad(name: str) -> Callable[..., Text]:
    def method(text: str, width: int, *fill: str) -> Text:
        current_budget.get().check_text(max(width, 0), is_ascii=text.isascii() and "".join(fill).isascii())
        return opaque(getattr(str, name)(text, width, *fill), text, *fill)

    return method


def _plain(name: str) -> Callable[..., Any]:
    """Make a method that returns a number or a boolean."""

    def method(text: str, *args: Any) -> Any:
        if name in ("rfind", "rindex"):
            _charge_search_from_right(text, args[0])
        return getattr(str, name)(text, *args)

    return method


def _join(text: str, pieces: Iterable[str]) -> str:
    out: list[str] = []
    for piece in charge_iteration(pieces):
        if not isinstance(piece, str):
            raise TypeError(f"join() takes texts, not {type(piece).__name__}")
        out += (text, piece)
    return joined(out[1:])


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
