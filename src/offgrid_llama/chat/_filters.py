"""The filters, tests and globals that chat templates have, each with its price.

Most of jinja2's filters are here, and the three functions that transformers adds: raise_exception, strftime_now and
its own tojson. Some are jinja2's own functions, metered from outside: those that go over their first argument and hand
on its elements. Those that make text are written anew on ``_spans``.

Left out, because chat templates do not use them and each would need a guard of its own, are the filters attr, batch,
filesizeformat, forceescape, groupby, pprint, random, slice, striptags, truncate, urlencode, urlize, wordcount,
wordwrap and xmlattr, and the globals cycler, joiner and lipsum.
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

from offgrid_llama.chat import _spans as spans
from offgrid_llama.chat._budget import CONTAINERS, compared, current, each, made, walk
from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jinja2.sandbox import SandboxedEnvironment

__all__ = ["FILTERS", "GLOBALS", "TESTS", "now"]


def _over(function: Callable[..., Any]) -> Callable[..., Any]:
    """Meter a filter of jinja2 that goes over its first argument and makes no text of its own."""
    at = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        for value in (*args[at + 1 :], *kwargs.values()):
            if isinstance(value, str):  # may be the name of an attribute, which is split at its dots
                current.get().room(16 * len(value))
        result = function(*args[:at], each(args[at]), *args[at + 1 :], **kwargs)
        if isinstance(result, Iterator):
            # It is worked out at once: iterators upon iterators, ever deeper, would overflow the C stack.
            return iter(made(list(each(result))))
        return made(result) if isinstance(result, CONTAINERS) else result

    return metered


def _metered(test: Any) -> Callable[..., bool]:
    """Meter a test of jinja2 that compares its arguments."""
    return lambda *args: test(*[compared(arg) for arg in args])


@pass_environment
def _join(environment: SandboxedEnvironment, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    values = each(value)
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    result: str = spans.METHODS["join"](spans.string(d), [spans.string(item) for item in values])
    return result


@pass_environment
def _sum(environment: SandboxedEnvironment, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    if isinstance(start, str):
        raise TypeError("sum() does not add text; use join()")
    values = each(iterable)
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
    text = spans.string(value)
    if len(text) > 100_000:  # jinja2's title() cuts it into words
        raise ChatTemplateError("title() takes up to 100,000 characters")
    return spans.recased(text, JINJA_FILTERS["title"])


def _escape(value: Any) -> str:
    text = spans.string(value)
    current.get().room_for_text(6 * len(text), is_ascii=text.isascii())
    return spans.opaque(str(escape(str.__str__(text))), text)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return ``value`` as JSON as transformers does: no HTML escapes, and letters other than ASCII as they are."""
    width = indent if isinstance(indent, int) else len(indent or "")
    if max(width, *(len(separator) for separator in separators or ("", ""))) > 16:
        raise ChatTemplateError("tojson() takes an indent and separators of up to 16 characters")
    budget = current.get()
    size = 0
    sources = []
    for depth, item in walk(value):
        # \u0000 for a control character, and with ensure_ascii two of these for what is outside of the BMP.
        size += 8 + depth * width + spans.written(item, 12 if ensure_ascii else 6)
        if isinstance(item, str) and ensure_ascii and not item.isascii():
            size += 12 * len(item)
        if isinstance(item, spans.Text) and item.spans:
            sources = [item]
    budget.room(size)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return spans.opaque(text, *sources)


def _raise_exception(message: Any) -> None:
    raise TemplateError(spans.string(message)[:1000])


def now() -> datetime:
    """Return what strftime_now() shows: the local time. It is a function so that tests can put another in its place."""
    return datetime.now()


def _strftime_now(format: str) -> str:  # noqa: A002 - transformers' name
    if len(format) > 256:  # the C library's widths make up to 256 times as much of it
        raise ChatTemplateError("strftime_now() takes a format of up to 256 characters")
    return spans.opaque(now().strftime(format), format)


def _of(name: str) -> Callable[..., Any]:
    """Make a filter of a method of str; what is no text yet is turned into text first."""
    return lambda value, *args: spans.METHODS[name](spans.string(value), *args)


_OVER = "dictsort first items last list map max min reject rejectattr reverse select selectattr sort unique"
_COMPARING = "== eq equalto != ne > gt greaterthan >= ge < lt lessthan <= le in sameas"

FILTERS: dict[str, Callable[..., Any]] = {
    **{name: JINJA_FILTERS[name] for name in ("abs", "count", "d", "default", "float", "length")},
    **{name: _over(JINJA_FILTERS[name]) for name in _OVER.split()},
    **{name: _of(name) for name in ("capitalize", "lower", "upper")},
    "center": lambda value, width=80: spans.METHODS["center"](spans.string(value), width),
    "e": _escape,
    "escape": _escape,
    "format": lambda value, *args, **kwargs: spans.percent(spans.string(value), kwargs or args),
    "indent": lambda s, width=4, first=False, blank=False: spans.indented(spans.string(s), width, first, blank),
    "int": _int,
    "join": _join,
    "replace": lambda s, old, new, count=-1: spans.replaced(
        spans.string(s), spans.string(old), spans.string(new), count
    ),
    "round": _round,
    "safe": spans.string,
    "string": spans.string,
    "sum": _sum,
    "title": _title,
    "tojson": _tojson,
    "trim": lambda value, chars=None: spans.METHODS["strip"](spans.string(value), chars),
}

TESTS: dict[str, Any] = {
    **JINJA_TESTS,
    **{name: _metered(JINJA_TESTS[name]) for name in _COMPARING.split()},
    "lower": lambda value: spans.string(value).islower(),
    "upper": lambda value: spans.string(value).isupper(),
}

GLOBALS: dict[str, Any] = {
    "dict": dict,
    "namespace": Namespace,
    "raise_exception": _raise_exception,
    "range": safe_range,
    "strftime_now": _strftime_now,
}
