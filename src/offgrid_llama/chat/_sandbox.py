"""The jinja2 environment that chat templates are rendered in.

It starts from ``ImmutableSandboxedEnvironment``, set up as transformers sets it up, and closes two gaps. A template may
use time and memory without end there, and the origin of text is lost (``_budget`` and ``_spans`` say how these are
dealt with). This file makes sure that nothing gets around them, so it is about every door out of a template:

- operators: + - * / // % ** come through ``call_binop``; ~, slices, literals, the right side of comparisons and what
  a loop goes over are wrapped in filters by ``_Metering``, a pass over the parsed template
- output: each ``{{ }}`` comes through ``finalize``, and ``concat`` joins what macros and set blocks gather; each output
  statement is charged for its constant text
- calls: ``call`` sees them all and sends those to methods of str to ``_spans``
- attributes and items: an allow-list by type; no attribute of any other type
- filters, tests and globals: allow-lists below

Left out of jinja2's filters, because no chat template uses them and each would need a guard of its own: attr, batch,
filesizeformat, forceescape, groupby, pprint, random, slice, striptags, truncate, urlencode, urlize, wordcount,
wordwrap, xmlattr; of its globals: cycler, joiner, lipsum. There is no loader, so include, import and extends fail.
"""

from __future__ import annotations

import functools
import json
import math
from datetime import datetime
from types import BuiltinMethodType
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, Undefined, nodes, pass_context, pass_environment
from jinja2.ext import Extension
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.filters import do_title as jinja_title
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.tests import TESTS
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import escape

from offgrid_llama.chat import _spans as spans
from offgrid_llama.chat._budget import CONTAINERS, VIEWS, current, each, made, walk, weigh
from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jinja2 import Environment, Template
    from jinja2.parser import Parser
    from jinja2.runtime import Context

__all__ = ["compile_template"]

_MAX_BITS = 4096  # of an integer

