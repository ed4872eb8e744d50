"""The jinja2 environment that chat templates are rendered in.

It is ``ImmutableSandboxedEnvironment``, set up as transformers sets it up, with two gaps closed: there a template may use
time and memory without end, and the origin of text is lost. ``limits`` and ``origin`` say how these are dealt with; this
file closes every way around them that jinja2 has:

- operators: + - * / // % ** come through ``call_binop``. Slices, ~, literals, comparisons and the values that a loop
  iterates over have no hook, so ``_Metering`` wraps them in filters after parsing.
- output: each ``{{ }}`` comes through ``finalize``, and ``concat`` joins the output of a macro or a set block. The
  constant text of each output statement is charged for before it.
- calls: all come through ``call``, which sends those of methods of str to ``text_methods``.
- attributes: an allow-list by type.
- filters, tests and globals: those of ``filters``.
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

from offgrid_llama.errors import ChatTemplateError

from .filters import FILTERS, GLOBALS, TESTS
from .formatting import formatted, percent
from .limits import (
    CHARACTERS_PER_STEP,
    CONTAINERS,
    VIEWS,
    charge_comparison,
    charge_container,
    charge_iteration,
    current_budget,
    weigh,
)
from .origin import Text, joined, opaque, sliced, string
from .text_methods import METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jinja2 import Template
    from jinja2.lexer import Token, TokenStream
    from jinja2.parser import Parser
    from jinja2.runtime import Context

__all__ = ["compile_template"]

INTEGER_MAX_BITS = 4096
CALLS_MAX_DEPTH = 100
"""Calls nested in one another."""
SOURCE_MAX_TOKENS = 20_000
"""Tokens of jinja2's lexer. The largest templates known have 2,500; this many compile in a second."""
MANY_ARGUMENTS = 16
"""Only a list with a star gives a call more arguments; jinja2 makes some copies of them, which are charged for."""

_LOOP = "changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0"
_ATTRIBUTES: dict[type, frozenset[str]] = {
    str: frozenset({*METHODS, "format"}),
    Text: frozenset({*METHODS, "format"}),
    dict: frozenset({"copy", "get", "items", "keys", "values"}),
    list: frozenset({"copy", "count", "index"}),
    tuple: frozenset({"count", "index"}),
    LoopContext: frozenset(_LOOP.split()),
    Macro: frozenset({"arguments", "caller", "catch_kwargs", "catch_varargs", "name"}),
}


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    concat = staticmethod(lambda pieces: joined(list(pieces)))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        names = _ATTRIBUTES.get(type(obj))
        return attr in names if names is not None else type(obj) is Namespace and not attr.startswith("_")

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, charge_comparison(argument) if isinstance(argument, tuple) else argument)

    def wrap_str_format(self, value: Any) -> None:
        """Leave str.format() as it is: ``call`` takes care of it, as of all methods of str."""

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # map() takes any name, also one that only _Metering may use.
        return super().call_filter(name.lstrip("\0"), *args, **kwargs)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        for name in ("_loop_vars", "_block_vars"):  # for callables that take a context, of which templates have none
            kwargs.pop(name, None)
        budget = current_budget.get()
        count = len(args) + len(kwargs)
        budget.tick(1 + count)
        if count > MANY_ARGUMENTS:
            budget.take_memory(128 * count)
        for value in (*args, *kwargs.values()):
            if isinstance(value, (*CONTAINERS, *VIEWS)):
                weigh(value)
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            budget.tick(len(owner) // CHARACTERS_PER_STEP)
            if __obj.__name__ == "format":
                return formatted(SandboxedFormatter(__self), owner, args, kwargs)
            return METHODS[__obj.__name__](owner, *args, **kwargs)
        if isinstance(
            __obj, LoopContext
        ):  # a recursive loop: _Metering wraps only what the outermost one iterates over
            args = tuple(charge_iteration(value) for value in args)
        budget.depth += 1
        if budget.depth > CALLS_MAX_DEPTH:
            raise ChatTemplateError(f"calls are nested more than {CALLS_MAX_DEPTH} deep")
        try:
            result = super().call(__context, __obj, *args, **kwargs)
        finally:
            budget.depth -= 1
        return charge_container(result) if isinstance(result, CONTAINERS) else result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        current_budget.get().tick()
        if isinstance(left, str):
            if operator == "%":
                return percent(left, right)
            if operator == "+" and isinstance(right, str):
                return joined([left, right])
        if operator == "*":
            if isinstance(left, int):
                left, right = right, left
            if isinstance(left, str) and isinstance(right, int):
                return _multiplied(left, right)
        _check_operands(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        return charge_container(result) if isinstance(result, CONTAINERS) else result


def _multiplied(text: str, times: int) -> str:
    """Return ``text * times``."""
    current_budget.get().check_text(len(text) * max(times, 0), is_ascii=text.isascii())
    return opaque(str.__mul__(text, times), text)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Refuse operands whose result would take too much time or memory, and views of dicts."""
    if isinstance(left, int):
        if isinstance(right, int) and operator in ("*", "**"):
            bits = left.bit_length()
            if (bits + right.bit_length() if operator == "*" else bits * max(right, 0)) > INTEGER_MAX_BITS:
                raise ChatTemplateError(f"an integer has more than {INTEGER_MAX_BITS} bits")
    elif isinstance(left, VIEWS):
        raise TypeError(f"{operator} does not take {type(left).__name__}")
    elif operator == "*" and isinstance(left, (list, tuple)) and isinstance(right, int):
        current_budget.get().check_memory(8 * len(left) * max(right, 0))


def _wrap(name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


class _Metering(NodeTransformer):
    """Wraps operations without a hook into filters whose names a template cannot write."""

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
    """Return whether an expression is a constant, or a list of constants."""
    if isinstance(node, (nodes.List, nodes.Tuple)):
        return all(isinstance(item, nodes.Const) for item in node.items)
    return isinstance(node, nodes.Const)


def _output(size: int) -> None:
    """Charge for the constant text of an output statement."""
    current_budget.get().tick(1 + size // CHARACTERS_PER_STEP)
    current_budget.get().take_memory(size)


def _sliced(value: Any, start: Any, stop: Any, step: Any) -> Any:
    """Return ``value[start:stop:step]``."""
    key = slice(start, stop, step)
    if isinstance(value, str):
        return sliced(value, key)
    if isinstance(value, (list, tuple)):
        current_budget.get().check_memory(8 * len(value))
        return charge_container(value[key])
    return value[key]


class _Language(Extension):
    """Adds a tag of transformers to jinja2's language, and a limit to the size of templates.

    ``{% generation %}`` marks the assistant's text for training and does nothing here. Assignments in it stay in it.
    """

    tags = {"generation"}  # noqa: RUF012 - jinja2's type

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for count, token in enumerate(stream, 1):
            if count > SOURCE_MAX_TOKENS:
                raise ChatTemplateError(f"line {token.lineno}: more than {SOURCE_MAX_TOKENS:,} words and signs")
            yield token

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


@pass_context
def _finalize(_context: Context, value: Any) -> str:
    # Asking for the context keeps jinja2 from working out constant expressions when it compiles, before any limit.
    return string(value)


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
        "\0each": charge_iteration,
        "\0made": charge_container,
        "\0compared": charge_comparison,
        "\0concat": lambda values: joined([string(value) for value in values]),
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
