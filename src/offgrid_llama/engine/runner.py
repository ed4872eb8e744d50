"""Runner: does what a Plan says, with a Context. Beside the drafter the only file of the engine that touches one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..context import Context
from ..errors import AdapterError, ClosedError, ContextError, StateError
from ..fast_sampling import FastSampler
from ..params import VocabType
from ..step import Sampled, Step
from .drafter import Drafter
from .operations import Copy, Forget, Load, Operation, Save, Shift, Spill
from .slots import Trim
from .spill import SpillFolder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..adapter import LoRA
    from ..model import Model
    from ..state import State
    from .completion import Answer
    from .request import Request
    from .scheduler import Plan, Rows

__all__ = ["Runner", "StepView"]

_logger = logging.getLogger("offgrid_llama.engine")

CONTENDED = 0.001
"""Seconds of waiting for the GIL after a step from which on some steps are made in one call: 5 ms are usual where another
thread computes, and next to nothing otherwise."""

TOGETHER = 0.064
"""Seconds that such a call may take."""

ALIKE = {"n_threads", "n_threads_batch", "flash_attn_type", "kv_unified"}
"""Options of Context that are those of the draft model's context, too."""


@dataclass(frozen=True, slots=True)
class StepView:
    """What ``on_step`` gets: the logits from which the next tokens are to be sampled.

    Attributes:
        answers: the answers that get a token each.
        logits: float32[len(answers), n_vocab], theirs alone: write to it what they are to be sampled from.
    """

    answers: list[Answer]
    logits: npt.NDArray[np.float32]


