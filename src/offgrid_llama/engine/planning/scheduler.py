"""Scheduler: which requests run, and which of their tokens the next step computes (pure).

A step is a Plan: operations on the memory, then rows to compute in one decode, from some of which tokens are sampled.
Requests that generate come first, with one token each; prompts share the room that is left, so that a long one delays no
other request. ``pace`` says how much room that is. Slots go to tenants in turn, by the tokens that each has been given.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Generic, TypeVar

from offgrid_llama.finish_reason import FinishReason

from .adapter_turns import AdapterTurns
from .chunk_turns import ChunkTurns
from .estimates import Estimates
from .fair_queue import FairQueue, Waiting
from .guess_rows import add_drafts, add_guesses
from .limits import Limits
from .media_tokens import Chunk
from .operations import Forget, Keep, Operation, Spill
from .plan import Outcome, Plan, R, Rows
from .prompt_rows import callers_waiting, chunk_rows, next_piece, shared_rows
from .running import MAX_FORCED_TOKENS, Running, are_steady, count_guesses
from .slots import Slots, Taken, Wait

__all__ = ["Scheduler"]

MAX_WAIT_FOR_PREFIX = 16
"""Requests that are passed over, at most, when slots are given out: each waits for a prefix that another one computes."""

MIN_SLOTS_TO_KEEP_ONE = 4
"""With this number of slots the last one is kept for a tenant that has none: otherwise a tenant that comes late waits for
the end of a text, however long. Requests without a tenant use all slots."""

_O = TypeVar("_O", bound=Outcome)
"""The class of the outcomes, to which the engine adds the bytes of the tokens."""


class Scheduler(Generic[R]):
    """Runs requests on slots.

    Args:
        limits: of the context.
        slots: its sequences.
        estimates: how long steps take.
        adapters: with which the context computes.
        is_ready: whether the embeddings are there of the picture or sound with a head.

    Attributes:
        slots, estimates: as given.
        chunks: the turns of pictures and sounds.
    """

    def __init__(
        self,
        limits: Limits,
        slots: Slots,
        estimates: Estimates,
        *,
        adapters: tuple[Any, ...] = (),
        is_ready: Callable[[int], bool] = bool,
    ) -> None:
        self.slots = slots
        self.estimates = estimates
        self._limits = limits
        self._n_ctx_seq = limits.n_ctx_seq
        self._eog = limits.eog
        self._waiting: FairQueue[R] = FairQueue()  # those that have ended meanwhile, too
        self._n_waiting = 0
        self._running: dict[R, Running[R]] = {}  # in the order of their sequences
        self._turns: AdapterTurns[R] = AdapterTurns(slots, adapters)
        self.chunks: ChunkTurns[R] = ChunkTurns(slots, is_ready)
        self._n_begun = 0  # requests that have been given slots
        self._last_seq = -1  # of the request that was computed alone
        self._suspects: list[R] = []  # one of which may have made a decode fail
        self._operations: list[Operation] = []  # the first ones of the next plan
        self._plan: Plan[R] | None = None  # under way
        self._ended: list[R] = []  # while it is

    @property
    def n_waiting(self) -> int:
        """How many requests wait for a slot."""
        return self._n_waiting

    @property
    def n_running(self) -> int:
        """How many requests have a slot."""
        return len(self._running)

    def running(self) -> list[tuple[R, int]]:
        """Return the requests that have a slot, each with that. From another thread it may be a step old."""
        return [(request, run.seq) for request, run in list(self._running.items())]

    def pending(self) -> list[Operation]:
        """Return the operations that the next plan would begin with, for the caller to carry out before."""
        operations, self._operations = self._operations, []
        return operations

    def unfinished(self) -> list[R]:
        """Return all requests that wait or run."""
        return [*self._running, *(request for request in self._waiting if request.finish_reason is None)]

    def add(self, request: R) -> None:
        """Queue a request. Its prompt is not empty, and shorter than ``n_ctx_seq``."""
        self._waiting.push(request, len(request.prompt), request.tenant, request.priority)
        self._n_waiting += 1

    def finish(self, request: R, reason: FinishReason) -> None:
        """End a request that waits or runs; its computed tokens stay for others.

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

    # A step begins ---------------------------------------------------------------------------------------------------

    def plan(self) -> Plan[R] | None:
        """Return the next step, or None where there is nothing to compute; a plan without rows is no step."""
        operations, self._operations = self._operations, []
        admitted = self._admit(operations) if self._waiting and not self._suspects else []
        self._turns.resume(self._to_compute(), operations)
        operations += self.slots.checkpoints()
        operations.sort(key=_comes_last)
        rows, prompts, n_more = self._generating(operations)
        texts, chunks = self.chunks.split(prompts)
        of_chunk = self._of_chunk(rows, texts, chunks) if chunks else None
        if of_chunk is not None:
            plan = Plan(operations, [of_chunk], admitted, 0, 0, len(of_chunk.tokens))
        else:
            plan = Plan(operations, rows, admitted, len(rows), 0, 0)
            self._fill(plan, texts, n_more, is_settled=not (prompts or n_more or self._suspects))
        if not plan.rows:
            self._operations = operations
            return Plan([], [], admitted, 0, 0, 0) if admitted else None
        self._plan = plan
        return plan

    def _of_chunk(
        self, rows: list[Rows[R]], texts: list[Running[R]], chunks: list[tuple[Running[R], Chunk]]
    ) -> Rows[R] | None:
        """Return rows of a picture or a sound, which are a step of their own; None where others have their turn."""
        if not self.chunks.is_turn(others_wait=bool(rows or texts)):
            return None
        run, chunk = min(chunks, key=lambda item: item[0].order)
        room = self._limits.n_batch
        if rows:
            waiting = callers_waiting([row.request for row in rows], [run.request for run, _ in chunks])
            seconds = self.estimates.pace.seconds_beside(len(rows), waiting)
            room = 0 if seconds is None else min(room, self.estimates.chunks.rows(seconds))
        return chunk_rows(run, chunk, room, self.slots, self._limits) if room else None

    def _fill(self, plan: Plan[R], texts: list[Running[R]], n_more: int, *, is_settled: bool) -> None:
        """Add to the rows of requests that generate those of prompts, or guesses and padding."""
        rows, limits = plan.rows, self._limits
        plan.n_guessed = n_more
        if texts:
            plan.n_prompt = self._add_prompts(rows, texts, n_more)
        elif limits.n_guessed and not self._suspects:
            n_guessed = add_guesses(rows, limits, self.estimates, n_more)
            plan.n_guessed += n_guessed
            plan.n_draft = add_drafts(rows, limits, self.estimates, n_guessed, n_more)
        if is_settled and rows:
            plan.steady = are_steady(rows)
            padding, guesses = self.estimates.padding, plan.n_guessed or plan.n_draft
            if padding is not None and not guesses and (n_pads := padding.n_pads(plan.n_generating)):
                plan.pads = self.slots.unused(n_pads, padding.limit)

    def _admit(self, operations: list[Operation]) -> list[R]:
        """Give slots to requests that wait; append the operations for that, and return these requests."""
        later: list[Waiting[R]] = []
        admitted = []
        others_wait = self._turns.wait(self._running.values())
        while self._waiting and len(later) < MAX_WAIT_FOR_PREFIX and (n_left := self.slots.n_free + self.slots.n_idle):
            if others_wait and self._turns.is_over:
                break
            entry = self._waiting.pop(self._passed_over(n_left))
            if entry is None:
                break
            request = entry.item
            if request.finish_reason is not None:
                self._waiting.count(request.tenant, -entry.n_tokens)
                continue
            if not self._turns.may_begin(request, self._running.values(), operations):
                later.append(entry)
                others_wait = True
                continue
            room = min(request.max_tokens, self._n_ctx_seq - len(request.prompt))
            most = None if request.scored is None else request.scored - 1  # the row before is needed
            taken = self.slots.take(
                request.prompt, room, request.salt, request.wanted, late=request.late, most_cached=most
            )
            if isinstance(taken, Taken):
                request.seq, request.n_cached = taken.seq, taken.n_cached
                self._n_begun += 1
                todo = list(request.prompt[taken.n_cached :])
                self._running[request] = Running(request, taken.seq, todo, self._n_begun)
                self._n_waiting -= 1
                self._waiting.count(request.tenant, -taken.n_cached)
                operations += taken.operations
                admitted.append(request)
                self._turns.has_begun(others_wait=others_wait)
            else:
                later.append(entry)
                if taken is Wait.SLOT and request.wanted is None:
                    break
        for entry in later:
            self._waiting.put_back(entry)
        if admitted:
            self._running = dict(sorted(self._running.items(), key=lambda item: item[1].seq))
        return admitted

    def _passed_over(self, n_left: int) -> set[str]:
        """Return the tenants that get none of the slots that are left: the last one is for a tenant that has none."""
        if n_left > 1 or self.slots.n_slots < MIN_SLOTS_TO_KEEP_ONE:
            return set()
        return {request.tenant for request in self._running if request.tenant}

    def _generating(self, operations: list[Operation]) -> tuple[list[Rows[R]], list[Running[R]], int]:
        """Return the rows of requests that generate, the others, and how many tokens the rows have besides one each."""
        rows: list[Rows[R]] = []
        prompts: list[Running[R]] = []
        slots, n_ctx_seq, n_more = self.slots, self._n_ctx_seq, 0
        some = self._computed_together()
        room = self._limits.n_batch - len(some)
        for run in some:
            n = len(run.todo)
            pos = slots.n_computed(run.seq)
            is_short = n == 1 or (n <= MAX_FORCED_TOKENS + 1 and n_more + n <= room)
            if run.generated and is_short and n <= run.n_alike(pos):
                if pos == n_ctx_seq:
                    pos = self._shift(run, operations)
                request = run.request
                most = min(request.max_tokens - len(request.tokens), n_ctx_seq - pos - n + 1)
                rows.append(Rows(request, run.seq, run.todo, pos, True, most))
                n_more += n - 1
            else:
                prompts.append(run)
        return rows, prompts, n_more

    def _to_compute(self) -> Collection[Running[R]]:
        """Return the requests that can be computed: all, or one that may make decodes fail."""
        return [self._running[self._suspects[0]]] if self._suspects else self._running.values()

    def _computed_together(self) -> Collection[Running[R]]:
        """Return the requests of the next step: all with the adapters in use, or one, where each is computed alone."""
        runs = self.chunks.now(self._turns.now(self._to_compute()))
        if not self._limits.piece or not runs or self._suspects:
            return runs
        run = next((run for run in runs if run.seq > self._last_seq), runs[0])  # one after the other
        self._last_seq = run.seq
        return [run]

    def _shift(self, run: Running[R], operations: list[Operation]) -> int:
        """Let a full slot lose the oldest tokens behind those to keep; return the position of its next token."""
        n = self._n_ctx_seq
        begin = run.request.n_keep or 0
        end = begin + min(run.request.n_discard or (n - begin + 1) // 2, n - begin)
        operations.append(self.slots.shift(run.seq, begin, end))
        run.remove(begin, end)
        return self.slots.n_computed(run.seq)

    def _add_prompts(self, rows: list[Rows[R]], prompts: list[Running[R]], n_more: int) -> int:
        """Append rows of prompts; return how many tokens they have."""
        n_generating = len(rows)
        if self._limits.piece:
            rows.append(next_piece(prompts[0], self._limits, self.slots))
            return len(rows[-1].tokens)
        waiting = callers_waiting([row.request for row in rows], [run.request for run in prompts])
        budget = self.estimates.pace.prompt_budget(n_generating, waiting, sum(len(run.todo) for run in prompts))
        room = min(self._limits.n_batch - n_generating - n_more, budget)
        more = shared_rows(prompts, room, self._limits.n_outputs - n_generating, self.slots, self._n_ctx_seq)
        rows += more
        rows.sort(key=_seq_of)  # llama.cpp computes sequences together where their ids follow each other
        return sum(len(row.tokens) for row in more)

    # A step ends -----------------------------------------------------------------------------------------------------

    def apply(self, outcomes: Iterable[_O | None]) -> list[tuple[R, _O, int]]:
        """Take the outcome of the last plan: for each of its rows, in their order; None for rows without a sample.

        Returns each request that has new tokens or has ended, its outcome, and how many of the outcome's tokens are text:
        all but one that ends it. A request whose outcome has no tokens has failed.
        """
        plan = self._plan
        if plan is None:
            return []
        new: list[tuple[R, _O, int]] = []
        for rows, outcome in zip(plan.rows, outcomes, strict=True):
            request = rows.request
            run = self._running[request]
            if rows.scored:
                request.scored = rows.pos + rows.scored.stop + 1
            if outcome is None:
                self.slots.advance(rows.seq, len(rows.tokens))
                run.todo = run.todo[len(rows.tokens) :]
            elif request.finish_reason is None:
                new.append((request, outcome, self._take(run, rows, outcome)))
            else:  # it has ended during the step
                self._take(run, rows, outcome)
        if self._suspects and plan.rows[0].request is self._suspects[0]:
            del self._suspects[0]
        self._plan = None
        self._release_ended()
        return new

    def _take(self, run: Running[R], rows: Rows[R], outcome: Outcome) -> int:
        """Append the tokens of an outcome to the text; end the request where they end it. Returns how many are new text."""
        request, tokens, n_forced = rows.request, outcome.tokens, outcome.n_forced
        n = len(tokens)
        n_sampled = n - n_forced
        self.slots.advance(rows.seq, len(rows.tokens) - rows.n_guessed + max(n_sampled - 1, 0))
        if not n:
            self.finish(request, FinishReason.ERROR)
            return 0
        if request.guesser is not None:
            request.guesser.follow(tokens, n_forced)
        if outcome.n_verified:
            count_guesses(rows, outcome.n_verified, n_sampled - 1)
        last = tokens[-1]
        ends = last in self._eog
        if ends:
            tokens = tokens[:-1]
        run.generated += tokens
        self._waiting.count(request.tenant, n)
        if request.finish_reason is not None:
            return 0
        run.todo = [*tokens[n_sampled - 1 : n - 1], last] if n_forced else [last]
        request.tokens += tokens
        if ends:
            self.finish(request, FinishReason.STOP)
        elif n == rows.room and (request.n_keep is None or len(request.tokens) == request.max_tokens):
            self.finish(request, FinishReason.LENGTH)
        return len(tokens)

    # A step fails ----------------------------------------------------------------------------------------------------

    def operate(self, operations: Sequence[Operation]) -> None:
        """Let the next plan begin with these operations."""
        self._operations += operations

    def restore(self, lengths: Sequence[int]) -> None:
        """Take that the step of the last plan has failed, and memory has ``lengths[seq]`` positions of each sequence.

        The missing ones are computed again, and so are tokens whose logits are needed, as these are lost.
        """
        self._plan = None
        for run in self._running.values():
            text = run.text()
            kept, operations = self.slots.kept(run.seq, text, lengths[run.seq], run.n_usable())
            self._operations += operations
            run.todo = text[kept:]
            run.request.n_cached = min(run.request.n_cached, kept)
        for seq, length in enumerate(lengths):
            self._operations += self.slots.lose(seq, length)
        self._release_ended()

    def suspect(self, requests: Sequence[R]) -> None:
        """Compute each of these requests alone in its next step, to find the one that makes decodes fail."""
        self._suspects = [request for request in requests if request in self._running]

    def erase(self, seq: int) -> None:
        """Forget the text of a slot that is not in use."""
        self.slots.drop(seq)
        self._operations.append(Keep(seq, 0))

    def _release_ended(self) -> None:
        for request in self._ended:
            self._release(request)
        self._ended.clear()

    def _release(self, request: R) -> None:
        run = self._running.pop(request, None)
        if run is not None:
            self.slots.release(run.seq, run.generated)
            if not request.is_kept:
                self.erase(run.seq)
            request.prompt = ()
            if request in self._suspects:
                self._suspects.remove(request)


def _comes_last(operation: Operation) -> bool:
    """Return whether other operations of a plan come first: they may load the state that this one takes away."""
    return isinstance(operation, (Forget, Spill))


def _seq_of(rows: Rows[R]) -> int:
    return rows.seq
