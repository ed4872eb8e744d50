"""assemble(): the parts of an engine, made for its runner and put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from offgrid_llama.model.adapter import LoRA
from offgrid_llama.sampling.grammar.guide import prepare

from .encoder import Encoder
from .loop import Loop
from .loras import Adapters
from .planning.estimates import Estimates
from .planning.scheduler import Scheduler
from .planning.shelf import Shelf
from .planning.slots import Slots
from .request import EngineRequest
from .runner import Runner
from .sequences import Sequences
from .submission import Submitter

__all__ = ["Assembly", "assemble"]


@dataclass(frozen=True)
class Assembly:
    """The parts of an engine.

    Attributes:
        loop: its thread. submitter: makes its requests. sequences: what its callers see of its sequences.
        n_ctx_seq: the most tokens of a sequence.
    """

    loop: Loop
    submitter: Submitter
    sequences: Sequences
    n_ctx_seq: int


def assemble(
    runner: Runner,
    *,
    encoder: Encoder | None,
    adapters: Mapping[str, LoRA],
    loras: Adapters,
    cache_bytes: int,
    cache_dir_bytes: int,
    max_queue: int,
    stream_interval: float,
) -> Assembly:
    """Return the parts of an engine around its runner. The arguments are the engine's."""
    context, model = runner.context, runner.context.model
    slots = Slots(runner.limits, Shelf(cache_bytes, cache_dir_bytes))
    estimates = Estimates.of(runner.limits, drafts=runner.drafter is not None)
    scheduler: Scheduler[EngineRequest] = Scheduler(
        runner.limits, slots, estimates, adapters=tuple(runner.loras.items()),
        is_ready=bool if encoder is None else encoder.has,
    )  # fmt: skip
    submitter = Submitter(
        model, limits=runner.limits, encoder=encoder, can_shift=context.memory.can_shift, drafting=estimates.drafting,
        loras=loras, adapters=adapters,
    )  # fmt: skip
    loop = Loop(
        f"Engine of {model.handle.name}", runner, scheduler, encoder=encoder, max_queue=max_queue,
        stream_interval=stream_interval, when_idle=partial(prepare, model.vocab),
    )  # fmt: skip
    return Assembly(loop, submitter, Sequences(loop, scheduler, runner), context.n_ctx_seq)
