"""Validity under a JSON Schema, by jsonschema with exact numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import jsonschema


def exact(validator: Any) -> Any:
    """Return a class of jsonschema that compares multiples as they are written: as floats, 131.6126 is none of 0.0001."""
    extend: Callable[..., Any] = jsonschema.validators.extend
    return extend(validator, {"multipleOf": _multiple_of})


def _multiple_of(_: Any, of: float, value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and Fraction(repr(value)) % Fraction(repr(of)):
        yield jsonschema.ValidationError(f"{value} is no multiple of {of}")
