"""Scheduler: which requests run, and which of their tokens the next step computes (pure).

A step is a Plan: operations on the memory, then rows to compute in one decode, from some of which tokens are sampled.
Requests that generate come first, with one token each; prompts share what room is left, so that a long one holds nobody up.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from .guessing import Costs, Drafting
from .operations import Forget, Keep, Operation, Spill
from .padding import Padding
from .request import FinishReason, Request
from .slots import Slots, Taken, Wait

__all__ = ["Plan", "Rows", "Scheduler"]

AHEAD = 16
MOST_FORCED = 32
"""Most tokens that a request which generates may compute at once; with more it is treated as a prompt."""
"""How many requests may be passed by, each of which waits for a prefix that another one is computing."""


class Rows(NamedTuple):
    """Tokens of one request that a step computes.

    Attributes:
        pos: the position of the first.
        sample: whether the next tokens are sampled from the last of them.
        room: how many tokens may be sampled.
        n_guessed: how many of the last tokens are guesses of what is sampled from the rows before them.
        n_draft: how many more are to be guessed by the draft model.
    """

    request: Request
    seq: int
    tokens: Sequence[int]
    pos: int
    sample: bool
    room: int
    n_guessed: int = 0
    n_draft: int = 0


class Plan(NamedTuple):
    """One step: first the operations, in their order, then all rows in one decode, by their sequences.

    Attributes:
        admitted: the requests that have a slot now, and had none before.
        n_generating: how many of the rows are of requests that generate: one token each, guesses, and what must follow.
        n_guessed: how many guesses there are, and tokens of those that generate which need not be sampled.
        n_prompt: how many tokens of prompts there are.
        n_draft: how many tokens are to be guessed for each of the rows that say so.
        steady: whether the next steps will be like this one: all generate, and nobody has anything to guess from.
        pads: sequences that nobody has, and their ends, where a token is computed and forgotten, for the step to be full.
    """

    operations: list[Operation]
    rows: list[Rows]
    admitted: list[Request]
    n_generating: int
    n_guessed: int
    n_prompt: int
    n_draft: int = 0
    steady: bool = False
    pads: Sequence[tuple[int, int]] = ()


class _Run:
    """A request that has a slot.

    ``todo`` is to be computed; ``prompt`` and ``generated`` are the text in its slot: all that was sampled, with what has
    come after a stop string, and without what was forgotten.
    """

    __slots__ = ("generated", "prompt", "request", "seq", "todo")

    def __init__(self, request: Request, seq: int, todo: list[int]) -> None:
        self.request = request
        self.prompt = request.prompt
        self.seq = seq
        self.todo = todo
        self.generated: list[int] = []


class Scheduler:
    """Runs requests on slots.

    Args:
        slots: the sequences of the context.
        n_batch: most tokens of a step; more than there are slots.
        n_ctx_seq: most tokens of a sequence.
        eog: the tokens that end the text.
        costs: what rows cost, for guesses.
        drafting: how much a draft model is to guess; None where there is none.
        padding: how many rows to add to a step; None is none.
        n_guessed: most tokens that are guessed in a step.
        prompt_budget: most tokens of prompts in a step in which so many requests generate, and so many have a prompt to
            compute, of so many tokens together; not 0 where none generates.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        n_batch: int,
        n_ctx_seq: int,
        eog: Collection[int],
        prompt_budget: Callable[[int, int, int], int] | None = None,
        costs: Costs | None = None,
        drafting: Drafting | None = None,
        padding: Padding | None = None,
        n_guessed: int = 0,
    ) -> None:
        self._slots = slots
        self._n_batch = n_batch
        self._n_ctx_seq = n_ctx_seq
        self._eog = frozenset(eog)
        self._prompt_budget = prompt_budget or (lambda n_generating, n_prompts, n_tokens: n_batch)
        self._costs = costs or Costs()
        self._drafting = drafting
        self._padding = padding
        self._n_guessed = n_guessed
        self._waiting: list[tuple[int, int, Request]] = []  # a heap
        self._n_waiting = 0
        self._number = count()
        self._running: dict[Request, _Run] = {}  # by their sequences
        self._suspects: list[Request] = []  # one of which has made a decode fail, maybe
        self._operations: list[Operation] = []  # that the next plan begins with
        self._plan: Plan | None = None  # under way
        self._ended: list[Request] = []  # while it is

    @property
    def n_waiting(self) -> int:
        """How many requests wait for a slot."""
        return self._n_waiting

    @property
    def n_running(self) -> int:
        """How many requests have a slot."""
        return len(self._running)

    def unfinished(self) -> list[Request]:
        """Return all requests that wait or run."""
        return [*self._running, *(entry[2] for entry in self._waiting if entry[2].finish_reason is None)]

    def add(self, request: Request) -> None:
        """Queue a request. Its prompt is not empty, and shorter than ``n_ctx_seq``."""
        heapq.heappush(self._waiting, (-request.priority, next(self._number), request))
        self._n_waiting += 1

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request, wherever it is; what it has computed stays for others.

        The step under way goes on; its slot is free after that.
        """
        if request.finish_reason is None:
            request.finish_reason = reason
            if request not in self._running:
                self._n_waiting -= 1
                request.prompt = ()
            elif self._plan is None:
                self._release(request)
            else:
                self._ended.append(request)

    def plan(self) -> Plan | None:
        """Return the next step, or None where there is nothing to compute."""
        operations, self._operations = self._operations, []
        admitted = self._admit(operations) if self._waiting and not self._suspects else []
        operations += self._slots.checkpoints()
        operations.sort(key=lambda operation: isinstance(operation, (Forget, Spill)))  # it may be loaded before
        rows: list[Rows] = []
        prompts: list[_Run] = []
        slots, n_ctx_seq = self._slots, self._n_ctx_seq
        some = {self._suspects[0]: self._running[self._suspects[0]]} if self._suspects else self._running
        n_more = 0  # tokens that those who generate compute besides one each
        for request, run in some.items():
            n = len(run.todo)
            if run.generated and (n == 1 or (n <= MOST_FORCED + 1 and len(some) + n_more + n <= self._n_batch)):
                pos = slots.n_computed(run.seq)
                if pos == n_ctx_seq:
                    pos = self._shift(run, operations)
                room = min(request.max_tokens - len(request.tokens), n_ctx_seq - pos - n + 1)
                rows.append(Rows(request, run.seq, run.todo, pos, True, room))
                n_more += n - 1
            else:
                prompts.append(run)
        n_generating = len(rows)
        n_guessed = n_prompt = n_draft = 0
        if not prompts and not self._suspects and self._n_guessed:
            n_guessed = self._guess(rows, n_more)
            n_draft = self._draft(rows, n_guessed, n_more) if self._drafting is not None else 0
        if prompts:
            budget = self._prompt_budget(n_generating, len(prompts), sum(len(run.todo) for run in prompts))
            rows += self._share(prompts, min(self._n_batch - n_generating - n_more, budget))
            n_prompt = sum(len(row.tokens) for row in rows) - n_generating - n_more
            # llama.cpp computes sequences together where their ids follow each other.
            rows.sort(key=lambda row: row.seq)
        if not rows:
            self._operations = operations
            return None
        steady = not prompts and not n_more and not self._suspects and all(self._is_steady(row.request) for row in rows)
        pads: Sequence[tuple[int, int]] = ()
        if self._padding is not None and not (prompts or n_guessed or n_more or n_draft or self._suspects):
            n_pads = self._padding.n_pads(n_generating)
            pads = slots.unused(n_pads, self._padding.limit) if n_pads else ()
        self._plan = Plan(operations, rows, admitted, n_generating, n_guessed + n_more, n_prompt, n_draft, steady, pads)
        return self._plan

    def apply(
        self,
        sampled: Mapping[Request, Sequence[int]],
        drafted: Mapping[Request, int] | None = None,
        forced: Mapping[Request, int] | None = None,
        dropped: Mapping[Request, int] | None = None,
    ) -> list[tuple[Request, Sequence[int]]]:
        """Take what the step of the last plan has given: the tokens of each request that was to be sampled.

        ``drafted`` is how many tokens the draft model has guessed for each; ``forced`` how many of the last ones were not
        sampled but must follow, of those that have such. ``dropped`` is how many of the plan's guesses were not computed.

        Returns the requests with their new tokens, without those that end a text. A request without any has failed.
        """
        plan = self._plan
        if plan is None:
            return []
        new: list[tuple[Request, Sequence[int]]] = []
        slots, eog = self._slots, self._eog
        for request, seq, computed, _, sample, room, n_guessed, n_draft in plan.rows:
            run = self._running[request]
            if not sample:
                slots.advance(seq, len(computed))
                run.todo = run.todo[len(computed) :]
                continue
            tokens = sampled.get(request, ())
            n = len(tokens)
            n_forced = forced.get(request, 0) if forced else 0
            slots.advance(seq, len(computed) - n_guessed + max(n - n_forced - 1, 0))
            if not n:
                self.finish(request, FinishReason.ERROR)
                continue
            if request.guesser is not None:
                request.guesser.follow(tokens, n_forced)
            n_checked = drafted.get(request, 0) if n_draft and drafted else n_guessed
            if dropped:
                n_checked -= dropped.get(request, 0)
            if n_checked:
                n_right = min(n - n_forced - 1, n_checked)
                request.n_guessed += n_checked
                request.n_right += n_right
                if n_draft and request.acceptance is not None:
                    request.acceptance.learn(n_checked, n_right)
            last = tokens[-1]
            if last in eog:
                tokens = tokens[:-1]
            run.generated += tokens
            if request.finish_reason is not None:
                continue
            run.todo = [*tokens[n - n_forced - 1 : n - 1], last]
            if tokens:
                request.tokens += tokens
                new.append((request, tokens))
            if last in eog:
                self.finish(request, FinishReason.STOP)
            elif n == room and (request.n_keep is None or len(request.tokens) == request.max_tokens):
                self.finish(request, FinishReason.LENGTH)
        if self._suspects and plan.rows[0].request is self._suspects[0]:
            del self._suspects[0]
        self._plan = None
        self._release_ended()
        return new

    @staticmethod
    def _is_steady(request: Request) -> bool:
        if request.guided or request.budget is not None:
            return False
        return request.acceptance is None and (request.guesser is None or not request.guesser.follows)

    def _guess(self, rows: list[Rows], n_more: int) -> int:
        """Add to the rows of requests that generate what follows them, as far as it pays; return how many tokens.

        ``n_more`` is how many tokens the rows have besides one each.
        """
        total = 0
        for i, row in enumerate(rows):
            guesser = row.request.guesser
            if guesser is not None:
                room = min(self._n_guessed - total, self._n_batch - len(rows) - n_more - total, row.room - 1)
                if guessed := guesser.guess(self._costs, len(rows), n_more + total, room):
                    total += len(guessed)
                    rows[i] = row._replace(tokens=[*row.tokens, *guessed], n_guessed=len(guessed))
        return total

    def _shift(self, run: _Run, operations: list[Operation]) -> int:
        """Let a full slot forget the older half of what is behind the tokens to keep; return where it goes on."""
        n = self._n_ctx_seq
        begin = run.request.n_keep or 0
        end = begin + (n - begin + 1) // 2
        operations.append(self._slots.shift(run.seq, begin, end))
        text = [*run.prompt, *run.generated]
        run.prompt, run.generated = (), text[:begin] + text[end:]
        return self._slots.n_computed(run.seq)

    def _draft(self, rows: list[Rows], n_guessed: int, n_more: int) -> int:
        """Say of which rows the draft model is to guess what follows, as far as it pays; return how many tokens each."""
        some = [i for i, row in enumerate(rows) if row.request.acceptance and not row.n_guessed and row.room > 1]
        room = min(self._n_guessed, self._n_batch - len(rows) - n_more) - n_guessed
        chances = [acceptance for i in some if (acceptance := rows[i].request.acceptance)]
        n = self._drafting.length(chances, self._costs, len(rows), room) if self._drafting is not None else 0
        if n:
            for i in some:
                rows[i] = rows[i]._replace(n_draft=min(n, rows[i].room - 1))
        return n

    def operate(self, operations: Sequence[Operation]) -> None:
        """Let the next plan begin with these."""
        self._operations += operations

    def restore(self, lengths: Sequence[int]) -> None:
        """Take that the step of the last plan has not ended: each sequence has so many tokens in memory now.

        What is missing is computed again. A token whose logits are lost is, too.
        """
        self._plan = None
        for run in self._running.values():
            text = [*run.prompt, *run.generated]
            kept = min(lengths[run.seq], len(text) - 1)
            if kept < lengths[run.seq]:
                self._slots.set_computed(run.seq, lengths[run.seq])
                kept = self._slots.cut(run.seq, kept)
                self._operations.append(Keep(run.seq, kept))
            run.todo = text[kept:]
            run.request.n_cached = min(run.request.n_cached, kept)
            self._slots.set_computed(run.seq, kept)
        for seq, length in enumerate(lengths):
            if self._slots.n_computed(seq) > length:
                self._slots.keep(seq, length)
        self._release_ended()

    def suspect(self, requests: Sequence[Request]) -> None:
        """Compute each of these requests alone in its next step, to see which one makes it fail."""
        self._suspects = [request for request in requests if request in self._running]

    def _share(self, prompts: list[_Run], room: int) -> list[Rows]:
        """Return rows of prompts, the shortest first, so that what they leave is shared by the others."""
        rows = []
        prompts.sort(key=lambda run: len(run.todo))
        for left, run in zip(range(len(prompts), 0, -1), prompts, strict=True):
            n = min(len(run.todo), -(-room // left))
            pos = self._slots.n_computed(run.seq)
            if (stop := self._slots.stop_at(run.seq)) is not None:
                n = min(n, stop - pos)
            if n:
                room -= n
                most = min(run.request.max_tokens - len(run.request.tokens), self._n_ctx_seq - pos - n + 1)
                rows.append(Rows(run.request, run.seq, run.todo[:n], pos, n == len(run.todo), most))
        return rows

    def _release_ended(self) -> None:
        for request in self._ended:
            self._release(request)
        self._ended.clear()

    def _release(self, request: Request) -> None:
        run = self._running.pop(request, None)
        if run is not None:
            self._slots.release(run.seq, run.generated)
            request.prompt = ()
            if request in self._suspects:
                self._suspects.remove(request)

    def _admit(self, operations: list[Operation]) -> list[Request]:
        """Give slots to those who wait, and add what that takes to ``operations``; return who has got one."""
        later: list[tuple[int, int, Request]] = []
        admitted = []
        while self._waiting and len(later) < AHEAD:
            entry = heapq.heappop(self._waiting)
            request = entry[2]
            if request.finish_reason is not None:
                continue
            room = min(request.max_tokens, self._n_ctx_seq - len(request.prompt))
            taken = self._slots.take(request.prompt, room, request.salt)
            if isinstance(taken, Taken):
                request.seq, request.n_cached = taken.seq, taken.n_cached
                self._running[request] = _Run(request, taken.seq, list(request.prompt[taken.n_cached :]))
                self._n_waiting -= 1
                operations += taken.operations
                admitted.append(request)
            else:
                later.append(entry)
                if taken is Wait.SLOT:
                    break
        for entry in later:
            heapq.heappush(self._waiting, entry)
        if admitted:
            self._running = dict(sorted(self._running.items(), key=lambda item: item[1].seq))
        return admitted
