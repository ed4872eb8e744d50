"""Drafter: a small model that guesses what the large one will say. Beside the runner the only one that touches a Context."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from ..context import Context
from ..errors import DecodeError, NativeError
from ..fast_sampling import FastSampler
from ..params import VocabType
from ..sampling_params import SamplingParams
from ..step import Step
from .guessing import MOST
from .prefixes import PrefixIndex

if TYPE_CHECKING:
    from ..model import Model
    from .request import Request

__all__ = ["Drafter", "check_draft"]

_logger = logging.getLogger("offgrid_llama.engine")

CATCH_UP = 256
"""Most tokens that the small model computes in a step to be where the large one is."""


def check_draft(draft: Model, model: Model) -> None:
    """Raise ValueError where one cannot guess for the other."""
    name = draft._handle.name
    if draft.has_encoder or draft.is_recurrent or draft.is_hybrid or draft.vocab.type is VocabType.NONE:
        raise ValueError(f"draft: {name} cannot take back what it has guessed; take a model of the plain kind")
    ours, theirs = model.vocab, draft.vocab
    if ours.type is not theirs.type:
        raise ValueError(f"draft: {name} has a vocabulary of type {theirs.type.name}, and the model {ours.type.name}")
    for token in range(min(ours.n_tokens, theirs.n_tokens)):
        if ours.piece(token) != theirs.piece(token):
            raise ValueError(f"draft: {name} has another vocabulary: token {token} is {theirs.piece(token)!r} there")


@dataclass(slots=True)
class _Line:
    """What a sequence of the small model has: ``n`` tokens of a request's text, and behind them what it has guessed."""

    request: Request
    n_prompt: int
    n: int = 0
    guessed: list[int] = field(default_factory=list)


