"""The errors of an engine as Pydantic AI's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic_ai import exceptions

from offgrid_llama.errors import ContextLengthError, OffgridLlamaError, QueueFullError, StoreError

__all__ = ["engine_errors"]

_KINDS = (
    (ContextLengthError, "ModelContextWindowExceededError"), (QueueFullError, "ModelOverloadedError"),
    (StoreError, "ModelNotFoundError"),
)  # fmt: skip
"""Errors of an engine, and the names of Pydantic AI's for them, which earlier versions do not have."""


@contextmanager
def engine_errors(model_name: str) -> Iterator[None]:
    """Raise what an engine raises in this block as a ModelAPIError, after which a FallbackModel asks the next model.

    A prompt that is too long is a ModelContextWindowExceededError, a full queue a ModelOverloadedError, a name without a
    file a ModelNotFoundError. Wrong arguments stay ValueError and TypeError.
    """
    try:
        yield
    except OffgridLlamaError as error:
        name = next((name for kind, name in _KINDS if isinstance(error, kind)), "ModelAPIError")
        raise getattr(exceptions, name, exceptions.ModelAPIError)(model_name, str(error)) from error
