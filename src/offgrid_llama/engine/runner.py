"""Runner: does what a Plan says, with a Context. Beside the drafter only it, and its CacheOperations, touch one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from offgrid_llama.context.context import Context
from offgrid_llama.errors import ClosedError, ContextError, SamplerError
from offgrid_llama.native.enums import VocabType
from offgrid_llama.sampling.step import Sampled, Step

from .cache_operations import CacheOperations
from .drafter import Drafter
from .planning.limits import Limits, Trim
from .spill import SpillFolder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model

    from .completion import Answer
    from .planning.plan import Plan, Rows
    from .request import EngineRequest

__all__ = ["Runner", "StepView"]

_logger = logging.getLogger("offgrid_llama.engine")

PIECE_TOKENS = 128
"""Tokens of a prompt in one step, where each request is computed alone."""
MIN_OUTPUTS = 64
"""Rows with logits that a step has room for, at least. Most steps need a few. Where logprobs of a prompt are wanted, each of
its tokens needs one, and steps with fewer tokens are slower. They take 38 MB with a vocabulary of 150,000 tokens."""

CONTENDED_GIL_SECONDS = 0.001
"""Waiting for the GIL after a step from which on several steps are made in one call. 5 ms are usual where another thread
computes in Python, and next to nothing otherwise."""

CONTENDED_CALL_SECONDS = 0.064
"""Time after which such a call begins no further step."""

SHARED_CONTEXT_OPTIONS = {"n_threads", "n_threads_batch", "flash_attn_type", "kv_unified"}
"""Options of Context that the draft model's context takes over."""


@dataclass(frozen=True, slots=True)
class StepView:
    """The logits of one step, for ``on_step``, before tokens are sampled from them.

    Attributes:
        answers: the answers that get a token each.
        logits: float32[len(answers), n_vocab], one row for each of them. Tokens are sampled from what it holds afterwards.
    """

    answers: list[Answer]
    logits: npt.NDArray[np.float32]


