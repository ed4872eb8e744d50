"""Runner: does what a Plan says, with a Context. The only file of the engine that touches one."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ..context import Context
from ..errors import ClosedError
from ..step import Sampled, Step
from .slots import Copy

if TYPE_CHECKING:
    from ..model import Model
    from .request import Request
    from .scheduler import Plan

__all__ = ["Runner"]

CONTENDED = 0.001
"""Seconds of waiting for the GIL after a step from which on some steps are made in one call: 5 ms are usual where another
thread computes, and next to nothing otherwise."""

TOGETHER = 0.064
"""Seconds that such a call may take."""


class Runner:
    """A context, and what the requests on it sample with.

    Args:
        model: the Model.
        n_ctx, n_seq_max, n_batch: see Context; micro-batches are whole batches.
        n_guessed: most tokens that are guessed in a step.
        options: further arguments of Context.

    Attributes:
        can_guess: whether memory can forget a token that was guessed wrong.
        seconds: how long the last step has taken, without waiting for the GIL.
        n_steps: how many steps the last call has made.
    """

    def __init__(
        self, model: Model, *, n_ctx: int, n_seq_max: int, n_batch: int, n_guessed: int, options: dict[str, Any]
    ) -> None:
        self.context = Context(
            model, **{"n_outputs_max": n_seq_max + n_guessed, **options}, n_ctx=n_ctx, n_seq_max=n_seq_max, n_batch=n_batch,
            n_ubatch=n_batch,
        )  # fmt: skip
        self.can_guess = (
            model.has_decoder
            and not model.is_recurrent
            and not model.is_hybrid
            and (not model.n_swa or self.context.params.swa_full)
        )
        self._step = Step(self.context, n_groups=n_seq_max)
        self._gil_seconds = 0.0  # waited after a call, lately
        self.seconds = 0.0
        self.n_steps = 0

    def run(self, plan: Plan) -> dict[Request, Sampled]:
        """Make a step, and return what was sampled.

        Raises as ``Context.decode`` does; then ``sampled()`` has what steps before the one that failed have sampled, and
        ``lengths()`` what memory holds.
        """
        memory, step = self.context.memory, self._step
        for operation in plan.operations:
            if isinstance(operation, Copy):
                memory.copy(operation.source, operation.target)
            elif not memory.remove(operation.seq, operation.length):
                raise RuntimeError(f"{memory!r} does not forget what follows position {operation.length}")
        step.clear()
        self._requests = []
        for rows in plan.rows:
            step.add(rows.tokens, rows.pos, rows.seq)
            if rows.sample:
                step.sample(rows.request.sampler, n_guessed=rows.n_guessed, room=rows.room)
                self._requests.append(rows.request)
        several = self._gil_seconds > CONTENDED and plan.n_generating == len(plan.rows) and not plan.n_guessed
        self.n_steps = 0
        sampled = step.run(step.width if several else 1, TOGETHER)
        self.n_steps = step.n_done
        self.seconds = step.decode_seconds / step.n_done
        self._gil_seconds = 0.5 * self._gil_seconds + 0.5 * step.gil_seconds
        return dict(zip(self._requests, sampled, strict=True))

    def sampled(self) -> dict[Request, Sampled]:
        """Return what the steps before one that failed have sampled; nothing where there were none."""
        return dict(zip(self._requests, self._step.results(), strict=True)) if self._step.n_done else {}

    def lengths(self) -> list[int]:
        """Return how many tokens of each sequence are in memory."""
        memory = self.context.memory
        return [memory.positions(seq).stop for seq in range(self.context.n_seq_max)]

    def interrupt(self, on: bool = True) -> None:
        """Let each ``run`` from now on make one step and no more, until ``interrupt(False)``; from any thread."""
        self._step.interrupt(on)

    def abort(self) -> None:
        """Let ``run`` raise Aborted within the step that is under way; from any thread."""
        with suppress(ClosedError):
            self.context.cancel()

    def rest(self) -> None:
        """Let go of what only a thread that is at work needs: idle threads of OpenMP slow down those of other contexts."""
        with suppress(ClosedError):
            self.context.release_threads()

    def close(self) -> None:
        """Free the context."""
        self.context.close()
