"""Shapes: unions whose member is chosen by the shape of the value, so that an error is about that member and no other.

pydantic would try each member in turn, and collect the errors of all.
"""

from __future__ import annotations

from typing import Any

from pydantic import Discriminator

__all__ = ["by_items", "by_shape"]


def by_shape(expected: str) -> Discriminator:
    """Return the discriminator of a union whose members are tagged "text", "list" and "object".

    Args:
        expected: what the value must be, for the error about a value of another shape.
    """
    return _discriminator(_shape, expected)


def by_items(expected: str) -> Discriminator:
    """Return the discriminator of a union whose members are tagged "text", "texts", "numbers" and "lists".

    The first item decides which kind of list a list is.
    """
    return _discriminator(_shape_of_items, expected)


def _discriminator(shape: Any, expected: str) -> Discriminator:
    return Discriminator(shape, custom_error_type="wrong_shape", custom_error_message=f"Input should be {expected}")


def _shape(value: Any) -> str | None:
    return next(
        (name for kind, name in ((str, "text"), (list, "list"), (dict, "object")) if isinstance(value, kind)), None
    )


def _shape_of_items(value: Any) -> str | None:
    if not isinstance(value, list):
        return _shape(value)
    first = value[0] if value else None
    if isinstance(first, list):
        return "lists"
    return "numbers" if isinstance(first, (int, float)) and not isinstance(first, bool) else "texts"