class Runner:
    """A context, and everything that computes or samples with it.

    Args:
        model: the Model.
        options: arguments of Context, ``n_ctx``, ``n_seq_max`` and ``n_batch`` among them; a micro-batch is a whole batch.
        n_guessed: most tokens that are guessed in a step; rows of logits are reserved for them.
        on_step: called in each step before tokens are sampled.
        draft_model: guesses tokens; None guesses none.
        loras: adapters of the model in use.
        cache_dir: a folder for states that host memory has no room for; None spills none.
        deterministic: whether each request is computed alone, its prompt in pieces, so that others change nothing.

    Attributes:
        context: the Context.
        limits: its Limits.
        loras: the adapters that it was made with, and their scales.
        cache: its CacheOperations. saved: the ``saved`` of these, since the last step began.
        drafter: the draft model's Drafter; None without one.
        draft_seconds: how long the draft model has taken for each token in the last step; None if unknown.
        n_guessed: tokens that the last step has computed besides those of prompts and one for each request that generates.
        seconds: how long the last step has taken, without waiting for the GIL.
        n_steps: how many steps the last call has made.
        contended_gil_seconds, contended_call_seconds: CONTENDED_GIL_SECONDS, CONTENDED_CALL_SECONDS.
    """

    def __init__(
        self,
        model: Model,
        options: Mapping[str, Any],
        *,
        n_guessed: int = 0,
        on_step: Callable[[StepView], object] | None = None,
        draft_model: Model | None = None,
        loras: Mapping[LoRA, float] | Iterable[LoRA] = (),
        cache_dir: str | os.PathLike[str] | None = None,
        deterministic: bool = False,
    ) -> None:
        _check_model(model)
        if deterministic:
            _check_deterministic({"draft_model": draft_model, "cache_dir": cache_dir, **options})
            n_guessed = 0
        n_seq_max, n_batch = options["n_seq_max"], options["n_batch"]
        n_outputs = max(n_seq_max + n_guessed, PIECE_TOKENS if deterministic else MIN_OUTPUTS)
        self.context = Context(model, **{"n_outputs_max": min(n_outputs, n_batch), **options}, n_ubatch=n_batch)
        _adapt(self.context, loras)
        self.limits = _limits(self.context, n_seq_max, n_batch, n_guessed if on_step is None else 0)
        if deterministic:
            self.limits = replace(self.limits, piece=min(PIECE_TOKENS, self.limits.n_outputs), pad_limit=0)
        self.drafter: Drafter | None = None
        self.cache = CacheOperations(self.context, self.limits)
        try:
            self.loras = {lora: scale for lora, (_, scale) in self.context.adapters.loras.items()}
            if draft_model is not None:
                self.drafter = _drafter(draft_model, self.context, options)
            if cache_dir is not None:
                self.cache.disk = SpillFolder(cache_dir)
        except BaseException:
            self.close()
            raise
        self.saved = self.cache.saved
        self.draft_seconds: float | None = None
        self.n_guessed = 0
        self.seconds = 0.0
        self.n_steps = 0
        self.contended_gil_seconds = CONTENDED_GIL_SECONDS
        self.contended_call_seconds = CONTENDED_CALL_SECONDS
        self._step = Step(self.context, n_groups=n_seq_max, n_scored=self.limits.n_outputs)
        self._on_step = on_step
        self._gil_seconds = 0.0  # that a call has waited for the GIL, lately
        # Groups of the step, by their index, that need more than it does:
        self._verified: list[tuple[int, int]] = []  # with the number of guesses
        self._by_hand: list[tuple[int, EngineRequest, int, int]] = []  # with the row, and the room
        self._budgeted: list[tuple[int, Rows[EngineRequest]]] = []
        self._scored: list[Rows[EngineRequest]] = []

    def run(
        self, plan: Plan[EngineRequest], n_steps: int = 1, seconds: float = CONTENDED_CALL_SECONDS
    ) -> Sequence[Sampled | None]:
        """Make a step, or where the plan is steady up to ``n_steps`` that begin within ``seconds``.

        Returns what was sampled for each of the plan's rows; None for rows without a sample.

        Raises as ``Context.decode`` does, and StateError where a state was lost. ``sampled()`` then returns the outcome of
        the steps before the one that failed, and ``lengths()`` what memory holds.
        """
        step = self._step
        step.clear()
        self.saved.clear()
        self.draft_seconds = None
        if plan.operations:
            self.cache.carry_out(plan.operations)
        drafts = self._draft(plan) if plan.n_draft else {}
        self._fill(plan, drafts)
        if self._gil_seconds > self.contended_gil_seconds and not drafts and _are_plain(plan):
            n_steps, seconds = step.width, self.contended_call_seconds
        elif not plan.steady:
            n_steps = 1
        self.n_steps = 0
        sampled = step.run(n_steps, seconds)
        self.n_steps = step.n_done
        self.seconds = (step.decode_seconds + step.score_seconds) / step.n_done
        self._gil_seconds = 0.5 * self._gil_seconds + 0.5 * step.gil_seconds
        for index, n in self._verified:
            sampled[index].n_verified = n
        if self._by_hand:
            self._sample_by_hand(sampled)
        for index, rows in self._budgeted:
            self._limit_reasoning(rows, sampled[index])
        if len(sampled) == len(plan.rows) and not self._scored:
            return sampled
        rest = iter(sampled)
        return self._take_scores(plan, [next(rest) if rows.sample else None for rows in plan.rows])

    def _fill(self, plan: Plan[EngineRequest], drafts: Mapping[int, list[int]]) -> None:
        """Put the rows of a plan into the step."""
        step, hooked = self._step, self._on_step is not None
        self.n_guessed = plan.n_guessed
        self._verified, self._by_hand, self._budgeted, self._scored = [], [], [], []
        pads = sorted(plan.pads, reverse=True)
        index = 0
        for rows in plan.rows:
            while pads and pads[-1][0] < rows.seq:  # rows stay in the order of their sequences
                step.pad(*pads.pop())
            request, n_guessed = rows.request, rows.n_guessed
            if n_guessed and request.guided:
                n_guessed = self._add_foreseen(rows)
            else:
                step.add(rows.tokens, rows.pos, rows.seq)
            if rows.n_draft and drafts:
                n_guessed = self._add_draft(rows, drafts)
            self._score(rows)
            if not rows.sample:
                continue
            by_hand = hooked or _is_sampled_by_hand(request)
            row = step.sample(None if by_hand else request.sampler, n_guessed=n_guessed, room=rows.room)
            if by_hand:
                self._by_hand.append((index, request, row, rows.room))
            if n_guessed:
                self._verified.append((index, n_guessed))
            if request.budget is not None:
                self._budgeted.append((index, rows))
            index += 1
        while pads:
            step.pad(*pads.pop())

    def _score(self, rows: Rows[EngineRequest]) -> None:
        """Let the step tell the logprobs of tokens of a prompt, whose rows it has just got, if they are wanted."""
        request, scored, first = rows.request, rows.scored, rows.pos + 1
        wanted = request.prompt_logprobs
        if scored and wanted is not None:
            tokens = wanted.tokens[first + scored.start : first + scored.stop]
            self._step.score(self._step.n_rows - len(rows.tokens) + scored.start, tokens, wanted.n_top)
            self._scored.append(rows)

    def _take_scores(self, plan: Plan[EngineRequest], outcomes: list[Sampled | None]) -> list[Sampled | None]:
        """Hand what a step has told of prompts to their requests; return the outcomes, of which some fail.

        Those fail whose logits were no numbers. Memory may lack some of their tokens, so that nothing of them is kept.
        """
        for rows, scores in zip(self._scored, self._step.scores(), strict=True):
            request = rows.request
            if scores is None:
                request.is_kept = False
                error = SamplerError("the model's logits for the prompt are no numbers")
                outcomes[plan.rows.index(rows)] = Sampled([], [], [], error)
            elif request.prompt_logprobs is not None:
                request.prompt_logprobs.put(rows.pos + rows.scored.start + 1, scores)
        return outcomes

    def _add_foreseen(self, rows: Rows[EngineRequest]) -> int:
        """Add rows whose grammar says which of the guesses, or of the tokens in their place, can come; return how many."""
        request, n_sure = rows.request, len(rows.tokens) - rows.n_guessed
        guesses, guide, n = request.sampler.foresee(rows.tokens[n_sure:]), request.sampler.guide, 0
        if guesses and request.guesser is not None and guide is not None:
            n = request.guesser.worth([guide.must[i] < 0 for i in range(len(guesses))])
        guesses = guesses[:n]
        self._step.add([*rows.tokens[:n_sure], *guesses], rows.pos, rows.seq)
        self.n_guessed -= rows.n_guessed - len(guesses)
        return len(guesses)

    def _add_draft(self, rows: Rows[EngineRequest], drafts: Mapping[int, list[int]]) -> int:
        """Add what the draft model has guessed behind rows; return how many tokens."""
        draft = drafts.get(rows.seq, [])[: rows.n_draft]
        self._step.add(draft, rows.pos + len(rows.tokens), rows.seq)
        self.n_guessed += len(draft)
        return len(draft)

    def _draft(self, plan: Plan[EngineRequest]) -> dict[int, list[int]]:
        """Let the draft model guess; return its tokens by sequence."""
        if self.drafter is None:
            return {}
        drafts = self.drafter.guess([rows.request for rows in plan.rows if rows.n_draft], plan.n_draft)
        self.draft_seconds = self.drafter.seconds if drafts else None
        return drafts

    def _limit_reasoning(self, rows: Rows[EngineRequest], sampled: Sampled) -> None:
        """Append the tokens that end the reasoning of a request whose budget is spent."""
        request, tokens = rows.request, sampled.tokens
        shown = request.shown or {}
        for token, piece in zip(tokens, sampled.pieces, strict=True):
            if request.budget is not None and request.budget.push(piece or shown.get(token, b"")):
                closing = request.budget.closing[: max(rows.room - len(tokens), 0)]
                for each in closing:
                    request.sampler.accept(each)
                sampled.append(closing, self.context.model.vocab)
                return

    def _sample_by_hand(self, sampled: list[Sampled]) -> None:
        """Sample from logits that Python functions change first. An exception of a processor ends its request only."""
        import numpy as np

        logits = np.empty((len(self._by_hand), self.context.model.vocab.n_tokens), np.float32)
        for i, (_, _, row, _) in enumerate(self._by_hand):
            logits[i] = self.context.logits(row)
        if self._on_step is not None:
            try:
                self._on_step(StepView([request.answer for _, request, _, _ in self._by_hand], logits))
            except Exception:  # it belongs to no request
                _logger.exception("%r: on_step", self.context)
        for i, (index, request, _, room) in enumerate(self._by_hand):
            sampled[index] = self._choose(request, room, logits[i])

    def _choose(self, request: EngineRequest, room: int, logits: npt.NDArray[np.float32]) -> Sampled:
        sampler = request.sampler
        try:
            for processor in request.processors:
                changed = processor([*request.prompt, *request.tokens], logits)
                if changed is not None:
                    logits[:] = changed
            token = sampler.choose(logits)
        except Exception as error:
            return Sampled([], [], [], error)
        logprobs = [(sampler.logprob, sampler.top_logprobs)] if sampler.logprob is not None else []
        vocab = self.context.model.vocab
        sampled = Sampled([token], [vocab.piece(token)], logprobs)
        sampled.force(sampler, vocab, room - 1)
        return sampled

    def sampled(self) -> Sequence[Sampled]:
        """Return the outcome of the steps before one that failed; empty where there were none."""
        return self._step.results() if self._step.n_done else []

    def lengths(self) -> list[int]:
        """Return how many tokens of each sequence are in memory."""
        memory = self.context.memory
        return [memory.positions(seq).stop for seq in range(self.context.n_seq_max)]

    def set_n_threads(self, n_threads: int) -> None:
        """Compute with ``n_threads`` threads."""
        self.context.set_n_threads(n_threads)

    def interrupt(self, on: bool = True) -> None:
        """Let each ``run`` from now on return after one step, until ``interrupt(False)``; from any thread."""
        self._step.interrupt(on)

    def abort(self) -> None:
        """Let ``run`` raise Aborted within the step under way; from any thread."""
        with suppress(ClosedError):
            self.context.cancel()

    def rest(self) -> None:
        """End the threads of OpenMP that wait for the next step: while idle they slow down those of other contexts."""
        with suppress(ClosedError):
            self.context.release_threads()

    def close(self) -> None:
        """Free the contexts, and delete the files on the disk."""
        if self.cache.disk is not None:
            self.cache.disk.close()
        if self.drafter is not None:
            self.drafter.close()
        self.context.close()


