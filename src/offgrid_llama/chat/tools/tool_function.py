"""The functions that tools call: Python functions, methods, partials of them, and objects that are called like one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["is_generator", "name_and_doc", "types_of_parameters"]


def name_and_doc(function: Callable[..., Any]) -> tuple[str, str]:
    """Return the name of a function, or of the type of an object that is called like one, and its docstring."""
    whole = _whole(function)
    if hasattr(whole, "__name__"):
        return whole.__name__, whole.__doc__ or ""
    kind = type(whole)
    return kind.__name__, kind.__call__.__doc__ or kind.__doc__ or ""


def is_generator(function: Callable[..., Any]) -> bool:
    """Return whether a call gives a generator, of which nothing runs until it is iterated over."""
    whole: Any = _whole(function)
    called = whole if hasattr(whole, "__name__") else type(whole).__call__
    return inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called)


def types_of_parameters(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Return the types of a function's parameters by their names, and whether it takes others, too."""
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    types = {
        parameter.name: Any if parameter.annotation is parameter.empty else parameter.annotation
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    return types, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def _whole(function: Callable[..., Any]) -> Any:
    """Return the function of which another one is a partial."""
    while isinstance(function, partial):
        function = function.func
    return function