class Drafter:
    """Guesses greedily, for several requests at once. It follows their sequences, each with one of its own.

    Args:
        model: the small model.
        n_vocab: of the large one; what has an id that only one of them knows is not guessed.
        n_ctx, n_seq_max: of the large one's context.
        options: further arguments of Context.

    Attributes:
        seconds: how long each step of the last guess has taken; None where it had much to catch up with.
    """

    def __init__(self, model: Model, *, n_vocab: int, n_ctx: int, n_seq_max: int, options: dict[str, Any]) -> None:
        n_batch = max(CATCH_UP, 2 * n_seq_max)
        self._context = Context(
            model, n_ctx=n_ctx, n_seq_max=n_seq_max, n_batch=n_batch, n_ubatch=n_batch, n_outputs_max=n_seq_max, **options
        )  # fmt: skip
        self._n_batch = n_batch
        self._n_vocab = min(model.vocab.n_tokens, n_vocab)
        self._sampler = FastSampler(model.vocab, SamplingParams(temperature=0))
        self._step = Step(self._context, n_groups=n_seq_max, width=MOST)
        self._lines: dict[int, _Line] = {}
        self._index: PrefixIndex[int] = PrefixIndex()  # of the prompts, and of what followed them before the last one
        self._held: dict[int, int] = {}  # how many tokens sequences have that wait for others
        self.seconds: float | None = None

    def guess(self, requests: Sequence[Request], n: int) -> dict[Request, list[int]]:
        """Return up to ``n`` tokens for each request; none for one that it has to catch up with first."""
        try:
            return self._guess(requests, n)
        except (DecodeError, NativeError):
            _logger.warning("%r has failed, and begins anew", self._context, exc_info=True)
            self._context.memory.clear()
            self._lines.clear()
            self._held.clear()
            self._index = PrefixIndex()
            return {}

    def _guess(self, requests: Sequence[Request], n: int) -> dict[Request, list[int]]:
        step, room = self._step, self._n_batch
        step.clear()
        ready: list[tuple[int, _Line]] = []
        ends: dict[int, int] = {}
        quick = True
        for request in requests:
            seq = request.seq
            if seq is None:
                continue
            line = self._follow(seq, request, ends)
            if line is None:
                continue
            todo = self._todo(line)[:room]
            end = line.n + len(todo)
            if not todo or max(todo) >= self._n_vocab or end + n > self._context.n_ctx_seq:
                continue
            step.add(todo, line.n, seq)
            room -= len(todo)
            quick = quick and len(todo) <= 2
            ends[seq] = end
            if end == line.n_prompt + len(request.tokens):
                step.sample(self._sampler)
                ready.append((seq, line))
        if room == self._n_batch:
            return {}
        begin = perf_counter()
        first = step.run()
        for seq, end in ends.items():
            self._lines[seq].n = end
        n_steps = 1
        for (_, line), sampled in zip(ready, first, strict=True):
            line.guessed = [token for token in sampled.tokens if token < self._n_vocab]
        going = [(seq, line) for seq, line in ready if line.guessed]
        if n > 1 and going:
            step.clear()
            for seq, line in going:
                step.add(line.guessed, line.n, seq)
                step.sample(self._sampler, room=n - 1)
            for (_, line), sampled in zip(going, step.run(n - 1, 1.0), strict=True):
                line.guessed += sampled.tokens
            n_steps += step.n_done
        self.seconds = (perf_counter() - begin) / n_steps if quick else None
        return {line.request: [token for token in line.guessed if token < self._n_vocab] for _, line in going}

    def _follow(self, seq: int, request: Request, coming: Collection[int]) -> _Line | None:
        """Let a sequence have what it can of a request's text, and nothing else; None where it is to wait for others."""
        memory = self._context.memory
        line = self._lines.get(seq)
        if line is not None and line.request is request:
            kept = line.n
            for guessed, said in zip(
                line.guessed[:-1], self._todo(line), strict=False
            ):  # the last one was not computed
                if guessed != said:
                    break
                kept += 1
        else:
            begun = self._begin(seq, request, coming)
            if begun is None:
                return None
            line, kept = begun
        if memory.positions(seq).stop > kept and not memory.remove(seq, kept):
            memory.remove(seq, 0)
            kept = 0
        line.n = kept
        line.guessed = []
        return line

    def _begin(self, seq: int, request: Request, coming: Collection[int]) -> tuple[_Line, int] | None:
        """Give a sequence to another request; return how many tokens it has of the prompt, by itself or as a copy.

        None where one of ``coming`` is about to compute more of it.
        """
        prompt = request.prompt
        old = self._lines.pop(seq, None)
        if old is not None:  # what was said belongs to the next turn of a conversation
            self._index.extend(seq, old.request.tokens[: max(old.n - old.n_prompt, 0)])
            self._held[seq] = old.n
        shared, holders = self._index.longest(prompt)
        shared = min(shared, len(prompt) - 1)
        lengths = {other: min(self._n(other), shared) for other in holders}
        best = max(lengths, key=lambda other: (lengths[other], other == seq), default=seq)
        if lengths.get(best, 0) < shared and any(other in coming for other in holders):
            return None
        if best != seq and lengths[best]:
            self._context.memory.copy(best, seq)
        if seq in self._index:
            self._index.remove(seq)
        self._held.pop(seq, None)
        self._index.extend(seq, prompt)
        line = self._lines[seq] = _Line(request, len(prompt))
        return line, lengths.get(best, 0)

    def _n(self, seq: int) -> int:
        """Return how many tokens of its text a sequence has."""
        line = self._lines.get(seq)
        return self._held.get(seq, 0) if line is None else line.n

    @staticmethod
    def _todo(line: _Line) -> list[int]:
        """Return the tokens of a request's text that its sequence has not."""
        request, behind = line.request, line.n - line.n_prompt
        return request.tokens[behind:] if behind >= 0 else [*request.prompt[line.n :], *request.tokens]

    def close(self) -> None:
        """Free the context."""
        self._context.close()