def _adapt(context: Context, loras: Mapping[LoRA, float] | Iterable[LoRA]) -> None:
    """Let a new context use adapters; it is closed where it cannot."""
    try:
        context.set_loras(loras)
    except BaseException:
        context.close()
        raise


def _is_sampled_by_hand(request: EngineRequest) -> bool:
    """Return whether Python functions see the logits of a request; the one that counts ``min_tokens`` is done with them."""
    if request.min_tokens and len(request.tokens) >= request.min_tokens:
        request.processors, request.min_tokens = request.processors[:-1], 0
    return bool(request.processors) or request.sampler.by_hand


def _check_deterministic(options: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument of an Engine with which a request cannot be computed alone."""
    for name in ("draft_model", "cache_dir", "kv_unified"):
        if options.get(name):
            raise ValueError(f"{name} does not go with deterministic=True; leave one of them out")


def _check_model(model: Model) -> None:
    if model.has_encoder:
        raise ContextError(f"{model.handle.name} has an encoder; the engine is for models that only decode")
    if model.vocab.type is VocabType.NONE:
        raise ContextError(f"{model.handle.name} has no vocabulary, and the engine generates text")


def _limits(context: Context, n_seq_max: int, n_batch: int, n_guessed: int) -> Limits:
    """Return the limits of a context that was made for ``n_seq_max`` sequences and steps of ``n_batch`` tokens."""
    model, memory, n_ctx_seq = context.model, context.memory, context.n_ctx_seq
    trim = Trim.NOTHING if not memory.can_trim else Trim.COMPUTED if model.n_swa else Trim.ANY
    n_outputs = min(context.params.n_outputs_max or n_batch, n_batch)
    shares_cells = context.params.kv_unified and not model.is_recurrent
    # For a token behind a sequence that is longer than its window, llama.cpp drops one that has left the window.
    takes_padding = trim is not Trim.NOTHING and not shares_cells
    return Limits(
        n_seq_max, n_batch, n_ctx_seq, frozenset(model.vocab.eog_tokens()), trim,
        n_cells=context.n_ctx if shares_cells else None,
        n_guessed=0 if trim is Trim.NOTHING else min(n_guessed, n_outputs - n_seq_max), n_outputs=n_outputs,
        pad_limit=min(n_ctx_seq, model.n_swa or n_ctx_seq) if takes_padding else 0,
    )  # fmt: skip


def _drafter(draft_model: Model, context: Context, options: Mapping[str, Any]) -> Drafter:
    shared = {key: value for key, value in options.items() if key in SHARED_CONTEXT_OPTIONS}
    return Drafter(
        draft_model, n_vocab=context.model.vocab.n_tokens, n_ctx=context.n_ctx, n_seq_max=context.n_seq_max, options=shared
    )  # fmt: skip


def _are_plain(plan: Plan[EngineRequest]) -> bool:
    """Return whether all rows are of requests that generate, none with a guess, and none seen after each token."""
    if plan.n_generating != len(plan.rows) or plan.n_guessed:
        return False
    return not any(rows.request.guided or rows.request.budget is not None for rows in plan.rows)
