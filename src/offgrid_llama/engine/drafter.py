"""Drafter: a small model that guesses the next tokens of the large one, for it to verify (speculative decoding)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

from offgrid_llama.context.context import Context
from offgrid_llama.errors import DecodeError, NativeError
from offgrid_llama.native.enums import VocabType
from offgrid_llama.sampling.fast_sampler import FastSampler
from offgrid_llama.sampling.sampling_params import SamplingParams
from offgrid_llama.sampling.step import Step

from .planning.costs import MAX_GUESS_TOKENS
from .planning.prefixes import PrefixIndex

if TYPE_CHECKING:
    from offgrid_llama.model.model import Model

    from .planning.request import Request

__all__ = ["Drafter", "check_draft"]

_logger = logging.getLogger("offgrid_llama.engine")

CATCH_UP_TOKENS = 256
"""Tokens that the draft model computes in a step, at most, to catch up with the large one."""

QUICK_TOKENS = 2
"""Tokens of a sequence that the first step of a draft computes, at most, where its time tells what a draft takes."""


def check_draft(draft: Model, model: Model) -> None:
    """Raise ValueError where one model cannot guess for the other."""
    name = draft.handle.name
    if draft.has_encoder or draft.is_recurrent or draft.is_hybrid or draft.vocab.type is VocabType.NONE:
        raise ValueError(f"draft_model: {name} cannot take back wrong guesses; use a plain decoder model")
    ours, theirs = model.vocab, draft.vocab
    if ours.type is not theirs.type:
        raise ValueError(
            f"draft_model: {name} has a vocabulary of type {theirs.type.name}, and the model {ours.type.name}"
        )
    for token in range(min(ours.n_tokens, theirs.n_tokens)):
        if ours.piece(token) != theirs.piece(token):
            raise ValueError(
                f"draft_model: {name} has another vocabulary: token {token} is {theirs.piece(token)!r} there"
            )


@dataclass(slots=True)
class _Followed:
    """A request that a sequence of the draft model follows: it has ``n`` tokens of the text, then those it has guessed."""

    request: Request
    n_prompt: int
    n: int = 0
    guessed: list[int] = field(default_factory=list)

    def todo(self) -> list[int]:
        """Return the tokens of the text that the sequence does not have."""
        request, behind = self.request, self.n - self.n_prompt
        return request.tokens[behind:] if behind >= 0 else [*request.prompt[self.n :], *request.tokens]

    def n_right(self) -> int:
        """Return how many tokens of the text it has, with the guesses that were right."""
        n = self.n
        for guessed, sampled in zip(self.guessed[:-1], self.todo(), strict=False):  # the last guess was not computed
            if guessed != sampled:
                break
            n += 1
        return n


class Drafter:
    """Guesses greedily, for several requests at once. It follows each of their sequences with one of its own.

    Args:
        model: the draft model.
        n_vocab: tokens of the large model; a token that only one of them has is not guessed.
        n_ctx, n_seq_max: of the large model's context.
        options: further arguments of Context.

    Attributes:
        context: the draft model's Context.
        seconds: how long each step of the last draft has taken; None where it had to catch up first.
    """

    def __init__(self, model: Model, *, n_vocab: int, n_ctx: int, n_seq_max: int, options: dict[str, Any]) -> None:
        n_batch = max(CATCH_UP_TOKENS, 2 * n_seq_max)
        self.context = Context(
            model, n_ctx=n_ctx, n_seq_max=n_seq_max, n_batch=n_batch, n_ubatch=n_batch, n_outputs_max=n_seq_max, **options
        )  # fmt: skip
        self.seconds: float | None = None
        self._n_batch = n_batch
        self._n_vocab = min(model.vocab.n_tokens, n_vocab)
        self._sampler = FastSampler(model.vocab, SamplingParams(temperature=0))
        self._step = Step(self.context, n_groups=n_seq_max, width=MAX_GUESS_TOKENS)
        self._followed: dict[int, _Followed] = {}  # by sequence
        self._index: PrefixIndex[int] = PrefixIndex()  # of the prompts, each behind it the answer of the request before
        self._held: dict[int, int] = {}  # tokens of sequences that wait for others

    def guess(self, requests: Sequence[Request], n: int) -> dict[int, list[int]]:
        """Return up to ``n`` tokens for each request, by its sequence; none for one whose text the draft model lacks."""
        try:
            return self._guess(requests, n)
        except (DecodeError, NativeError):
            _logger.warning("%r has failed, and begins anew", self.context, exc_info=True)
            self.context.memory.clear()
            self._followed.clear()
            self._held.clear()
            self._index = PrefixIndex()
            return {}

    def _guess(self, requests: Sequence[Request], n: int) -> dict[int, list[int]]:
        self._step.clear()
        ends = self._add_texts(requests, n)
        if not ends:
            return {}
        ready = [(seq, self._followed[seq]) for seq, end in ends.items() if self._is_whole(seq, end)]
        quick = all(end - self._followed[seq].n <= QUICK_TOKENS for seq, end in ends.items())
        begin = perf_counter()
        first = self._step.run()
        for seq, end in ends.items():
            self._followed[seq].n = end
        for (_, followed), sampled in zip(ready, first, strict=True):
            followed.guessed = self._known(sampled.tokens)
        ready = [(seq, followed) for seq, followed in ready if followed.guessed]
        n_steps = 1
        if n > 1 and ready:
            n_steps += self._guess_more(ready, n - 1)
        self.seconds = (perf_counter() - begin) / n_steps if quick else None
        return {seq: self._known(followed.guessed) for seq, followed in ready}

    def _add_texts(self, requests: Sequence[Request], n: int) -> dict[int, int]:
        """Put into the step what the sequences lack of their texts; return where each sequence ends then.

        Those with the whole text sample a token, and have room for ``n``.
        """
        ends: dict[int, int] = {}
        room = self._n_batch
        for request in requests:
            seq = request.seq
            followed = None if seq is None else self._follow(seq, request, ends)
            if seq is None or followed is None:
                continue
            todo = followed.todo()[:room]
            end = followed.n + len(todo)
            if not todo or max(todo) >= self._n_vocab or end + n > self.context.n_ctx_seq:
                continue
            self._step.add(todo, followed.n, seq)
            room -= len(todo)
            ends[seq] = end
            if self._is_whole(seq, end):
                self._step.sample(self._sampler)
        return ends

    def _guess_more(self, ready: Sequence[tuple[int, _Followed]], n: int) -> int:
        """Append up to ``n`` guesses to the first ones; return the number of steps."""
        step = self._step
        step.clear()
        for seq, followed in ready:
            step.add(followed.guessed, followed.n, seq)
            step.sample(self._sampler, room=n)
        for (_, followed), sampled in zip(ready, step.run(n, 1.0), strict=True):
            followed.guessed += sampled.tokens
        return step.n_done

    def _is_whole(self, seq: int, end: int) -> bool:
        """Return whether the text of a sequence ends at ``end``."""
        followed = self._followed[seq]
        return end == followed.n_prompt + len(followed.request.tokens)

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Return the tokens that the large model has, too."""
        return [token for token in tokens if token < self._n_vocab]

    def _follow(self, seq: int, request: Request, coming: Collection[int]) -> _Followed | None:
        """Cut a sequence to what it has of a request's text; None where it waits for one of ``coming``."""
        memory = self.context.memory
        followed = self._followed.get(seq)
        if followed is not None and followed.request is request:
            kept = followed.n_right()
        else:
            begun = self._begin(seq, request, coming)
            if begun is None:
                return None
            followed, kept = begun
        if memory.positions(seq).stop > kept and not memory.remove(seq, kept):
            memory.remove(seq, 0)
            kept = 0
        followed.n = kept
        followed.guessed = []
        return followed

    def _begin(self, seq: int, request: Request, coming: Collection[int]) -> tuple[_Followed, int] | None:
        """Give a sequence to another request; return how many tokens of the prompt it has, by itself or as a copy.

        None where one of ``coming`` is about to compute more of the prompt.
        """
        prompt = request.prompt
        old = self._followed.pop(seq, None)
        if old is not None:  # the next turn of a conversation begins with the answer
            self._index.extend(seq, old.request.tokens[: max(old.n - old.n_prompt, 0)])
            self._held[seq] = old.n
        shared, holders = self._index.longest(prompt)
        shared = min(shared, len(prompt) - 1)
        lengths = {other: min(self._n(other), shared) for other in holders}
        best = max(lengths, key=lambda other: (lengths[other], other == seq), default=seq)
        if lengths.get(best, 0) < shared and any(other in coming for other in holders):
            return None
        if best != seq and lengths[best]:
            self.context.memory.copy(best, seq)
        if seq in self._index:
            self._index.remove(seq)
        self._held.pop(seq, None)
        self._index.extend(seq, prompt)
        followed = self._followed[seq] = _Followed(request, len(prompt))
        return followed, lengths.get(best, 0)

    def _n(self, seq: int) -> int:
        """Return how many tokens of its text a sequence has."""
        followed = self._followed.get(seq)
        return self._held.get(seq, 0) if followed is None else followed.n

    def close(self) -> None:
        """Free the context."""
        self.context.close()
