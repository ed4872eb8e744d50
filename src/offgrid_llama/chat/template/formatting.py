"""The ``%`` of texts and str.format(), written anew so that each character of the result keeps its origin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .origin import Text, cut, joined, opaque, string

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2.sandbox import SandboxedFormatter

__all__ = ["formatted", "percent"]

_PERCENT = re.compile(r"%(?:\((?P<key>[^()]*)\))?(?P<flags>[-#0 +]*\d{0,3}(?:\.\d{0,3})?)[hlL]?(?P<kind>[a-zA-Z%])|%")
_REFUSED_SPEC = re.compile(r"\d{4}|[{]")


def percent(text: str, values: Any) -> str:
    """Return ``text % values``. Widths have three digits at most and are no ``*``."""
    arguments = _PercentArguments(values)
    out: list[str] = []
    at = 0
    for match in _PERCENT.finditer(text):
        out.append(cut(text, at, match.start()))
        at = match.end()
        kind = match["kind"]
        if kind is None:
            raise ValueError(f"not supported in a format: {text[match.start() : match.start() + 20]!r}")
        if kind == "%":
            out.append(cut(text, at - 1, at))
        else:
            out.append(_by_percent(arguments.take(match["key"]), match["flags"], kind))
    arguments.check_all_taken()
    out.append(cut(text, at, len(text)))
    return _in_origin_of(text, out)


class _PercentArguments:
    """The values on the right of ``%``."""

    def __init__(self, values: Any) -> None:
        self._values = values
        self._rest = list(values) if isinstance(values, tuple) else [values]
        self._keyed = False

    def take(self, key: str | None) -> Any:
        """Return the next value, or that of a key."""
        if key is not None:
            self._keyed = True
            return self._values[key]
        if not self._rest:
            raise TypeError("not enough arguments for format string")
        return self._rest.pop(0)

    def check_all_taken(self) -> None:
        """Refuse values that the format did not take."""
        if self._rest and not self._keyed and not isinstance(self._values, dict):
            raise TypeError("not all arguments converted during string formatting")


def _by_percent(value: Any, flags: str, kind: str) -> str:
    """Return a value as ``%``, flags and kind write it."""
    if kind == "s":
        text = value = string(value)
        if not flags:
            return text
    elif not isinstance(value, (int, float)):
        raise TypeError(f"%{kind} takes a number, not {type(value).__name__}")
    return opaque(f"%{flags}{kind}" % value, value)


def formatted(formatter: SandboxedFormatter, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return ``text.format(*args, **kwargs)``. Widths have three digits at most and hold no further fields."""
    out: list[str] = []
    next_index = 0
    for literal, name, spec, conversion in formatter.parse(text):
        out.append(literal)
        if name is None:
            continue
        field = name
        if not name or name[0] in ".[":
            field = f"{next_index}{name}"
            next_index += 1
        value, _ = formatter.get_field(field, args, kwargs)
        out.append(_by_spec(value, spec or "", conversion or ""))
    return _in_origin_of(text, out)


def _by_spec(value: Any, spec: str, conversion: str) -> str:
    """Return a value as a field of a format writes it."""
    if conversion not in ("", "s"):
        raise ValueError(f"not supported in a format: {conversion!r}")
    if _REFUSED_SPEC.search(spec):
        raise ValueError(f"not supported in a format: {spec!r}")
    if conversion:
        value = string(value)
    return opaque(format(value, spec), value) if spec else string(value)


def _in_origin_of(text: str, pieces: Sequence[str]) -> str:
    """Return the pieces as one text, which is all the caller's where the format has characters of the caller."""
    return opaque(joined(pieces), text) if isinstance(text, Text) and text.spans else joined(pieces)
