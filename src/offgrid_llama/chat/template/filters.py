"""The filters, tests and globals that chat templates have, each with its price.

Most of jinja2's filters are here, and the three functions that transformers adds: raise_exception, strftime_now and its
own tojson. Filters that iterate over their first argument and pass its elements on are jinja2's own functions, charged
for from outside. Filters that make text are written anew on ``origin``.

Left out are the filters attr, batch, filesizeformat, forceescape, groupby, pprint, random, slice, striptags, truncate,
urlencode, urlize, wordcount, wordwrap and xmlattr, and the globals cycler, joiner and lipsum: chat templates do not use
them, and each would need a guard of its own.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, pass_environment
from jinja2.filters import FILTERS as JINJA_FILTERS
from jinja2.filters import make_attrgetter
from jinja2.sandbox import safe_range
from jinja2.tests import TESTS as JINJA_TESTS
from jinja2.utils import Namespace
from markupsafe import escape

from offgrid_llama.errors import ChatTemplateError

from .formatting import percent
from .limits import CONTAINERS, charge_comparison, charge_container, charge_iteration, current_budget, walk
from .origin import Text, opaque, string, written_length
from .text_methods import METHODS, indented, recased, replaced

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2.sandbox import SandboxedEnvironment

__all__ = ["FILTERS", "GLOBALS", "TESTS", "now"]


def _over(function: Callable[..., Any]) -> Callable[..., Any]:
    """Charge for a filter of jinja2 that iterates over its first argument and makes no text of its own."""
    at = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        for value in (*args[at + 1 :], *kwargs.values()):
            if isinstance(value, str):  # it may be the name of an attribute, which is split at its dots
                current_budget.get().check_memory(16 * len(value))
        result = function(*args[:at], charge_iteration(args[at]), *args[at + 1 :], **kwargs)
        if isinstance(result, Iterator):
            # The elements are worked out at once: iterators upon iterators, ever deeper, would overflow the C stack.
            return iter(charge_container(list(charge_iteration(result))))
        return charge_container(result) if isinstance(result, CONTAINERS) else result

    return metered


def _metered(test: Any) -> Callable[..., bool]:
    """Charge for a test of jinja2 that compares its arguments."""
    return lambda *args: test(*[charge_comparison(arg) for arg in args])


@pass_environment
def _join(environment: SandboxedEnvironment, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    values = charge_iteration(value)
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    result: str = METHODS["join"](string(d), [string(item) for item in values])
    return result


@pass_environment
def _sum(environment: SandboxedEnvironment, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    if isinstance(start, str):
        raise TypeError("sum() does not add text; use join()")
    values = charge_iteration(iterable)
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    no_context: Any = None
    return functools.reduce(lambda a, b: environment.call_binop(no_context, "+", a, b), values, start)


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > 1000:  # int() takes quadratic time
        return default
    result: int = JINJA_FILTERS["int"](value, default, base)
    return result


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 100:  # 10**precision is what it calculates with
        raise ChatTemplateError(f"round() to {precision} digits")
    result: float = JINJA_FILTERS["round"](value, precision, method)
    return result


def _title(value: Any) -> str:
    text = string(value)
    if len(text) > 100_000:  # jinja2's title() cuts it into words
        raise ChatTemplateError("title() takes up to 100,000 characters")
    return recased(text, JINJA_FILTERS["title"])


def _escape(value: Any) -> str:
    text = string(value)
    current_budget.get().check_text(6 * len(text), is_ascii=text.isascii())
    return opaque(str(escape(str.__str__(text))), text)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return ``value`` as JSON, as transformers does: without HTML escapes, letters outside of ASCII unchanged."""
    width = indent if isinstance(indent, int) else len(indent or "")
    if max(width, *(len(separator) for separator in separators or ("", ""))) > 16:
        raise ChatTemplateError("tojson() takes an indent and separators of up to 16 characters")
    size, source = _json_size(value, width, ensure_ascii=ensure_ascii)
    current_budget.get().check_memory(size)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return opaque(text, source)


def _json_size(value: Any, width: int, *, ensure_ascii: bool) -> tuple[int, Text | None]:
    """Return how many characters a value takes as JSON at most, and a text of the caller's in it if it has one."""
    # \u0000 for a control character, and with ensure_ascii two of these for a character outside of the BMP.
    escape = 12 if ensure_ascii else 6
    size = 0
    source = None
    for depth, item in walk(value):
        size += 8 + depth * width + written_length(item, escape)
        if ensure_ascii and isinstance(item, str) and not item.isascii():
            size += 12 * len(item)
        if isinstance(item, Text) and item.spans:
            source = item
    return size, source


def _raise_exception(message: Any) -> None:
    raise TemplateError(string(message)[:1000])


def now() -> datetime:
    """Return what strftime_now() shows: the local time. It is a function so that tests can put another in its place."""
    return datetime.now()


def _strftime_now(format: str) -> str:  # noqa: A002 - transformers' name
    if len(format) > 256:  # the C library's widths make up to 256 times as much of it
        raise ChatTemplateError("strftime_now() takes a format of up to 256 characters")
    return opaque(now().strftime(format), format)


def _of(name: str) -> Callable[..., Any]:
    """Make a filter of a method of str; a value that is no text is turned into text first."""
    return lambda value, *args: METHODS[name](string(value), *args)


_OVER = "dictsort first items last list map max min reject rejectattr reverse select selectattr sort unique"
_COMPARING = "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in sameas"

FILTERS: dict[str, Callable[..., Any]] = {
    **{name: JINJA_FILTERS[name] for name in ("abs", "count", "d", "default", "float", "length")},
    **{name: _over(JINJA_FILTERS[name]) for name in _OVER.split()},
    **{name: _of(name) for name in ("capitalize", "lower", "upper")},
    "center": lambda value, width=80: METHODS["center"](string(value), width),
    "e": _escape,
    "escape": _escape,
    "format": lambda value, *args, **kwargs: percent(string(value), kwargs or args),
    "indent": lambda s, width=4, first=False, blank=False: indented(string(s), width, first, blank),
    "int": _int,
    "join": _join,
    "replace": lambda s, old, new, count=-1: replaced(string(s), string(old), string(new), count),
    "round": _round,
    "safe": string,
    "string": string,
    "sum": _sum,
    "title": _title,
    "tojson": _tojson,
    "trim": lambda value, chars=None: METHODS["strip"](string(value), chars),
}

TESTS: dict[str, Any] = {
    **JINJA_TESTS,
    **{name: _metered(JINJA_TESTS[name]) for name in _COMPARING.split()},
    "lower": lambda value: string(value).islower(),
    "upper": lambda value: string(value).isupper(),
}

GLOBALS: dict[str, Any] = {
    "dict": dict,
    "namespace": Namespace,
    "raise_exception": _raise_exception,
    "range": safe_range,
    "strftime_now": _strftime_now,
}
