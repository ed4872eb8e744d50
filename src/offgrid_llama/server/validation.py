"""Validation: a body's value as an instance of its schema, or the one error that the client is told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from .api_error import ApiError

__all__ = ["invalid_value", "validated"]

MAX_PARAM_CHARACTERS = 200
"""Characters of a parameter's name in an error, at most: the client chooses them."""

_Model = TypeVar("_Model", bound=BaseModel)


def validated(model: type[_Model], value: Any, context: Mapping[str, Any]) -> _Model:
    """Return an instance of a schema. Raises ApiError.

    Args:
        model: the schema. Its lists end at their first error, so that a long list of wrong items makes one error only.
        value: of the body.
        context: for the schema's own checks; see schemas.
    """
    try:
        return model.model_validate(value, context=dict(context))
    except ValidationError as error:
        raise invalid_value(error.errors(include_url=False), value) from None


def invalid_value(errors: Sequence[Mapping[str, Any]], value: Any) -> ApiError:
    """Return the error that tells of the first of pydantic's errors, as OpenAI does: with status 400 and the parameter.

    Args:
        errors: of pydantic.
        value: of the body; None when the errors are about parts of the path.
    """
    error = errors[0]
    parts = list(error["loc"]) if value is None else _path(error["loc"], error["input"], value)
    if error["type"] == "missing":
        parts += error["loc"][-1:]
    own = error.get("ctx", {}).get("param")  # of a check in schemas, which is about one parameter of several
    names = [str(part) for part in (*parts, *([] if own is None else [own]))]
    param = ".".join(names) if names else None
    if param is not None and len(param) > MAX_PARAM_CHARACTERS:
        param = f"{param[:MAX_PARAM_CHARACTERS]}..."
    message = f"{'the body' if param is None else param}: {_told(error)}"
    if error["type"] == "unknown_parameter":
        message = f"Unrecognized request argument supplied: {param or repr(param)}{error['ctx']['hint']}"
    return ApiError(400, message, code="invalid_value", param=param)


def _told(error: Mapping[str, Any]) -> str:
    """Return what pydantic says, without words that only mean something in Python."""
    if error["type"] in ("model_type", "dict_type"):
        return "Input should be an object"
    return str(error["msg"]).replace(" after validation", "")


def _path(parts: Sequence[int | str], wrong: Any, body: Any) -> list[int | str]:
    """Return the keys and indices that lead to the wrong value.

    pydantic's location also has the tag of each union member that it chose. Those are no keys or indices of the body, even
    where an object has such a key.
    """
    way = _way(parts, wrong, body)
    if way is not None:
        return way
    path: list[int | str] = []  # a check has made another value of it
    value = body
    for part in parts:
        with suppress(LookupError, TypeError):
            value = value[part]
            path.append(part)
    return path


def _way(parts: Sequence[int | str], wrong: Any, value: Any) -> list[int | str] | None:
    """Return those of the parts that lead from a value to the wrong one; None where none do."""
    if value is wrong:
        return []
    if not parts:
        return None
    with suppress(LookupError, TypeError):
        way = _way(parts[1:], wrong, value[parts[0]])
        if way is not None:
            return [parts[0], *way]
    return _way(parts[1:], wrong, value)
