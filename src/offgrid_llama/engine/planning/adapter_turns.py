"""AdapterTurns: with which adapters the next steps compute, and which requests these are for (pure).

A step has requests with the same adapters only. A request whose adapters begin within its prompt (LateAdapters) computes
what is before that with others; then it keeps its slot and waits for its turn.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Generic

from .operations import Adapt, Operation
from .plan import R
from .running import Running
from .slots import Slots

__all__ = ["AdapterTurns"]

MAX_BEFORE_OTHERS = 32
"""Requests with the adapters in use that begin, at most, while one with others waits. Each change of adapters waits for the
end of all requests that run with them, so several requests should share one."""


class AdapterTurns(Generic[R]):
    """The turns of adapters on one context.

    Args:
        slots: the context's.
        adapters: with which the context computes.
    """

    def __init__(self, slots: Slots, adapters: tuple[Any, ...]) -> None:
        self._slots = slots
        self._used = adapters
        self._n_begun = 0  # requests that have begun while one with other adapters waits

    def now(self, running: Iterable[Running[R]]) -> list[Running[R]]:
        """Return those of the running requests that the context can compute as it is."""
        return [run for run in running if self._of(run) == self._used]

    def wait(self, running: Collection[Running[R]]) -> bool:
        """Return whether a running request waits for other adapters than those in use."""
        return any(self._of(run) != self._used for run in running)

    def may_begin(self, request: R, running: Collection[Running[R]], operations: list[Operation]) -> bool:
        """Return whether a request can begin with the adapters in use; they become its own where nothing runs."""
        if self._wanted(request) != self._used:
            if running:
                return False
            self._change(request.adapters, operations)
        return True

    def has_begun(self, *, others_wait: bool) -> None:
        """Take that a request has begun with the adapters in use."""
        self._n_begun += others_wait

    @property
    def is_over(self) -> bool:
        """Whether no more may begin with the adapters in use, as one with others has waited long enough."""
        return self._n_begun >= MAX_BEFORE_OTHERS

    def resume(self, running: Collection[Running[R]], operations: list[Operation]) -> None:
        """Change to the adapters of the request that has run the longest, where none can be computed with those in use."""
        if running and not self.now(running):
            self._change(self._of(min(running, key=lambda run: run.order)), operations)

    def _of(self, run: Running[R]) -> tuple[Any, ...]:
        """Return the adapters for the next tokens of a running request."""
        late = run.request.late
        if late is None or self._slots.n_computed(run.seq) < run.late_pos:
            return run.request.adapters
        return late.adapters

    def _wanted(self, request: R) -> tuple[Any, ...]:
        """Return the adapters with which a request begins: the late ones where all before these is computed already."""
        late = request.late
        if late is None or late.adapters != self._used:
            return request.adapters
        n_ready = self._slots.n_ready(request.prompt, request.salt, late)
        return request.adapters if n_ready < late.pos else late.adapters

    def _change(self, adapters: tuple[Any, ...], operations: list[Operation]) -> None:
        self._used, self._n_begun = adapters, 0
        operations.append(Adapt(adapters))
