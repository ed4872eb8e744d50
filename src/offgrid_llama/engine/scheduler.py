"""Scheduler: which requests run, and which of their tokens the next step computes (pure).

A step is a Plan: operations on the memory, then rows to compute in one decode, from some of which a token is sampled.
Requests that generate come first, with one token each; prompts share what room is left, so that a long one holds nobody up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

from .request import FinishReason, Request
from .slots import Operation, Slots, Taken, Wait

__all__ = ["Plan", "Rows", "Scheduler"]

AHEAD = 16
"""How many requests may be passed by, each of which waits for a prefix that another one is computing."""


@dataclass(frozen=True)
class Rows:
    """Tokens of one request that a step computes.

    Attributes:
        pos: the position of the first.
        sample: whether the next token is sampled from the last of them.
    """

    request: Request
    tokens: tuple[int, ...]
    pos: int
    sample: bool


@dataclass(frozen=True)
class Plan:
    """One step: first the operations, in their order, then all rows in one decode."""

    operations: tuple[Operation, ...]
    rows: tuple[Rows, ...]


class Scheduler:
    """Runs requests on slots.

    Args:
        slots: the sequences of the context.
        n_batch: most tokens of a step; more than there are slots.
        n_ctx_seq: most tokens of a sequence.
        is_eog: whether a token ends the text.
        prompt_budget: most tokens of prompts in a step in which so many requests generate; ``n_batch`` if not given.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        n_batch: int,
        n_ctx_seq: int,
        is_eog: Callable[[int], bool],
        prompt_budget: Callable[[int], int] | None = None,
    ) -> None:
        self._slots = slots
        self._n_batch = n_batch
        self._n_ctx_seq = n_ctx_seq
        self._is_eog = is_eog
        self._prompt_budget = prompt_budget or (lambda n_generating: n_batch)
        self._waiting: list[tuple[int, int, Request]] = []  # a heap
        self._number = count()
        self._running: dict[Request, list[int]] = {}  # with the tokens that are to be computed
        self._plan: Plan | None = None

    @property
    def n_waiting(self) -> int:
        """How many requests wait for a slot."""
        return sum(request.finish_reason is None for _, _, request in self._waiting)

    @property
    def n_running(self) -> int:
        """How many requests have a slot."""
        return len(self._running)

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt is not empty, and shorter than ``n_ctx_seq``."""
        heapq.heappush(self._waiting, (-request.priority, next(self._number), request))

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request, wherever it is; what it has computed stays for others.

        The step under way goes on; its slot is free after that.
        """
        if request.finish_reason is None:
            request.finish_reason = reason
            if self._plan is None:
                self._release(request)

    def plan(self) -> Plan | None:
        """Return the next step, or None where there is nothing to compute."""
        operations = self._admit()
        generating = [request for request in self._running if request.tokens]
        prompts = [request for request in self._running if not request.tokens]
        rows = [self._rows(request, 1) for request in generating[: self._n_batch]]
        room = min(self._n_batch - len(rows), max(1, self._prompt_budget(len(generating))))
        # The shortest first, so that what they leave is shared by the others.
        prompts.sort(key=lambda request: len(self._running[request]))
        for left, request in zip(range(len(prompts), 0, -1), prompts, strict=True):
            share = min(len(self._running[request]), -(-room // left))
            if share:
                rows.append(self._rows(request, share))
                room -= share
        self._plan = Plan(tuple(operations), tuple(rows)) if rows else None
        return self._plan

    def apply(self, sampled: Mapping[Request, int]) -> None:
        """Take what the step of the last plan has given: a token for each request that was to be sampled."""
        plan, self._plan = self._plan, None
        for rows in plan.rows if plan is not None else ():
            request = rows.request
            seq, todo = self._seq(request), self._running[request]
            self._slots.advance(seq, len(rows.tokens))
            del todo[: len(rows.tokens)]
            if not rows.sample or request.finish_reason is not None:
                continue
            token = sampled[request]
            if self._is_eog(token):
                self.finish(request, FinishReason.STOP)
                continue
            request.tokens.append(token)
            if len(request.tokens) == request.max_tokens or self._slots.n_computed(seq) == self._n_ctx_seq:
                self.finish(request, FinishReason.LENGTH)
                continue
            todo.append(token)
            self._slots.extend(seq, todo)
        for request in [request for request in self._running if request.finish_reason is not None]:
            self._release(request)  # finished while the step was under way

    def _release(self, request: Request) -> None:
        if self._running.pop(request, None) is not None:
            self._slots.release(self._seq(request))

    def _admit(self) -> list[Operation]:
        """Give slots to those who wait, and return what that takes."""
        operations: list[Operation] = []
        later: list[tuple[int, int, Request]] = []
        while self._waiting and len(later) < AHEAD:
            entry = heapq.heappop(self._waiting)
            request = entry[2]
            if request.finish_reason is not None:
                continue
            taken = self._slots.take(request.prompt)
            if isinstance(taken, Taken):
                request.seq, request.n_cached = taken.seq, taken.n_cached
                self._running[request] = list(request.prompt[taken.n_cached :])
                operations += taken.operations
            else:
                later.append(entry)
                if taken is Wait.SLOT:
                    break
        for entry in later:
            heapq.heappush(self._waiting, entry)
        return operations

    def _rows(self, request: Request, n: int) -> Rows:
        todo = self._running[request]
        return Rows(request, tuple(todo[:n]), self._slots.n_computed(self._seq(request)), n == len(todo))

    def _seq(self, request: Request) -> int:
        if request.seq is None:
            raise RuntimeError(f"{request} has no sequence")
        return request.seq
