"""The jinja2 environment that chat templates are rendered in.

It is ``ImmutableSandboxedEnvironment``, set up as transformers sets it up, with two gaps closed: there a template may
use time and memory without end, and the origin of text is lost. ``_budget`` and ``_spans`` say how these are dealt
with; this file sees to it that nothing gets around them. So it goes through every door that jinja2 has:

- operators: + - * / // % ** come through ``call_binop``. Slices, ~, literals, comparisons and what a loop goes over
  have no hook, so ``_Metering`` wraps them in filters after parsing.
- output: each ``{{ }}`` comes through ``finalize``, and ``concat`` joins what a macro or a set block has gathered. The
  constant text of each output statement is charged for before it.
- calls: all come through ``call``, which sends those of methods of str to ``_spans``.
- attributes: an allow-list by type.
- filters, tests and globals: those of ``_filters``.
- other templates: there is no loader, so include, import and extends fail.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from jinja2 import nodes, pass_context
from jinja2.ext import Extension
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from offgrid_llama.chat import _spans as spans
from offgrid_llama.chat._budget import CHARS_PER_STEP, CONTAINERS, VIEWS, compared, current, each, made, weigh
from offgrid_llama.chat._filters import FILTERS, GLOBALS, TESTS
from offgrid_llama.errors import ChatTemplateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jinja2 import Template
    from jinja2.lexer import Token, TokenStream
    from jinja2.parser import Parser
    from jinja2.runtime import Context

__all__ = ["compile_template"]

_MAX_BITS = 4096  # of an integer
_MAX_CALLS = 100  # nested in one another
_MAX_TOKENS = 20_000  # of jinja2's lexer. The largest templates known have 2,500; the limit compiles in a second.

_LOOP = "changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"
_ATTRIBUTES: dict[type, frozenset[str]] = {
    str: frozenset({*spans.METHODS, "format"}),
    spans.Text: frozenset({*spans.METHODS, "format"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    LoopContext: frozenset(_LOOP.split()),
    Macro: frozenset({"arguments", "caller", "catch_kwargs", "catch_varargs", "name"}),
}


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    concat = staticmethod(lambda pieces: spans.joined(list(pieces)))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        names = _ATTRIBUTES.get(type(obj))
        return attr in names if names is not None else type(obj) is Namespace and not attr.startswith("_")

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, compared(argument) if isinstance(argument, tuple) else argument)

    def wrap_str_format(self, value: Any) -> None:
        """Leave str.format() as it is: ``call`` sees to it, as to all methods of str."""

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # map() takes any name, also one that only _Metering may use.
        return super().call_filter(name.lstrip("\0"), *args, **kwargs)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        for name in ("_loop_vars", "_block_vars"):  # jinja2's own, for callables that take a context; there are none
            kwargs.pop(name, None)
        budget = current.get()
        count = len(args) + len(kwargs)
        budget.tick(1 + count)
        if count > 16:  # from a list with a star; each call keeps some copies of them
            budget.hold(128 * count)
        for value in (*args, *kwargs.values()):
            if isinstance(value, (*CONTAINERS, *VIEWS)):
                weigh(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            budget.tick(len(owner) // CHARS_PER_STEP)
            if __obj.__name__ == "format":
                return spans.formatted(SandboxedFormatter(__self), owner, args, kwargs)
            return spans.METHODS[__obj.__name__](owner, *args, **kwargs)
        if isinstance(__obj, LoopContext):  # A recursive loop: _Metering saw only what the outermost one goes over.
            args = tuple(each(value) for value in args)
        budget.depth += 1
        if budget.depth > _MAX_CALLS:
            raise ChatTemplateError(f"calls are nested more than {_MAX_CALLS} deep")
        try:
            result = super().call(__context, __obj, *args, **kwargs)
        finally:
            budget.depth -= 1
        return made(result) if isinstance(result, CONTAINERS) else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget = current.get()
        budget.tick()
        if operator == "%" and isinstance(left, str):
            return spans.percent(left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return spans.joined([left, right])
        if operator == "*" and isinstance(left, int):
            left, right = right, left
        if operator == "*" and isinstance(right, int):
            if isinstance(left, str):
                budget.room_for_text(len(left) * max(right, 0), is_ascii=left.isascii())
                return spans.opaque(str.__mul__(left, right), left)
            if isinstance(left, (list, tuple)):
                budget.room(8 * len(left) * max(right, 0))
        if isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 0)}
            if bits.get(operator, 0) > _MAX_BITS:
                raise ChatTemplateError(f"an integer has more than {_MAX_BITS} bits")
        if isinstance(left, VIEWS):
            raise TypeError(f"{operator} does not take {type(left).__name__}")
        result = super().call_binop(context, operator, left, right)
        return made(result) if isinstance(result, CONTAINERS) else result


def _wrap(name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class _Metering(NodeTransformer):
    """Wrap what has no hook into filters whose names a template cannot write."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _wrap("\0each", node.iter)
        return node

    def visit_List(self, node: nodes.Literal) -> nodes.Expr:  # noqa: N802
        self.generic_visit(node)
        return node if isinstance(node, nodes.Tuple) and node.ctx != "load" else _wrap("\0made", node)

    visit_Dict = visit_Tuple = visit_List  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _wrap("\0concat", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        node.expr = self.visit(node.expr)
        for operand in node.ops:
            # A literal of constants, as in `role in ["user", "tool"]`, is common, small and gone at once.
            if not _is_constant(operand.expr):
                operand.expr = _wrap("\0compared", self.visit(operand.expr))
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _wrap("\0sliced", node.node, *(part or nodes.Const(None, lineno=node.lineno) for part in parts))

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:  # noqa: N802
        self.generic_visit(node)
        size = sum(16 + (len(part.data) if isinstance(part, nodes.TemplateData) else 0) for part in node.nodes)
        charge = _wrap("\0output", nodes.Const(size, lineno=node.lineno))
        return [nodes.ExprStmt(charge, lineno=node.lineno), node]

    def visit_ScopedEvalContextModifier(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        # It would bring in Markup, a str with operators of its own that know nothing of origins.
        raise ChatTemplateError(f"line {node.lineno}: autoescape is not for chat templates")

    visit_EvalContextModifier = visit_ScopedEvalContextModifier  # noqa: N815


def _is_constant(node: nodes.Expr) -> bool:
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const)


def _output(size: int) -> None:
    current.get().tick(1 + size // CHARS_PER_STEP)
    current.get().hold(size)


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    key = slice(start, stop, step)
    if isinstance(value, str):
        return spans.sliced(value, key)
    if isinstance(value, (list, tuple)):
        current.get().room(8 * len(value))
        return made(value[key])
    return value[key]


class _Language(Extension):
    """What the language of chat templates has beyond jinja2's: a tag of transformers, and a limit to their size.

    ``{% generation %}`` marks the assistant's text for training and does nothing here. Assignments in it stay in it.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2's type

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for count, token in enumerate(stream, 1):
            if count > _MAX_TOKENS:
                raise ChatTemplateError(f"line {token.lineno}: more than {_MAX_TOKENS:,} words and signs")
            yield token

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


@pass_context
def _finalize(_context: Context, value: Any) -> str:
    # Asking for the context keeps jinja2 from working out constant expressions when it compiles, before any limit.
    return spans.string(value)


@functools.cache
def _environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_finalize,
        extensions=[_Language, "jinja2.ext.loopcontrols"],
    )
    environment.filters = {
        **FILTERS,
        "\0each": each,
        "\0made": made,
        "\0compared": compared,
        "\0concat": lambda values: spans.joined([spans.string(value) for value in values]),
        "\0sliced": _sliced,
        "\0output": _output,
    }
    environment.tests = {**TESTS}
    environment.globals = {**GLOBALS}
    return environment


def compile_template(source: str) -> Template:
    """Compile ``source``. Raises jinja2's TemplateSyntaxError, ``ChatTemplateError`` or RecursionError."""
    environment = _environment()
    tree = _Metering().visit(environment.parse(source))
    tree.set_environment(environment)
    return environment.from_string(tree)