class Runner:
    """A context, and what the requests on it sample with.

    Args:
        model: the Model.
        n_ctx, n_seq_max, n_batch: see Context; micro-batches are whole batches.
        n_guessed: most tokens that are guessed in a step.
        on_step: called in each step before tokens are sampled.
        draft: the draft model; None is none.
        loras: adapters of the model in use.
        cache_dir: where to put what host memory has no room for; None is nowhere.
        options: further arguments of Context.

    Attributes:
        trim: what memory can forget.
        n_cells: how many positions the sequences share; None where each has its own.
        pad_limit: a sequence with so many tokens takes no padding, which is computed for nobody; 0 is none does.
        saved: the keys and bytes of what the last step has put on the shelf; None is what is not there.
        drafted: how many tokens the draft model has guessed in the last step, by request. draft_seconds: how long it has
            taken for each of them, where that is known.
        dropped: how many of the plan's guesses were not computed in the last step, as the grammar forbids them, by request.
        seconds: how long the last step has taken, without waiting for the GIL.
        n_steps: how many steps the last call has made.
    """

    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int,
        n_seq_max: int,
        n_batch: int,
        n_guessed: int,
        on_step: Callable[[StepView], object] | None,
        draft: Model | None = None,
        loras: Mapping[LoRA, float] | Iterable[LoRA] = (),
        cache_dir: str | os.PathLike[str] | None = None,
        options: dict[str, Any],
    ) -> None:
        if model.has_encoder:
            raise ContextError(f"{model._handle.name} has an encoder; the engine is for models that only decode")
        if model.vocab.type is VocabType.NONE:
            raise ContextError(f"{model._handle.name} has no vocabulary, and the engine is to give text")
        self.context = Context(
            model, **{"n_outputs_max": n_seq_max + n_guessed, **options}, n_ctx=n_ctx, n_seq_max=n_seq_max, n_batch=n_batch,
            n_ubatch=n_batch,
        )  # fmt: skip
        whole = model.is_recurrent or model.is_hybrid or (model.n_swa > 0 and not self.context.params.swa_full)
        self.trim = Trim.NOTHING if whole else Trim.COMPUTED if model.n_swa else Trim.ANY
        shares = self.context.params.kv_unified and not model.is_recurrent
        self.n_cells = self.context.n_ctx if shares else None
        # For a token more of a sequence that is longer than the window, llama.cpp lets go of one that is out of it.
        n_ctx_seq = self.context.n_ctx_seq
        self.pad_limit = 0 if whole or shares else min(n_ctx_seq, model.n_swa or n_ctx_seq)
        self._own_cells_here = self.trim is Trim.ANY and not shares and not model.params.n_gpu_layers
        self._step = Step(self.context, n_groups=n_seq_max)
        self._drafter: Drafter | None = None
        self._disk: SpillFolder | None = None
        try:
            self.context.set_loras(loras)
            for lora in self.context._loras:
                if lora.invocation_tokens:
                    raise AdapterError(f"{lora.path} is to begin with certain tokens (aLoRA), and not for all requests")
            if draft is not None:
                self._drafter = self._make_drafter(draft, options)
            if cache_dir is not None:
                self._disk = SpillFolder(cache_dir)
        except BaseException:
            self.close()
            raise
        self.drafted: dict[Request, int] = {}
        self.draft_seconds: float | None = None
        self.dropped: dict[Request, int] = {}
        self._hook = on_step
        self._gil_seconds = 0.0  # waited after a call, lately
        self._requests: list[Request] = []  # whose tokens a step samples
        self._states: dict[int, State] = {}
        self.saved: list[tuple[int, int | None]] = []
        self.seconds = 0.0
        self.n_steps = 0

    def run(self, plan: Plan, n_steps: int = 1, seconds: float = TOGETHER) -> dict[Request, Sampled]:
        """Make a step, or where the plan is steady up to ``n_steps`` that begin within ``seconds``; return what was sampled.

        Raises as ``Context.decode`` does, and StateError where something was lost; then
        ``sampled()`` has what steps before the one that failed have sampled, and ``lengths()`` what memory holds.
        """
        step = self._step
        self.saved = []
        self.dropped = {}
        self._requests = []
        step.clear()
        # All of them are done, also where one fails: the slots go by that.
        failures = [failure for operation in plan.operations if (failure := self._operate(operation)) is not None]
        if failures:
            raise failures[0]
        drafts = self._draft(plan)
        processed: dict[Request, tuple[int, int]] = {}  # with their rows, and their room
        pads = sorted(plan.pads, reverse=True)
        for rows in plan.rows:
            while pads and pads[-1][0] < rows.seq:  # they are to follow each other
                step.pad(*pads.pop())
            request, tokens, n_guessed = rows.request, rows.tokens, rows.n_guessed
            if n_guessed and request.guided:
                sure = len(tokens) - n_guessed
                guessed = self._foresee(request, tokens[sure:])
                tokens = [*tokens[:sure], *guessed]
                self.dropped[request] = n_guessed - len(guessed)
                n_guessed = len(guessed)
            step.add(tokens, rows.pos, rows.seq)
            if draft := drafts.get(request):
                draft = draft[: rows.n_draft]
                step.add(draft, rows.pos + len(rows.tokens), rows.seq)
                n_guessed = self.drafted[request] = len(draft)
            if rows.sample:
                by_hand = self._hook is not None or request.processors
                row = step.sample(None if by_hand else request.sampler, n_guessed=n_guessed, room=rows.room)
                self._requests.append(request)
                if by_hand:
                    processed[request] = row, rows.room
        while pads:
            step.pad(*pads.pop())
        alike = plan.n_generating == len(plan.rows) and not plan.n_guessed and not drafts
        if alike and self._gil_seconds > CONTENDED and not any(_is_watched(request) for request in self._requests):
            n_steps, seconds = step.width, TOGETHER
        elif not plan.steady:
            n_steps = 1
        self.n_steps = 0
        sampled = step.run(n_steps, seconds)
        self.n_steps = step.n_done
        self.seconds = step.decode_seconds / step.n_done
        self._gil_seconds = 0.5 * self._gil_seconds + 0.5 * step.gil_seconds
        found = dict(zip(self._requests, sampled, strict=True))
        if processed:
            found.update(self._process(processed))
        for rows in plan.rows:
            if rows.request.budget is not None and rows.sample:
                self._watch(rows, found[rows.request])
        return found

    @staticmethod
    def _foresee(request: Request, guesses: Sequence[int]) -> list[int]:
        """Return which of the guesses, or of what the grammar puts in their place, to check."""
        guessed: list[int] = request.sampler.foresee(guesses)
        must = request.sampler.guide.must
        n = request.guesser.worth([must[i] < 0 for i in range(len(guessed))]) if guessed and request.guesser else 0
        return guessed[:n]

    def _watch(self, rows: Rows, sampled: Sampled) -> None:
        """End the reasoning of a request whose budget is spent."""
        request, tokens = rows.request, sampled.tokens
        shown = request.answer.shown or {}
        for token, piece in zip(tokens, sampled.pieces, strict=True):
            if request.budget is not None and request.budget.push(piece or shown.get(token, b"")):
                closing = request.budget.closing[: max(rows.room - len(tokens), 0)]
                for each in closing:
                    request.sampler.accept(each)
                tokens += closing
                sampled.pieces += [self.context.model.vocab.piece(each) for each in closing]
                sampled.n_forced += len(closing)
                return

    def _make_drafter(self, draft: Model, options: dict[str, Any]) -> Drafter:
        context = self.context
        alike: dict[str, Any] = {key: value for key, value in options.items() if key in ALIKE}
        return Drafter(
            draft, n_vocab=context.model.vocab.n_tokens, n_ctx=context.n_ctx, n_seq_max=context.n_seq_max, options=alike
        )  # fmt: skip

    def _draft(self, plan: Plan) -> dict[Request, list[int]]:
        self.drafted, self.draft_seconds = {}, None
        if not plan.n_draft or self._drafter is None:
            return {}
        drafts = self._drafter.guess([rows.request for rows in plan.rows if rows.n_draft], plan.n_draft)
        self.draft_seconds = self._drafter.seconds if drafts else None
        return drafts

    def _operate(self, operation: Operation) -> StateError | None:
        memory = self.context.memory
        if isinstance(operation, Copy):
            self._copy(operation.source, operation.target)
        elif isinstance(operation, Shift):
            if not memory.remove(operation.seq, operation.begin, operation.end):
                memory.remove(operation.seq, 0)
                return StateError(f"{memory!r} cannot forget positions {operation.begin} to {operation.end}")
            memory.shift(operation.seq, operation.end, -1, operation.begin - operation.end)
        elif isinstance(operation, Save):
            self.saved.append((operation.key, self._save(operation)))
        elif isinstance(operation, Load):
            try:
                self.context.load_state(self._state(operation.key), operation.seq)
            except StateError as error:
                self.saved.append((operation.key, None))  # nor will it the next time
                return error
        elif isinstance(operation, Spill):
            state = self._states.pop(operation.key, None)
            if state is None or self._disk is None or not self._disk.put(operation.key, state):
                self.saved.append((operation.key, None))
        elif isinstance(operation, Forget):
            if self._states.pop(operation.key, None) is None and self._disk is not None:
                self._disk.forget(operation.key)
        elif not memory.remove(operation.seq, operation.length):
            # llama.cpp has given cells that are out of the sliding window to others, also where swa_full keeps them.
            memory.remove(operation.seq, 0)
            return StateError(f"{memory!r} has nothing left before position {operation.length}")
        return None

    def _copy(self, source: int, target: int) -> None:
        """Give a sequence what another has."""
        # Of sequences with cells of their own llama.cpp copies all cells, whether there is anything in them or not: on a
        # GPU that is nothing; here it is several milliseconds, with large models tenths of a second.
        if self._own_cells_here and 2 * self.context.memory.positions(source).stop < self.context.n_ctx_seq:
            from ..state import copy_sequence

            with suppress(StateError, MemoryError):
                copy_sequence(self.context, source, target)
                return
        self.context.memory.copy(source, target)

    def _state(self, key: int) -> State:
        state = self._states.get(key)
        if state is None and self._disk is not None:
            return self._disk.get(key)
        if state is None:
            raise StateError(f"{self.context!r}: a state that could not be saved cannot be loaded")
        return state

    def _save(self, operation: Save) -> int | None:
        try:
            state = self._states[operation.key] = self.context.save_state(operation.seq)
        except (StateError, MemoryError):
            _logger.warning("%r: what sequence %d has cannot be kept", self.context, operation.seq, exc_info=True)
            return None
        return state.n_bytes

    def _process(self, rows: dict[Request, tuple[int, int]]) -> dict[Request, Sampled]:
        """Sample from logits that Python has a say in; what is raised there is of one request."""
        import numpy as np

        logits = np.empty((len(rows), self.context.model.vocab.n_tokens), np.float32)
        for i, (row, _) in enumerate(rows.values()):
            logits[i] = self.context.logits(row)
        if self._hook is not None:
            try:
                self._hook(StepView([request.answer for request in rows], logits))
            except Exception:  # it is of no request
                _logger.exception("%r: on_step", self.context)
        return {request: self._choose(request, room, logits[i]) for i, (request, (_, room)) in enumerate(rows.items())}

    def _choose(self, request: Request, room: int, logits: npt.NDArray[np.float32]) -> Sampled:
        sampler = request.sampler
        try:
            for processor in request.processors:
                changed = processor([*request.prompt, *request.tokens], logits)
                if changed is not None:
                    logits[:] = changed
            token = sampler.choose(logits)
        except Exception as error:
            return Sampled([], [], [], error)
        told = isinstance(sampler, FastSampler) and sampler.logprob is not None
        logprobs = [(sampler.logprob, sampler.top_logprobs)] if told else []
        sampled = Sampled([token], [self.context.model.vocab.piece(token)], logprobs)
        if isinstance(sampler, FastSampler):
            sampled.force(sampler, room - 1)
        return sampled

    def sampled(self) -> dict[Request, Sampled]:
        """Return what the steps before one that failed have sampled; nothing where there were none."""
        return dict(zip(self._requests, self._step.results(), strict=True)) if self._step.n_done else {}

    def lengths(self) -> list[int]:
        """Return how many tokens of each sequence are in memory."""
        memory = self.context.memory
        return [memory.positions(seq).stop for seq in range(self.context.n_seq_max)]

    def set_n_threads(self, n_threads: int) -> None:
        """Let steps have so many threads."""
        self.context.set_n_threads(n_threads)

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
        """Free the contexts, and delete what is on the disk."""
        if self._disk is not None:
            self._disk.close()
        if self._drafter is not None:
            self._drafter.close()
        self.context.close()


def _is_watched(request: Request) -> bool:
    """Return whether each token of a request has to be seen before the next step."""
    return request.guided or request.budget is not None
