"""Loop: the engine's thread. Each turn takes what has arrived, makes a step, and delivers what it has sampled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from time import perf_counter, sleep
from typing import TYPE_CHECKING, TypeVar

from offgrid_llama.errors import Aborted, ClosedError, DecodeError, NativeError, QueueFullError, StateError
from offgrid_llama.finish_reason import FinishReason

from .delivery import Delivery
from .inbox import Add, Call, Cancel, Encoded, Item, Stop
from .planning.plan import Plan
from .planning.scheduler import Scheduler
from .request import EngineRequest
from .stats import EngineStats

if TYPE_CHECKING:
    from offgrid_llama.sampling.step import Sampled

    from .encoder import Encoder
    from .runs import Runs

__all__ = ["Loop"]

_T = TypeVar("_T")

_logger = logging.getLogger("offgrid_llama.engine")

GATHER_PAUSE_SECONDS = 0.0005
"""How long an engine that was idle waits, after a request has arrived, for others that arrive with it."""

GATHER_MAX_SECONDS = 0.02
"""How long it waits at most while more and more of them arrive."""

IDLE_AFTER_SECONDS = 0.5
"""Seconds without a request after which the engine does what can wait."""

STEPS_WITHOUT_READER = 8
"""Steps that one call makes, at most, while no caller iterates; an arriving request ends it after the step under way."""


class Loop:
    """The thread of an engine, and the way to it. It does not know the Engine, so that a dropped one can be finalized.

    Args:
        name: the engine's, for errors.
        runner: makes the steps; the loop closes it.
        scheduler: plans them.
        encoder: encodes the pictures and sounds of prompts; the loop closes it. None where there are none.
        max_queue: most requests that wait, while all slots are in use.
        stream_interval: seconds within which a reader gets no further piece.
        when_idle: called once, when no request has arrived for a while; it does not take long.

    Attributes:
        name, runner, scheduler: as given.
        delivery: turns tokens into text.
        steps_without_reader: STEPS_WITHOUT_READER. idle_after_seconds: IDLE_AFTER_SECONDS.
    """

    def __init__(
        self,
        name: str,
        runner: Runs,
        scheduler: Scheduler[EngineRequest],
        *,
        encoder: Encoder | None = None,
        max_queue: int,
        stream_interval: float = 0.0,
        when_idle: Callable[[], object] | None = None,
    ) -> None:
        self.name = name
        self.runner = runner
        self.scheduler = scheduler
        self.delivery = Delivery(scheduler.finish, stream_interval, None if encoder is None else encoder.forget)
        self.steps_without_reader = STEPS_WITHOUT_READER
        self.idle_after_seconds = IDLE_AFTER_SECONDS
        self._slots = scheduler.slots
        self._shelf = scheduler.slots.shelf
        self._estimates = scheduler.estimates
        self._when_idle = when_idle
        self._encoder = encoder
        if encoder is not None:
            encoder.on_done = self._look_again
        self._max_queue = max_queue
        self._inbox: SimpleQueue[Item] = SimpleQueue()
        self._n_threads: int | None = None  # for the next step, if they change
        self._lock = threading.Lock()  # for the next three
        self._n_queued = self._n_submitted = 0
        self._closed = ""  # why it is
        self._failure: BaseException | None = None
        self._stopping = self._draining = False
        self._plan: Plan[EngineRequest] | None = None
        self._calls: list[Call] = []  # that are not ready
        self._n_steps = self._n_failed_steps = 0
        self._step_seconds = self._last_step_seconds = 0.0
        self._thread = threading.Thread(target=self._run, name=f"offgrid_llama {name}", daemon=True)

    def start(self) -> None:
        """Start the thread. Without it, the caller makes each ``turn``."""
        self._thread.start()

    # From any thread --------------------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[EngineRequest]) -> None:
        """Queue requests.

        Raises QueueFullError, and ClosedError.
        """
        with self._lock:
            self.check_open()
            n_unfinished = self._n_submitted - self.delivery.n_ended
            # A request that finds a free slot does not count as waiting.
            if n_unfinished + len(requests) > self._slots.n_slots + self._max_queue:
                raise QueueFullError(
                    f"{self.name}: {self._n_queued} requests wait, and max_queue is {self._max_queue}",
                    n_waiting=self._n_queued,
                )
            self._n_queued += len(requests)
            self._n_submitted += len(requests)
            self._inbox.put(Add(requests))
        self.runner.interrupt()

    def cancel(self, requests: Sequence[EngineRequest]) -> None:
        """End requests at the next step, or within this one where most of it is theirs."""
        self._inbox.put(Cancel(requests))
        self.runner.interrupt()
        plan = self._plan
        if plan is not None and plan.n_prompt:
            theirs = sum(len(rows.tokens) for rows in plan.rows if rows.request in requests)
            if 2 * theirs > plan.n_generating + plan.n_prompt:
                self.runner.abort()

    def close(self, drain: bool = False) -> None:
        """End all requests, or with ``drain`` wait until they have ended; then end the thread and free the context.

        Ctrl-C while it waits for requests cancels them.
        """
        with self._lock:
            self._closed = self._closed or "is closed"
        self._inbox.put(Stop(drain))  # also a second time: that call may not drain
        if not drain:
            self.runner.interrupt()
            self.runner.abort()
        if self._thread.ident is None:  # it was never started
            self._run()
        elif threading.current_thread() is not self._thread:
            try:
                self._thread.join()
            except BaseException:  # Ctrl-C: what the caller no longer waits for is not computed
                if drain:
                    self.close()
                raise

    def call(self, function: Callable[[], _T], ready: Callable[[], bool] = lambda: True) -> _T:
        """Call a function in the engine's thread, between two steps, once it is ``ready``; return what it returns.

        Raises what it raises, and ClosedError.
        """
        call = Call(function, ready, Future())
        with self._lock:
            self.check_open()
            self._inbox.put(call)
        self.runner.interrupt()
        result: _T = call.result.result()
        return result

    def set_n_threads(self, n_threads: int) -> None:
        """Compute with ``n_threads`` threads from the next step on."""
        self._n_threads = n_threads
        self.runner.interrupt()

    def check_open(self) -> None:
        """Raise ClosedError unless it is open."""
        if self._closed:
            raise ClosedError(f"{self.name} {self._closed}") from self._failure

    @property
    def closed(self) -> str:
        """Why it is closed; empty while it is open."""
        return self._closed

    @property
    def is_stepping(self) -> bool:
        """Whether a step is under way."""
        return self._plan is not None

    @property
    def has_work(self) -> bool:
        """Whether a request has not ended, or something has arrived."""
        return bool(self.scheduler.unfinished()) or not self._inbox.empty()

    def stats(self) -> EngineStats:
        """Return what it has done and is doing."""
        slots, shelf, given = self._slots, self._shelf, self.delivery
        return EngineStats(
            n_waiting=self._n_queued, n_running=slots.n_running, n_cached=slots.n_idle, n_free=slots.n_free,
            cached_tokens=slots.n_cached_tokens, n_shelved=len(shelf), shelved_bytes=shelf.n_bytes,
            disk_bytes=shelf.n_disk_bytes, prompt_tokens=given.prompt_tokens,
            prompt_tokens_cached=given.prompt_tokens_cached, generated_tokens=given.generated_tokens,
            finished=dict(given.finished), n_steps=self._n_steps, step_seconds=self._step_seconds,
            last_step_seconds=self._last_step_seconds, guessed_tokens=given.guessed_tokens,
            guessed_tokens_right=given.guessed_tokens_right, n_failed_steps=self._n_failed_steps,
            n_encoded=0 if self._encoder is None else self._encoder.n_encoded,
        )  # fmt: skip

    # In its own thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                stepped = self.turn()
                if self._stopping or (self._draining and not stepped and not self.scheduler.unfinished()):
                    break
                if not stepped:
                    if self._inbox.empty():
                        self.runner.rest()
                    self._receive(self._wait())
                    self._gather()
        except BaseException as error:
            if not isinstance(error, ClosedError):
                _logger.exception("%s has failed", self.name)
            self._failure = error
            with self._lock:
                self._closed = f"has failed: {error}"
        self._end()

    def _wait(self) -> Item:
        """Return what arrives next."""
        if self._when_idle is not None:
            with suppress(Empty):
                return self._inbox.get(timeout=self.idle_after_seconds)
            when_idle, self._when_idle = self._when_idle, None
            when_idle()
        return self._inbox.get()

    def _gather(self) -> None:
        """Wait for requests that arrive together with the first, so that they share their steps from the beginning."""
        until = perf_counter() + GATHER_MAX_SECONDS
        while True:
            sleep(GATHER_PAUSE_SECONDS)
            if self._inbox.empty() or perf_counter() > until:
                return
            while not self._inbox.empty():
                self._receive(self._inbox.get())

    def turn(self) -> bool:
        """Take what has arrived, and make one step. Returns False where there is nothing to do."""
        runner, inbox = self.runner, self._inbox
        runner.interrupt(False)
        while not inbox.empty():
            self._receive(inbox.get())
        if self._stopping:
            return False
        if self._calls:
            self._calls = [call for call in self._calls if not call.make()]
        n_threads, self._n_threads = self._n_threads, None
        if n_threads is not None:
            runner.set_n_threads(n_threads)
        self._plan = plan = self._planned()
        has_failed = self._encoder is not None and self._encode(self._encoder)
        if plan is None:
            self.delivery.flush()
            return has_failed
        if plan.n_prompt:
            self.delivery.release(plan)
        try:
            sampled = self._step(plan)
        except (DecodeError, NativeError, StateError) as error:
            self._restore(plan, error)
        else:
            self._learn(plan)
            if plan.n_prompt:
                self.delivery.progress(plan)
            self.delivery.give(self.scheduler.apply(sampled))
        self._weigh()
        self._plan = None
        self.delivery.flush()
        return True

    def _planned(self) -> Plan[EngineRequest] | None:
        """Return the next step, for requests that have begun; None where there is nothing to compute now."""
        if self._encoder is not None:
            self._encoder.make_room()
        plan = self.scheduler.plan()
        if plan is not None and plan.admitted:
            self._begin(plan.admitted)
        if plan is not None and plan.rows:
            return plan
        if self._encoder is not None:  # copies of prefixes are made while a request waits for its picture
            try:
                self.runner.carry_out(self.scheduler.pending())
            except StateError:
                self.scheduler.restore(self.runner.lengths())
            self._weigh()
        return None

    def _weigh(self) -> None:
        """Take the sizes of the states that were saved."""
        for key, n_bytes in self.runner.saved:
            self.scheduler.operate(self._shelf.weigh(key, n_bytes))

    def _encode(self, encoder: Encoder) -> bool:
        """Have the pictures encoded that requests wait for; end those whose picture has failed. Returns whether one has."""
        has_failed = False
        for request, chunk in self.scheduler.chunks.awaited:
            if (failure := encoder.want(request, chunk)) is not None:
                self._finish(request, FinishReason.ERROR, failure)
                has_failed = True
        return has_failed

    def _look_again(self) -> None:
        self._inbox.put(Encoded())
        self.runner.interrupt()

    def _step(self, plan: Plan[EngineRequest]) -> Sequence[Sampled | None]:
        """Make a step, or several in one call where no caller iterates, or does not need each piece at once."""
        for rows in plan.rows:
            if rows.request.events.streaming:
                interval = self.delivery.stream_interval
                return self.runner.run(plan, self.steps_without_reader, interval) if interval else self.runner.run(plan)
        return self.runner.run(plan, self.steps_without_reader)

    def _learn(self, plan: Plan[EngineRequest]) -> None:
        """Take the time of a step."""
        runner = self.runner
        self._n_steps += runner.n_steps
        self._last_step_seconds = runner.seconds
        self._step_seconds += runner.seconds * runner.n_steps
        self._estimates.observe(plan, runner.n_guessed, runner.seconds, runner.draft_seconds)

    def _receive(self, item: Item) -> None:
        if isinstance(item, Add):
            for request in item.requests:
                self.scheduler.add(request)
        elif isinstance(item, Cancel):
            for request in item.requests:
                self._finish(request, FinishReason.CANCELLED)
        elif isinstance(item, Call):
            self._calls.append(item)
        elif isinstance(item, Stop):
            self._stopping, self._draining = self._stopping or not item.drain, self._draining or item.drain

    def _begin(self, requests: Sequence[EngineRequest]) -> None:
        with self._lock:
            self._n_queued -= len(requests)
        self.delivery.begin(requests)
        for request in requests:
            chunk = request.chunk_at(request.n_cached)
            if chunk is not None and self._encoder is not None:
                self._encoder.want(request, chunk)

    def _restore(self, plan: Plan[EngineRequest], error: DecodeError | NativeError | StateError) -> None:
        """Go on after a decode that has failed, without the request that has made it fail."""
        self._n_failed_steps += 1
        if sampled := self.runner.sampled():
            self.delivery.give(self.scheduler.apply(sampled))
        self.scheduler.restore(self.runner.lengths())
        if isinstance(error, (Aborted, StateError)):  # no request has caused it
            return
        requests = [rows.request for rows in plan.rows]
        if len(requests) == 1:
            self._finish(requests[0], FinishReason.ERROR, error)
        else:
            self.scheduler.suspect(requests)

    def _finish(self, request: EngineRequest, reason: FinishReason, error: BaseException | None = None) -> None:
        if request.finish_reason is not None:
            return
        if request.seq is None:
            with self._lock:
                self._n_queued -= 1
        self.scheduler.finish(request, reason)
        self.delivery.end(request, "", error)

    def _end(self) -> None:
        """End all requests, and free the context."""
        while not self._inbox.empty():
            self._receive(self._inbox.get())
        reason, error = FinishReason.CANCELLED, None
        if self._failure is not None:
            reason, error = FinishReason.ERROR, ClosedError(f"{self.name} {self._closed}")
            error.__cause__ = self._failure
        for request in self.scheduler.unfinished():
            self._finish(request, reason, error)
        self.delivery.flush()
        if self._encoder is not None:
            self._encoder.close()
        for call in self._calls:
            call.result.set_exception(ClosedError(f"{self.name} {self._closed}"))
        self.runner.close()
