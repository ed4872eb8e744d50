"""The data that a caller passes to a template: checked, copied, and marked as the caller's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .limits import RenderBudget
from .origin import from_caller

__all__ = ["copy_of_data"]

DATA_MAX_DEPTH = 72
"""Levels of lists and dicts in an argument: those of the arguments of a call, and of the messages around them."""


def copy_of_data(value: Any, path: str, budget: RenderBudget, depth: int = 0) -> Any:
    """Return a copy of plain containers, in which every text is marked as the caller's.

    Args:
        value: the argument, or a value in it.
        path: its name, for errors.
        budget: the budget of the rendering, which notes the weights of the containers.
        depth: the number of containers around it.

    Raises TypeError and ValueError for values that are not like JSON, or nested too deeply.
    """
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return from_caller(value)
    if depth >= DATA_MAX_DEPTH:
        raise ValueError(f"{path.partition('[')[0]}: nested deeper than {DATA_MAX_DEPTH}")
    copy: dict[Any, Any] | list[Any]
    if isinstance(value, Mapping):
        copy = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{path}: keys must be str, not {type(key).__name__}")
            copy[from_caller(key)] = copy_of_data(item, f"{path}[{key!r}]", budget, depth + 1)
    elif isinstance(value, (list, tuple)):
        copy = [copy_of_data(item, f"{path}[{at}]", budget, depth + 1) for at, item in enumerate(value)]
    else:
        raise TypeError(f"{path}: must be a dict, list, str, int, float, bool or None, not {type(value).__name__}")
    budget.note_weight(copy)
    return copy
