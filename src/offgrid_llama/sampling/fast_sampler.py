"""FastSampler: the usual samplers in one pass over the logits (``og_fast_sample`` of ``_capi/fast_sampling.cpp``)."""

from __future__ import annotations

import math
import secrets
import threading
from typing import TYPE_CHECKING, Any

from offgrid_llama._capi import ffi, lib
from offgrid_llama.errors import GrammarError, SamplerError
from offgrid_llama.native.check import number, raise_caught, text_of

from .chain import SamplerChain, row_of
from .sampler import DEFAULT_SEED
from .token_sampler import TokenSampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.context.context import Context
    from offgrid_llama.model.vocab import Vocab

    from .grammar.guide import Guide
    from .sampling_params import SamplingParams

__all__ = ["FastSampler", "covers", "sampler_for"]


_ORDER = ("penalties", "top_k", "typical", "top_p", "min_p", "temp_ext")


def covers(params: SamplingParams) -> bool:
    """Return whether a FastSampler covers ``params``: these samplers only, in llama.cpp's usual order.

    They are ``logit_bias``, penalties, ``top_k``, ``typical_p``, ``top_p``, ``min_p``, ``temperature``, and grammars with a
    guide.
    """
    used = [name for name in params.samplers if _is_on(params, name)]
    if (params.grammar is not None and not params.grammar.guided) or params.dynatemp_range:
        return False
    if params.temperature == 0:
        return not {"dry", "xtc", "typical", "infill"} & set(used)
    if params.mirostat or params.adaptive_target is not None:
        return False
    return used == [name for name in _ORDER if name in used]


def _is_on(params: SamplingParams, name: str) -> bool:
    return {
        "dry": params.dry_multiplier > 0, "top_n_sigma": params.top_n_sigma > 0, "typical": params.typical_p < 1,
        "xtc": params.xtc_probability > 0,
    }.get(name, True)  # fmt: skip


def _native_fields(params: SamplingParams) -> dict[str, Any]:
    """Return the numbers of an ``og_fast_sampler``; samplers that are not used have values without an effect."""
    on = set(params.samplers)
    penalties = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
    return {
        "temperature": params.temperature if "temp_ext" in on or params.temperature == 0 else 1.0,
        "top_k": params.top_k if "top_k" in on else 0, "typical_p": params.typical_p if "typical" in on else 1.0,
        "top_p": params.top_p if "top_p" in on else 1.0, "min_p": params.min_p if "min_p" in on else 0.0,
        "min_keep": params.min_keep, "repeat_penalty": penalties[0], "frequency_penalty": penalties[1],
        "presence_penalty": penalties[2],
        "last_n": params.repeat_last_n if "penalties" in on and penalties != (1, 0, 0) else 0,
    }  # fmt: skip


def sampler_for(params: SamplingParams, vocab: Vocab) -> FastSampler | SamplerChain:
    """Return the fastest sampler for ``params``; both have ``sample``, ``accept``, ``reset`` and ``close``."""
    return FastSampler(vocab, params) if covers(params) else params.chain(vocab)


