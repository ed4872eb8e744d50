"""Loop: the engine's thread. Each turn takes what has come in, makes a step, and gives out what it has sampled."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Protocol

from ..errors import Aborted, ClosedError, DecodeError, NativeError, QueueFullError, StateError
from .completion import Answer, Events, Piece, wake
from .guessing import Costs, Drafting
from .pace import Pace
from .padding import Padding
from .request import FinishReason, Request
from .scheduler import Plan, Scheduler
from .shelf import Shelf
from .slots import Slots, Trim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..step import Sampled

__all__ = ["EngineStats", "Loop"]

_logger = logging.getLogger("offgrid_llama.engine")

ALONE = 0.0005
"""Seconds that an engine that was idle waits, after a request has come, for others that come with it."""

TOGETHER = 0.02
"""Most seconds that it waits where more and more come."""

QUIET = 0.5
"""Seconds without a request after which that is done which can wait."""

UNSEEN = 8
"""Steps that are made in one call while nobody reads along; whatever comes in ends it with the step that is under way."""


class Runs(Protocol):
    """What the loop needs of a Runner."""

    seconds: float
    n_steps: int
    saved: list[tuple[int, int | None]]
    drafted: dict[Request, int]
    draft_seconds: float | None
    dropped: dict[Request, int]

    def run(self, plan: Plan, n_steps: int = 1, seconds: float = ...) -> dict[Request, Sampled]: ...
    def sampled(self) -> dict[Request, Sampled]: ...
    def lengths(self) -> list[int]: ...
    def set_n_threads(self, n_threads: int) -> None: ...
    def interrupt(self, on: bool = True) -> None: ...
    def abort(self) -> None: ...
    def rest(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done since it was made, and what it is doing.

    Attributes:
        n_waiting: requests in the queue. n_running: requests with a slot. n_cached: idle slots with something to reuse.
        n_free: slots with nothing.
        cached_tokens: tokens in idle slots. n_shelved: texts that had to leave their slots. shelved_bytes, disk_bytes: what
            they take of host memory and of the disk.
        prompt_tokens: of the prompts of all requests that have begun. prompt_tokens_cached: of these, those that were
            computed before. generated_tokens: of all requests.
        finished: how many requests have ended, by reason.
        n_steps: steps. step_seconds: time that they have taken together. last_step_seconds: of the last one.
        guessed_tokens: tokens that were guessed and checked. guessed_tokens_right: of these, those that were right.
        n_failed_steps: decodes that have failed or were cancelled, after which everything went on.
    """

    n_waiting: int
    n_running: int
    n_cached: int
    n_free: int
    cached_tokens: int
    n_shelved: int
    shelved_bytes: int
    disk_bytes: int
    prompt_tokens: int
    prompt_tokens_cached: int
    generated_tokens: int
    finished: dict[str, int]
    n_steps: int
    step_seconds: float
    last_step_seconds: float
    guessed_tokens: int
    guessed_tokens_right: int
    n_failed_steps: int

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that were computed before."""
        return self.prompt_tokens_cached / self.prompt_tokens if self.prompt_tokens else 0.0


class Loop:
    """The thread, and the way to it. It knows nothing of the Engine, so that one that is dropped can be finalized.

    Args:
        name: of the engine, for errors.
        runner: what makes the steps; the loop closes it.
        n_seq_max, n_batch, n_ctx_seq: of its context.
        eog: the tokens that end a text.
        max_queue: most requests that wait.
        n_guessed: most tokens that are guessed in a step.
        drafting: how much a draft model is to guess; None where there is none.
        trim: what its memory can forget.
        shelf_bytes: room for what has to leave it. disk_bytes: the same, on disk.
        n_cells: how many positions its sequences share; None where each has its own.
        pad_limit: a sequence with so many tokens takes no padding; 0 is none does.
        stream_interval: seconds within which no further piece is given to those who read along.
        when_quiet: called once, when for a while there was nothing to do; it does not take long.
    """

    def __init__(
        self,
        name: str,
        runner: Runs,
        *,
        n_seq_max: int,
        n_batch: int,
        n_ctx_seq: int,
        eog: Collection[int],
        max_queue: int,
        n_guessed: int = 0,
        drafting: Drafting | None = None,
        trim: Trim = Trim.ANY,
        shelf_bytes: int = 0,
        disk_bytes: int = 0,
        n_cells: int | None = None,
        pad_limit: int = 0,
        stream_interval: float = 0.0,
        when_quiet: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self._runner = runner
        self._shelf = Shelf(shelf_bytes, disk_bytes)
        self._slots = Slots(n_seq_max, trim=trim, shelf=self._shelf, n_cells=n_cells)
        self._pace = Pace(n_batch)
        self._costs = Costs(apart=n_cells is None)
        self._drafting = drafting
        self._padding = Padding(pad_limit) if pad_limit else None
        self._scheduler = Scheduler(
            self._slots, n_batch=n_batch, n_ctx_seq=n_ctx_seq, eog=eog, prompt_budget=self._pace.prompt_budget,
            costs=self._costs, drafting=drafting, padding=self._padding, n_guessed=n_guessed,
        )  # fmt: skip
        self._max_queue = max_queue
        self._inbox: SimpleQueue[tuple[str, Sequence[Request]]] = SimpleQueue()
        self._n_threads: int | None = None  # that the next step is to have, if that changes
        self._lock = threading.Lock()  # for the two below
        self._n_queued = 0
        self._closed = ""  # why, once it is
        self._failure: BaseException | None = None
        self._stopping = self._draining = False
        self._plan: Plan | None = None
        self._woken: dict[Events, None] = {}
        self._finished: Counter[str] = Counter()
        self._prompt_tokens = self._prompt_tokens_cached = self._generated_tokens = 0
        self._guessed_tokens = self._guessed_tokens_right = 0
        self._n_steps = self._n_failed_steps = 0
        self._step_seconds = self._last_step_seconds = 0.0
        self._stream_interval = stream_interval
        self._when_quiet = when_quiet
        self._thread = threading.Thread(target=self._run, name=f"offgrid_llama {name}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    # From any thread --------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests.

        Raises QueueFullError, and ClosedError.
        """
        with self._lock:
            self.check_open()
            if self._n_queued + len(requests) > self._max_queue:
                raise QueueFullError(
                    f"{self.name}: {self._n_queued} requests wait, and max_queue is {self._max_queue}",
                    n_waiting=self._n_queued,
                )
            self._n_queued += len(requests)
            self._inbox.put(("add", requests))
        self._runner.interrupt()

    def cancel(self, requests: Sequence[Request]) -> None:
        """End requests at the next step, or within this one where it is mostly theirs."""
        self._inbox.put(("cancel", requests))
        self._runner.interrupt()
        plan = self._plan
        if plan is not None and plan.n_prompt:
            theirs = sum(len(rows.tokens) for rows in plan.rows if rows.request in requests)
            if 2 * theirs > plan.n_generating + plan.n_prompt:
                self._runner.abort()

    def close(self, drain: bool = False) -> None:
        """End all requests, or with ``drain`` wait until they have ended; then end the thread and free the context."""
        with self._lock:
            self._closed = self._closed or "is closed"
        self._inbox.put(("drain" if drain else "stop", ()))  # a second one, too: it may be in more of a hurry
        if not drain:
            self._runner.interrupt()
            self._runner.abort()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def set_n_threads(self, n_threads: int) -> None:
        """Let steps have so many threads from the next one on."""
        self._n_threads = n_threads
        self._runner.interrupt()

    def check_open(self) -> None:
        """Raise ClosedError unless it is open."""
        if self._closed:
            raise ClosedError(f"{self.name} {self._closed}") from self._failure

    @property
    def closed(self) -> str:
        """Why it is closed; empty while it is open."""
        return self._closed

    def stats(self) -> EngineStats:
        """Return what it has done and is doing."""
        slots = self._slots
        return EngineStats(
            n_waiting=self._n_queued, n_running=slots.n_running, n_cached=slots.n_idle, n_free=slots.n_free,
            cached_tokens=slots.n_cached_tokens, n_shelved=len(self._shelf), shelved_bytes=self._shelf.n_bytes,
            disk_bytes=self._shelf.n_disk_bytes, prompt_tokens=self._prompt_tokens,
            prompt_tokens_cached=self._prompt_tokens_cached, generated_tokens=self._generated_tokens,
            finished=dict(self._finished), n_steps=self._n_steps, step_seconds=self._step_seconds,
            last_step_seconds=self._last_step_seconds, guessed_tokens=self._guessed_tokens,
            guessed_tokens_right=self._guessed_tokens_right, n_failed_steps=self._n_failed_steps,
        )  # fmt: skip

    # In its own thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                stepped = self._turn()
                if self._stopping or (self._draining and not stepped):
                    break
                if not stepped:
                    if self._inbox.empty():
                        self._runner.rest()
                    self._receive(*self._wait())
                    self._gather()
        except BaseException as error:
            if not isinstance(error, ClosedError):
                _logger.exception("%s has failed", self.name)
            self._failure = error
            with self._lock:
                self._closed = f"has failed: {error}"
        self._stop()

    def _wait(self) -> tuple[str, Sequence[Request]]:
        """Return what comes in next."""
        if self._when_quiet is not None:
            with suppress(Empty):
                return self._inbox.get(timeout=QUIET)
            when_quiet, self._when_quiet = self._when_quiet, None
            when_quiet()
        return self._inbox.get()

    def _gather(self) -> None:
        """Wait for those who come together with the first, so that they share their steps from the beginning."""
        until = perf_counter() + TOGETHER
        while True:
            sleep(ALONE)
            if self._inbox.empty() or perf_counter() > until:
                return
            while not self._inbox.empty():
                self._receive(*self._inbox.get())

    def _turn(self) -> bool:
        """Take what has come in, and make one step. Returns False where there is nothing to do."""
        runner, scheduler, inbox = self._runner, self._scheduler, self._inbox
        runner.interrupt(False)
        while not inbox.empty():
            self._receive(*inbox.get())
        if self._stopping:
            return False
        n_threads, self._n_threads = self._n_threads, None
        if n_threads is not None:
            runner.set_n_threads(n_threads)
        self._plan = plan = scheduler.plan()
        if plan is None:
            self._flush()
            return False
        if plan.admitted:
            self._begin(plan.admitted)
        if plan.n_prompt:
            self._release(plan)
        try:
            if not any(rows.request.answer.events.streaming for rows in plan.rows):
                sampled = runner.run(plan, UNSEEN)
            elif self._stream_interval:
                sampled = runner.run(plan, UNSEEN, self._stream_interval)
            else:
                sampled = runner.run(plan, 1)
        except (DecodeError, NativeError, StateError) as error:
            self._restore(plan, error)
        else:
            self._learn(plan)
            self._give(sampled, runner.drafted, runner.dropped)
        for key, n_bytes in runner.saved:
            scheduler.operate(self._shelf.weigh(key, n_bytes))
        self._plan = None
        self._flush()
        return True

    def _learn(self, plan: Plan) -> None:
        """Take what the step has cost."""
        runner = self._runner
        self._n_steps += runner.n_steps
        self._last_step_seconds = runner.seconds
        self._step_seconds += runner.seconds * runner.n_steps
        n_guessed = plan.n_guessed + sum(runner.drafted.values()) - sum(runner.dropped.values())
        if not n_guessed:
            self._pace.observe(plan.n_generating, plan.n_prompt, runner.seconds)
            if not plan.n_prompt and self._padding is not None:
                self._padding.observe(plan.n_generating + len(plan.pads), runner.seconds)
        if not plan.n_prompt:
            self._costs.observe(plan.n_generating, n_guessed, runner.seconds)
        if runner.draft_seconds is not None and self._drafting is not None:
            self._drafting.observe(runner.draft_seconds)

    def _receive(self, what: str, requests: Sequence[Request]) -> None:
        if what == "add":
            for request in requests:
                self._scheduler.add(request)
        elif what == "cancel":
            for request in requests:
                self._finish(request, FinishReason.CANCELLED)
        elif what == "drain":
            self._draining = True
        else:
            self._stopping = True

    def _begin(self, requests: Sequence[Request]) -> None:
        now = perf_counter()
        with self._lock:
            self._n_queued -= len(requests)
        for request in requests:
            request.answer.started = now
            self._prompt_tokens += len(request.prompt)
            self._prompt_tokens_cached += request.n_cached

    def _restore(self, plan: Plan, error: DecodeError | NativeError | StateError) -> None:
        """Go on after a decode that has failed, without the request that is to blame."""
        self._n_failed_steps += 1
        if sampled := self._runner.sampled():
            self._give(sampled)
        self._scheduler.restore(self._runner.lengths())
        if isinstance(error, (Aborted, StateError)):  # of nobody's making
            return
        requests = [rows.request for rows in plan.rows]
        if len(requests) == 1:
            self._finish(requests[0], FinishReason.ERROR, error)
        else:
            self._scheduler.suspect(requests)

    def _give(
        self,
        sampled: dict[Request, Sampled],
        drafted: Mapping[Request, int] | None = None,
        dropped: Mapping[Request, int] | None = None,
    ) -> None:
        """Turn what was sampled into text, and give it out."""
        now = perf_counter()
        tokens_of = {request: each.tokens for request, each in sampled.items()}
        forced = {request: each.n_forced for request, each in sampled.items() if each.n_forced}
        for request, tokens in self._scheduler.apply(tokens_of, drafted, forced, dropped):
            answer, each = request.answer, sampled[request]
            if answer.first_token is None:
                answer.first_token = now
            stream, pieces = answer.stream, each.pieces
            if answer.shown is not None:
                shown = answer.shown
                pieces = [piece or shown.get(token, b"") for token, piece in zip(each.tokens, pieces, strict=True)]
            text = stream.push(pieces[0])
            n = 1
            while n < len(tokens) and stream.stopped is None:
                text += stream.push(pieces[n])
                n += 1
            if stream.stopped is not None:
                del request.tokens[len(request.tokens) - len(tokens) + n :]
                self._scheduler.finish(request, FinishReason.STOP)
                request.finish_reason = FinishReason.STOP  # also where max_tokens were reached with it
            elif each.ended:
                self._scheduler.finish(request, FinishReason.STOP)
                request.finish_reason = FinishReason.STOP
            self._generated_tokens += n
            if each.logprobs:
                answer.logprobs += each.logprobs[:n]
            if request.finish_reason is not None:
                self._end_answer(request, text)
            elif text and answer.n_told and now - answer.told < self._stream_interval:
                answer.held += text
            elif text:
                self._tell(answer, text)
        for request, each in sampled.items():
            if request.finish_reason is not None and request.answer.finish_reason is None:  # without a new token
                self._end_answer(request, "", each.error)

    def _finish(self, request: Request, reason: FinishReason, error: BaseException | None = None) -> None:
        if request.finish_reason is not None:
            return
        if request.seq is None:
            with self._lock:
                self._n_queued -= 1
        self._scheduler.finish(request, reason)
        self._end_answer(request, "", error)

    def _end_answer(self, request: Request, text: str, error: BaseException | None = None) -> None:
        """Give out the last of an answer."""
        answer = request.answer
        text += answer.stream.finish()
        if answer.stream.stopped is not None and request.finish_reason is FinishReason.LENGTH:
            request.finish_reason = FinishReason.STOP
        answer.stop, answer.error, answer.finish_reason = answer.stream.stopped, error, request.finish_reason
        answer.finished = perf_counter()
        self._finished[answer.finish_reason.value] += 1
        self._guessed_tokens += request.n_guessed
        self._guessed_tokens_right += request.n_right
        request.sampler.close()
        self._tell(answer, text)
        answer.events.n_unfinished -= 1
        self._woken[answer.events] = None

    def _release(self, plan: Plan) -> None:
        """Give out what was held for the next piece, before a step that may take long."""
        for rows in plan.rows:
            if rows.request.answer.held:
                self._tell(rows.request.answer, "")
        self._flush()

    def _tell(self, answer: Answer, text: str) -> None:
        begin, answer.n_told = answer.n_told, len(answer.request.tokens)
        text, answer.held = answer.held + text, ""
        answer.told = perf_counter()
        answer.text += text
        events: Events = answer.events
        # Tuples of numbers cost the garbage collector nothing.
        tokens, logprobs = (
            tuple(answer.request.tokens[begin:]),
            tuple(answer.logprobs[begin:]) if answer.logprobs else (),
        )
        events.pieces.append(Piece(text, tokens, logprobs, answer.index, answer.finish_reason))
        if events.waiting:
            self._woken[events] = None

    def _flush(self) -> None:
        """Wake all who wait for what this turn has given out."""
        if self._woken:
            wake(self._woken)
            self._woken = {}

    def _stop(self) -> None:
        """End all requests, and free the context."""
        while not self._inbox.empty():
            self._receive(*self._inbox.get())
        reason, error = FinishReason.CANCELLED, None
        if self._failure is not None:
            reason, error = FinishReason.ERROR, ClosedError(f"{self.name} {self._closed}")
            error.__cause__ = self._failure
        for request in self._scheduler.unfinished():
            self._finish(request, reason, error)
        self._flush()
        self._runner.close()
