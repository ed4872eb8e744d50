"""The items that arrive in the inbox of an engine's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

from .request import EngineRequest

__all__ = ["Add", "Call", "Cancel", "Encoded", "Item", "Stop"]


@dataclass(frozen=True, slots=True)
class Add:
    """Queue requests."""

    requests: Sequence[EngineRequest]


@dataclass(frozen=True, slots=True)
class Cancel:
    """End requests."""

    requests: Sequence[EngineRequest]


@dataclass(frozen=True, slots=True)
class Call:
    """Call a function between two steps, once it is ``ready``, and tell the result."""

    function: Callable[[], Any]
    ready: Callable[[], bool]
    result: Future[Any]

    def make(self) -> bool:
        """Make the call, if it is ready; return whether it was."""
        if not self.ready():
            return False
        try:
            self.result.set_result(self.function())
        except Exception as error:
            self.result.set_exception(error)
        return True


@dataclass(frozen=True, slots=True)
class Encoded:
    """Look again whether requests that wait for their pictures can go on."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the thread: at once, or with ``drain`` when all requests have ended."""

    drain: bool


Item: TypeAlias = Add | Cancel | Call | Encoded | Stop
