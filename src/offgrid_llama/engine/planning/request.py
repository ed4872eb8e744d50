"""Request: one sequence to generate, and how far it is (data only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from offgrid_llama.finish_reason import FinishReason

from .drafting import Acceptance
from .lookup import Lookup
from .media_tokens import Chunk, next_chunk
from .reasoning_budget import ReasoningBudget

__all__ = ["LateAdapters", "Request"]


@dataclass(frozen=True, slots=True)
class LateAdapters:
    """Adapters that a request has from some token of its prompt on.

    Attributes:
        pos: the position of that token, above 0.
        adapters: all that it has from there on.
        salt: what is computed from there on is found only by requests with the same one.
    """

    pos: int
    adapters: tuple[Any, ...]
    salt: str


@dataclass(eq=False, slots=True)
class Request:
    """One sequence to generate, as far as plans depend on it. The engine adds its sampler and its answer (EngineRequest).

    Attributes:
        prompt: its token ids; empty once it has ended.
        max_tokens: most tokens to generate.
        priority: requests with a larger one begin first, those with the same one in the order of their arrival.
        tenant: tenants have their turns by the tokens that each has been given.
        salt: a request finds only prefixes of requests with the same salt.
        n_keep: when its sequence is full, it goes on with the first ``n_keep`` tokens and the later half of the others
            (context shift); None ends it there.
        n_discard: how many tokens a shift removes; None is half of those that it may.
        guesser: guesses its next tokens by prompt lookup; None guesses nothing.
        acceptance: how often the draft model is right; None asks it for nothing.
        budget: limits its reasoning; None is no limit.
        guided: whether a grammar restricts its tokens, one after the other.
        tokens: token ids generated so far, without the one that ends the text.
        finish_reason: None while it waits or runs.
        wanted: the only sequence that it takes; None takes any.
        adapters: what changes the model's weights for it; a step has requests with the same ones only.
        late: others that it has from some token on; None has none.
        is_kept: whether what it computes is kept for later requests.
        chunks: the pictures and sounds of its prompt, in order.
        scored: of how many tokens of its prompt the logprobs are known, or not asked for, as those of the first, which has
            none. None does not ask for any.
        scores_next: whether that of the given token behind its prompt is asked for, too.
        seq: its sequence id while it runs.
        n_cached: prompt tokens that were computed before it began.
        n_guessed, n_right: guesses that were verified, and those of them that were right.
    """

    prompt: Sequence[int]
    max_tokens: int
    priority: int = 0
    tenant: str = ""
    salt: str = ""
    n_keep: int | None = None
    n_discard: int | None = None
    guesser: Lookup | None = None
    acceptance: Acceptance | None = None
    budget: ReasoningBudget | None = None
    guided: bool = False
    wanted: int | None = None
    adapters: tuple[Any, ...] = ()
    late: LateAdapters | None = None
    is_kept: bool = True
    chunks: Sequence[Chunk] = ()
    scored: int | None = None
    scores_next: bool = False
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    seq: int | None = None
    n_cached: int = 0
    n_guessed: int = 0
    n_right: int = 0

    def chunk_at(self, at: int) -> Chunk | None:
        """Return the chunk that the token of an index is in, or the first one behind it."""
        return next_chunk(self.chunks, at) if self.chunks else None

    def position(self, at: int) -> int:
        """Return the position of the token of an index, which is in no chunk or begins one."""
        if not self.chunks or at <= self.chunks[0].begin:
            return at
        chunk = next_chunk(self.chunks, at)
        if chunk is not None and chunk.begin <= at:
            return chunk.first
        before = self.chunks[-1] if chunk is None else self.chunks[self.chunks.index(chunk) - 1]
        return before.first + before.n_positions + at - before.end