class FastSampler(TokenSampler):
    """Chooses tokens like the SamplerChain of the same SamplingParams, about ten times as fast.

    The probabilities are the chain's. The random numbers differ (splitmix64), so the same seed draws other tokens. A
    SamplerChain makes an array of the whole vocabulary for each token; a FastSampler reads the logits once.

    Args:
        vocab: the Vocab of the model whose contexts it samples from.
        params: the sampling parameters.
        n_logprobs: how many of the most probable tokens to report, besides the chosen one; None reports nothing.

    Raises ValueError for ``params`` that it does not cover, or with tokens that the model lacks; GrammarError for a grammar
    that cannot be used.

    Attributes:
        guide: the grammar's Guide, which says which tokens are allowed next; None without a grammar.
        seed: the seed, also a random one.
        logprob: the logarithm of the probability that the model gave to the last token, before any rule; None unless
            ``n_logprobs`` is given.
        top_logprobs: [(token, its logprob)] of the most probable tokens, in that order.
    """

    def __init__(self, vocab: Vocab, params: SamplingParams, *, n_logprobs: int | None = None) -> None:
        if not covers(params):
            raise ValueError("params have samplers, or an order of them, that take a SamplerChain: params.chain(vocab)")
        self._vocab = vocab
        self._params = params
        self.guide: Guide | None = None if params.grammar is None else params.grammar.guide(vocab)
        self.n_logprobs = n_logprobs
        self.forces = n_logprobs is None  # a forced token is not sampled and has no logprobs
        n_top = -1 if n_logprobs is None else number("n_logprobs", n_logprobs, 0, vocab.n_tokens)
        self.seed = secrets.randbelow(DEFAULT_SEED) if params.seed is None else params.seed
        self.logprob: float | None = None
        self.top_logprobs: list[tuple[int, float]] = []
        bias = {**params.logit_bias, **dict.fromkeys(vocab.suppress_tokens(), -math.inf)}
        tokens = [number("logit_bias token", token, 0, vocab.n_tokens - 1) for token in bias]
        fields = _native_fields(params)
        self._recent = ffi.new("int32_t[]", max(fields["last_n"], 1))
        self._bias_tokens, self._biases = ffi.new("int32_t[]", tokens), ffi.new("float[]", list(bias.values()))
        self._top_tokens, self._top_logprobs = ffi.new("int32_t[]", max(n_top, 1)), ffi.new("float[]", max(n_top, 1))
        self.native = ffi.new(
            "og_fast_sampler *",
            {
                **fields, "recent": self._recent, "n_bias": len(bias), "bias_tokens": self._bias_tokens,
                "biases": self._biases, "mask": ffi.NULL if self.guide is None else self.guide.mask,
                "random_state": self.seed, "n_top": n_top, "top_tokens": self._top_tokens,
                "top_logprobs": self._top_logprobs,
            },
        )  # fmt: skip
        self._lock = threading.Lock()  # a native call releases the GIL

    def __repr__(self) -> str:
        return f"<FastSampler for {self._vocab.handle.name}>"

    def sample(self, context: Context, row: int) -> int:
        """Choose a token for a row of the context's last decode, and remember it for the penalties.

        A logit that is NaN counts as -inf, one of more than 1e30 as 1e30.

        Raises:
            ValueError: the row has no logits, or the context is of another model.
            SamplerError: every token is forbidden.
        """
        if context.model.vocab.handle is not self._vocab.handle:
            raise ValueError(f"{self!r} cannot sample from {context!r}")
        with self._lock, context.handle as ptr:
            return self._sample(lib.llama_get_logits_ith(ptr, context.outputs.readable(row)))

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token for your own row of logits, float32[n_vocab], writable; otherwise as ``sample``.

        The logits are unchanged afterwards. Raises ValueError for another shape or dtype, SamplerError as ``sample`` does.
        """
        with self._lock:
            return self._sample(row_of(logits, self._vocab))

    def _sample(self, logits: Any) -> int:
        if self.guide is not None:
            self.guide.fill()
        token = int(lib.og_fast_sample(self.native, logits, self._vocab.n_tokens))
        if token == lib.OG_THREW:
            raise_caught()
        if token < 0:
            raise self.failure(token)
        if self.n_logprobs is not None:
            self.logprob = self.native.logprob
            self.top_logprobs = self.top(0)
        if self.guide is not None:
            self.guide.accept(token)
        return token

    def failure(self, code: int) -> GrammarError | SamplerError:
        """Return the error for a native code in place of a token. Internal: Step calls it."""
        if code == lib.OG_THREW:
            return SamplerError(f"no token could be sampled: {text_of(lib.og_caught_what())}")
        if self.guide is not None:
            return self.guide.error or GrammarError(
                "no token was selected: the grammar and the other rules forbid them all"
            )
        return SamplerError("no token was selected: the model's logits are no numbers, or the biases forbid them all")

    def foresee(self, guesses: Sequence[int]) -> list[int]:
        """Return the tokens to verify together when these are guessed next, as ``Guide.foresee`` does.

        Without a guide these are all guesses.
        """
        return list(guesses) if self.guide is None else self.guide.foresee(guesses, forces=self.forces)

    def forced(self) -> list[int]:
        """Append the tokens that the grammar forces next, and return them; none if logprobs are reported."""
        if self.guide is None or not self.forces:
            return []
        tokens = self.guide.forced()
        for token in tokens:
            self._remember(token)
        return tokens

    def reserve(self, n_tokens: int) -> None:
        """Make room for the most probable tokens of ``n_tokens`` tokens. Internal: Step calls it."""
        n = n_tokens * max(self.n_logprobs or 0, 1)
        if len(self._top_tokens) < n:
            self._top_tokens, self._top_logprobs = ffi.new("int32_t[]", n), ffi.new("float[]", n)
            self.native.top_tokens, self.native.top_logprobs = self._top_tokens, self._top_logprobs

    def top(self, index: int) -> list[tuple[int, float]]:
        """Return the most probable tokens beside the ``index``-th token of a step. Internal: Step calls it."""
        n = self.n_logprobs or 0
        places = range(index * n, (index + 1) * n)
        return [(self._top_tokens[i], self._top_logprobs[i]) for i in places if self._top_tokens[i] >= 0]

    def accept(self, token: int) -> None:
        """Record ``token`` as chosen, for penalties and grammar; ``sample`` does so for its own tokens."""
        token = number("token", token, 0, self._vocab.n_tokens - 1)
        with self._lock:
            self._remember(token)
            if self.guide is not None:
                self.guide.accept(token)

    def _remember(self, token: int) -> None:
        c = self.native
        if c.n_recent < c.last_n:
            c.recent[c.n_recent] = token
            c.n_recent += 1
        elif c.last_n:
            c.recent[c.oldest_recent] = token
            c.oldest_recent = (c.oldest_recent + 1) % c.last_n

    def reset(self) -> None:
        """Forget all tokens, and restart the random numbers."""
        with self._lock:
            if self.guide is not None:
                self.guide.reset()
            self.native.random_state, self.native.n_recent, self.native.oldest_recent = self.seed, 0, 0

    def close(self) -> None:
        """Let go of the grammar: with one, it selects nothing any more. It owns no object of llama.h."""
        with self._lock:
            if self.guide is not None:
                self.guide.close()

    def clone(self) -> FastSampler:
        """Return an independent sampler in the same state."""
        other = FastSampler(self._vocab, self._params, n_logprobs=self.n_logprobs)
        with self._lock:
            other.seed = self.seed
            theirs, ours = other.native, self.native
            theirs.random_state = ours.random_state
            theirs.n_recent, theirs.oldest_recent = ours.n_recent, ours.oldest_recent
            ffi.memmove(other._recent, self._recent, ffi.sizeof(self._recent))
            if self.guide is not None:
                other.guide = self.guide.clone()
                other.native.mask = other.guide.mask
        return other
