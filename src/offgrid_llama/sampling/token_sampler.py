"""TokenSampler: what an engine step needs of a sampler, a FastSampler or a SamplerChain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi
from offgrid_llama.native.bound import Bound

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.errors import GrammarError, SamplerError
    from offgrid_llama.native.handle import Handle

    from .grammar.guide import Guide

__all__ = ["TokenSampler"]


class TokenSampler(Bound):
    """Base of the samplers that choose a token of a row; its defaults are those of a SamplerChain.

    Attributes:
        guide: which tokens the grammar allows next; None without a grammar, and where a chain holds it.
        forces: whether tokens that the grammar leaves no choice about are appended without being sampled.
        n_logprobs: how many of the most probable tokens are reported besides the chosen one; None reports nothing.
        logprob: the log probability that the model gave to the last token; None unless ``n_logprobs`` is given.
        top_logprobs: [(token, its logprob)] of the most probable tokens, in that order.
        by_hand: whether it works by ``choose`` only, on a copy of the logits.
        native: the ``og_fast_sampler *``; NULL for a chain. Internal.
        chain_handle: the chain's Handle; None for a FastSampler. Internal.
    """

    _instead = "clone() makes another one in the same state"

    guide: Guide | None = None
    forces: bool = False
    n_logprobs: int | None = None
    logprob: float | None = None
    top_logprobs: list[tuple[int, float]]
    by_hand: bool = False
    native: Any = ffi.NULL
    chain_handle: Handle | None = None

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token for a row of logits, float32[n_vocab], and accept it."""
        raise NotImplementedError

    def accept(self, token: int) -> None:
        """Take ``token`` as chosen, for penalties and grammar."""
        raise NotImplementedError

    def foresee(self, guesses: Sequence[int]) -> list[int]:
        """Return the tokens to verify together where these are guessed to come next: without a guide, all of them."""
        return list(guesses)

    def forced(self) -> list[int]:
        """Accept the tokens that the grammar forces next, and return them."""
        return []

    def reserve(self, n_tokens: int) -> None:
        """Make room for the most probable tokens of ``n_tokens`` tokens. Internal: Step calls it."""

    def top(self, index: int) -> list[tuple[int, float]]:
        """Return the most probable tokens beside the ``index``-th token of a step. Internal: Step calls it."""
        return []

    def failure(self, code: int) -> GrammarError | SamplerError:
        """Return the error for a native code in place of a token. Internal: Step calls it."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the C object, if there is one."""
