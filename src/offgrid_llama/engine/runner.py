"""Runner: does what a Plan says, with a Context. Beside the drafter only it, and its CacheOperations, touch one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from offgrid_llama.context.context import Context
from offgrid_llama.context.embedding_batch import EmbeddingBatch
from offgrid_llama.errors import ClosedError, SamplerError
from offgrid_llama.sampling.step import Sampled, Step

from .cache_operations import CacheOperations
from .context_limits import adapt, check_deterministic, check_model, limits_of
from .drafter import Drafter
from .planning.media_tokens import text_tokens
from .spill import SpillFolder

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.model.adapter import LoRA
    from offgrid_llama.model.model import Model

    from .completion import Answer
    from .encoder import Encoder
    from .planning.media_tokens import Chunk
    from .planning.operations import Operation
    from .planning.plan import Plan, Rows
    from .request import EngineRequest

__all__ = ["Runner", "StepView"]

_logger = logging.getLogger("offgrid_llama.engine")

PIECE_TOKENS = 128
"""Tokens of a prompt in one step, where each request is computed alone."""
N_GUESSED = 16
"""The most guessed tokens of a step, over all requests; the context reserves their rows of logits."""
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
        on_step: called in each step before tokens are sampled.
        draft_model: guesses tokens; None guesses none.
        loras: adapters of the model in use.
        cache_dir: a folder for states that host memory has no room for; None spills none.
        deterministic: whether each request is computed alone, its prompt in pieces, so that others change nothing.
        encoder: has the embeddings of pictures and sounds; None where prompts have none.

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
        on_step: Callable[[StepView], object] | None = None,
        draft_model: Model | None = None,
        loras: Mapping[LoRA, float] | Iterable[LoRA] = (),
        cache_dir: str | os.PathLike[str] | None = None,
        deterministic: bool = False,
        encoder: Encoder | None = None,
    ) -> None:
        check_model(model)
        n_guessed = 0 if deterministic else N_GUESSED
        if deterministic:
            check_deterministic({"draft_model": draft_model, "cache_dir": cache_dir, **options})
        n_seq_max, n_batch = options["n_seq_max"], options["n_batch"]
        n_outputs = max(n_seq_max + n_guessed, PIECE_TOKENS if deterministic else MIN_OUTPUTS)
        self.context = Context(model, **{"n_outputs_max": min(n_outputs, n_batch), **options}, n_ubatch=n_batch)
        adapt(self.context, loras)
        self.limits = limits_of(
            self.context,
            n_seq_max,
            n_batch,
            n_guessed if on_step is None else 0,
            None if encoder is None else encoder.projector,
        )
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
        self._encoder = encoder
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
        sampled = self._compute(n_steps, seconds, plan.rows[0].chunk)
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

    def _compute(self, n_steps: int, seconds: float, chunk: Chunk | None) -> list[Sampled]:
        """Make steps; one of a chunk whose rows look at each other is not causal."""
        if chunk is None or chunk.causal:
            return self._step.run(n_steps, seconds)
        self.context.set_causal_attn(False)
        try:
            return self._step.run()
        finally:
            self.context.set_causal_attn(True)

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
                self._add(rows)
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

    def _add(self, rows: Rows[EngineRequest]) -> None:
        """Add tokens, or the embeddings of a picture or a sound."""
        chunk, media, encoder = rows.chunk, rows.request.media, self._encoder
        if chunk is None or media is None or encoder is None:
            self._step.add(rows.tokens, rows.request.position(rows.pos), rows.seq)
            return
        some = slice(rows.pos - chunk.begin, rows.pos - chunk.begin + len(rows.tokens))
        embeddings, positions = encoder.embeddings(chunk.head)[some], media.part(chunk).positions[..., some]
        self._step.embed(EmbeddingBatch(embeddings, positions, rows.seq, logits="last" if rows.sample else "none"))

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
        self._step.add([*rows.tokens[:n_sure], *guesses], request.position(rows.pos), rows.seq)
        self.n_guessed -= rows.n_guessed - len(guesses)
        return len(guesses)

    def _add_draft(self, rows: Rows[EngineRequest], drafts: Mapping[int, list[int]]) -> int:
        """Add what the draft model has guessed behind rows; return how many tokens."""
        draft = drafts.get(rows.seq, [])[: rows.n_draft]
        self._step.add(draft, rows.request.position(rows.pos) + len(rows.tokens), rows.seq)
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
                changed = processor([*text_tokens(request.prompt, request.chunks), *request.tokens], logits)
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

    def carry_out(self, operations: Sequence[Operation]) -> None:
        """Change memory without a step. Raises StateError where a state was lost."""
        self.saved.clear()
        self.cache.carry_out(operations)

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


def _is_sampled_by_hand(request: EngineRequest) -> bool:
    """Return whether Python functions see the logits of a request; the one that counts ``min_tokens`` is done with them."""
    if request.min_tokens and len(request.tokens) >= request.min_tokens:
        request.processors, request.min_tokens = request.processors[:-1], 0
    return bool(request.processors) or request.sampler.by_hand


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
