"""A loop without a model: its runner says the same token to everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from offgrid_llama.engine.completion import Answer, Events
from offgrid_llama.engine.loop import Loop
from offgrid_llama.engine.planning.estimates import Estimates
from offgrid_llama.engine.planning.limits import Limits
from offgrid_llama.engine.planning.operations import Operation
from offgrid_llama.engine.planning.plan import Plan
from offgrid_llama.engine.planning.scheduler import Scheduler
from offgrid_llama.engine.planning.slots import Slots
from offgrid_llama.engine.request import EngineRequest
from offgrid_llama.sampling.step import Sampled
from offgrid_llama.sampling.token_sampler import TokenSampler
from offgrid_llama.text.text_stream import TextStream


class Parrot:
    """Computes nothing, and takes ``duration`` seconds for each step."""

    def __init__(self, duration: float = 0.0) -> None:
        self.duration = duration
        self.seconds, self.n_steps, self.n_guessed = 0.01, 1, 0
        self.draft_seconds: float | None = None
        self.saved: list[tuple[int, int | None]] = []
        self.closed = False

    def run(self, plan: Plan[EngineRequest], n_steps: int = 1, seconds: float = 0.0) -> Sequence[Sampled | None]:
        time.sleep(self.duration)
        return [Sampled([7], [b"x"], []) if rows.sample else None for rows in plan.rows]

    def sampled(self) -> Sequence[Sampled | None]:
        return []

    def lengths(self) -> list[int]:
        return []

    def carry_out(self, operations: Sequence[Operation]) -> None: ...
    def set_n_threads(self, n_threads: int) -> None: ...
    def interrupt(self, on: bool = True) -> None: ...
    def abort(self) -> None: ...
    def rest(self) -> None: ...

    def close(self) -> None:
        self.closed = True


def loop_over(runner: Parrot, n_seq_max: int = 2, when_idle: Callable[[], object] | None = None) -> Loop:
    limits = Limits(n_seq_max, n_batch=64, n_ctx_seq=256)
    scheduler: Scheduler[EngineRequest] = Scheduler(limits, Slots(limits), Estimates.of(limits))
    return Loop("Loop", runner, scheduler, max_queue=10, when_idle=when_idle)


def request_of(prompt: list[int], max_tokens: int) -> EngineRequest:
    """Return a request of one answer, with a completion of its own."""
    events = Events(len(prompt), time.perf_counter())
    request = EngineRequest(prompt, max_tokens, sampler=TokenSampler(), stream=TextStream(), events=events)
    request.answer = Answer(0, None, request)
    events.answers.append(request.answer)
    events.n_unfinished = 1
    return request