_ATTRIBUTES: tuple[tuple[type, frozenset[str]], ...] = (
    (str, frozenset({*spans.METHODS, "format"})),
    (dict, frozenset({"get", "items", "keys", "values", "copy"})),
    (list, frozenset({"count", "index", "copy"})),
    (tuple, frozenset({"count", "index"})),
    (LoopContext, frozenset(name for name in dir(LoopContext) if not name.startswith("_"))),
    (Macro, frozenset({"name", "arguments", "catch_kwargs", "catch_varargs", "caller"})),
)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    concat = staticmethod(lambda pieces: spans.joined(list(pieces)))  # type: ignore[assignment]

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_"):
            return False
        for kind, names in _ATTRIBUTES:
            if isinstance(obj, kind):
                return attr in names
        return isinstance(obj, Namespace)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):  # hash() goes through all of it
            current.get().tick(weigh(argument))
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if isinstance(value, BuiltinMethodType) and isinstance(value.__self__, str) and value.__name__ == "format":
            text = value.__self__
            return lambda *args, **kwargs: spans.formatted(SandboxedFormatter(self), text, args, kwargs)
        return None

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("\0"):  # map() takes any name, and the wrappers' are not for templates
            raise ChatTemplateError(f"no filter named {name!r}")
        return super().call_filter(name, *args, **kwargs)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: B902, N805
        budget = current.get()
        budget.tick(1 + len(args) + len(kwargs))
        budget.hold(16 * len(args))
        for value in args:
            if isinstance(value, (*CONTAINERS, *VIEWS)):
                weigh(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            for name in ("_loop_vars", "_block_vars"):  # jinja2's own, for callables that take a context
                kwargs.pop(name, None)
            budget.tick(1 + len(owner) // 256)
            return spans.METHODS[__obj.__name__](owner, *args, **kwargs)
        if isinstance(__obj, LoopContext):  # a recursive loop; what it goes over is not seen by _Metering
            args = tuple(each(value) for value in args)
        result = super().call(__context, __obj, *args, **kwargs)
        return made(result) if isinstance(result, CONTAINERS) and id(result) not in budget.weights else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = current.get()
        budget.tick()
        if operator == "%" and isinstance(left, str):
            return spans.percent(left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return spans.joined([left, right])
        if operator == "*":
            if isinstance(left, int):
                left, right = right, left
            if isinstance(right, int) and isinstance(left, str):
                budget.room_for_text(len(left) * max(right, 0), is_ascii=left.isascii())
                return spans.opaque(str(left) * right, left)
            if isinstance(right, int) and isinstance(left, (list, tuple)):
                budget.room(8 * len(left) * max(right, 0))
        if isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 0)}
            if bits.get(operator, 0) > _MAX_BITS:
                raise ChatTemplateError(f"an integer of more than {_MAX_BITS} bits")
        if isinstance(left, VIEWS):
            raise TypeError(f"{operator} is not for {type(left).__name__}")
        result = super().call_binop(context, operator, left, right)
        return made(result) if isinstance(result, CONTAINERS) else result


class _Metering(NodeTransformer):
    """Wrap what jinja2 offers no hook for into filters whose names no template can write."""

    def wrap(self, name: str, node: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = self.wrap("\0each", node.iter)
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self.wrap("\0made", self.generic_visit(node))  # type: ignore[arg-type]

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self.visit_List(node) if node.ctx == "load" else node  # type: ignore[arg-type]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self.wrap("\0concat", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            # A literal lives no longer than the comparison, and its size is the source's.
            if isinstance(operand.expr, nodes.Filter) and operand.expr.name == "\0made":
                operand.expr = operand.expr.node
            elif not isinstance(operand.expr, nodes.Const):
                operand.expr = self.wrap("\0compared", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        none = nodes.Const(None, lineno=node.lineno)
        return self.wrap("\0sliced", node.node, *(part or none for part in (node.arg.start, node.arg.stop, node.arg.step)))

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        self.generic_visit(node)
        size = 16 * len(node.nodes) + sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        return [nodes.ExprStmt(self.wrap("\0output", nodes.Const(size, lineno=node.lineno)), lineno=node.lineno), node]

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:
        # Markup has operators of its own, which know nothing of origins.
        raise ChatTemplateError(f"line {node.lineno}: autoescape is not for chat templates")

    visit_EvalContextModifier = visit_ScopedEvalContextModifier


class _Generation(Extension):
    """``{% generation %}``: marks the assistant's text for training, nothing else. Assignments in it stay in it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


def _compared(value: Any) -> Any:
    current.get().tick(weigh(value))
    return value


def _output(size: int) -> None:
    current.get().tick(1 + size // 256)
    current.get().hold(size)


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    key = slice(start, stop, step)
    if isinstance(value, str):
        return spans.sliced(value, key)
    if isinstance(value, CONTAINERS):
        current.get().room(8 * len(value))
        return made(value[key])
    return value[key]


def _over(function: Callable[..., Any]) -> Callable[..., Any]:
    """Meter a filter of jinja2 that goes over its first argument and makes no text of its own."""
    at = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        for value in (*args[at + 1 :], *kwargs.values()):
            if isinstance(value, str):  # may be split at its dots into the names of attributes
                current.get().room(16 * len(value))
        result = function(*args[:at], each(args[at]), *args[at + 1 :], **kwargs)
        return made(result) if isinstance(result, CONTAINERS) and id(result) not in current.get().weights else result

    return metered


@pass_environment
def _join(environment: Environment, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    values: Iterable[Any] = each(value)
    if attribute is not None:
        values = map(make_attrgetter(environment, attribute), values)
    return str(spans.METHODS["join"](spans.string(d), [spans.string(item) for item in values]))


def _int(value: Any, default: int = 0, base: int = 10) -> int:
    if isinstance(value, str) and len(value) > 1000:  # int() takes quadratic time
        return default
    number: int = FILTERS["int"](value, default, base)
    return number


def _round(value: float, precision: int = 0, method: str = "common") -> float:
    if abs(precision) > 100:
        raise ChatTemplateError(f"round() to {precision} digits")
    number: float = FILTERS["round"](value, precision, method)
    return number


@pass_environment
def _sum(environment: _Environment, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    if isinstance(start, str):
        raise TypeError("sum() cannot add texts; use join()")
    values = each(iterable) if attribute is None else map(make_attrgetter(environment, attribute), each(iterable))
    context: Any = None
    for value in values:
        start = environment.call_binop(context, "+", start, value)
    return start


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return ``value`` as JSON, as transformers has it: no HTML escapes, and other letters than ASCII as they are."""
    if (isinstance(indent, int) and indent > 16) or any(len(s) > 16 for s in (separators or ()) + (indent or "",) if isinstance(s, str)):
        raise ChatTemplateError("tojson() takes an indent and separators of up to 16 characters")
    width = indent if isinstance(indent, int) else len(indent or "")
    size, source = 0, None
    for depth, item in walk(value):
        size += 40 + depth * width
        if isinstance(item, str):
            # A control character becomes \u0000, and with ensure_ascii one outside of the BMP becomes two of these.
            size += len(item) * (2 if item.isprintable() and (item.isascii() or not ensure_ascii) else 12 if ensure_ascii else 6)
            source = item if isinstance(item, spans.Text) and item.spans else source
    current.get().room(size)
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return spans.opaque(text, source)


def _raise_exception(message: Any) -> None:
    raise TemplateError(spans.string(message)[:1000])


def now() -> datetime:
    """Return the local time that ``strftime_now`` shows; a function of its own for the tests."""
    return datetime.now()  # noqa: DTZ005


def _strftime_now(format: str) -> str:  # noqa: A002
    if len(format) > 256:  # the C library's widths can make it up to 256 times as long
        raise ChatTemplateError("strftime_now() takes a format of up to 256 characters")
    return spans.opaque(now().strftime(format), format)


@pass_context
def _finalize(_: Context, value: Any) -> str:
    # Being told the context keeps jinja2 from evaluating constant expressions when it compiles, outside all limits.
    return spans.string(value)


def _text_filter(name: str, *arguments: str) -> Callable[..., Any]:
    """Make the filter of a method of str: the value is turned into text first."""
    return lambda value, *args, **kwargs: spans.METHODS[name](spans.string(value), *args, **kwargs)


_FILTERS: dict[str, Callable[..., Any]] = {
    **{name: FILTERS[name] for name in ("abs", "count", "d", "default", "float", "length")},
    **{
        name: _over(FILTERS[name])
        for name in ("dictsort", "first", "items", "last", "list", "map", "max", "min", "reject", "rejectattr")
        + ("reverse", "select", "selectattr", "sort", "unique")
    },
    **{name: _text_filter(name) for name in ("capitalize", "lower", "replace", "upper")},
    "center": lambda value, width=80: spans.METHODS["center"](spans.string(value), width),
    "e": lambda value: spans.opaque(str(escape(_for_escape(value))), value),
    "format": lambda value, *args, **kwargs: spans.percent(spans.string(value), kwargs or args),
    "indent": lambda s, *args, **kwargs: spans.indented(spans.string(s), *args, **kwargs),
    "int": _int,
    "join": _join,
    "round": _round,
    "safe": spans.string,
    "string": spans.string,
    "sum": _sum,
    "title": lambda value: spans.recased(spans.string(value), jinja_title),
    "tojson": _tojson,
    "trim": lambda value, chars=None: spans.METHODS["strip"](spans.string(value), chars),
    "\0each": each,
    "\0made": made,
    "\0compared": _compared,
    "\0concat": lambda values: spans.joined([spans.string(value) for value in values]),
    "\0sliced": _sliced,
    "\0output": _output,
}


def _for_escape(value: Any) -> str:
    text = spans.string(value)
    current.get().room_for_text(6 * len(text), is_ascii=text.isascii())
    return text


def _metered_test(test: Callable[..., bool]) -> Callable[..., bool]:
    @functools.wraps(test)
    def metered(*args: Any) -> bool:
        for value in args:
            _compared(value)
        return test(*args)

    return metered
