"""FastSampler: the usual samplers in one pass over the logits (``og_fast_sample`` of ``_capi/fast_sampling.cpp``)."""

from __future__ import annotations

import math
import secrets
import threading
from typing import TYPE_CHECKING, Any

from ._capi import ffi, lib
from ._check import number, raise_caught
from .chain import SamplerChain, row_of
from .errors import GrammarError, SamplerError
from .sampling import DEFAULT_SEED

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from .context import Context
    from .guide import Guide
    from .sampling_params import SamplingParams
    from .vocab import Vocab

__all__ = ["FastSampler", "covers", "sampler_for"]


_ORDER = ("penalties", "top_k", "typical", "top_p", "min_p", "temp_ext")


def covers(params: SamplingParams) -> bool:
    """Return whether a FastSampler does what ``params`` say: the samplers in llama.cpp's usual order, and none but these.

    Those are ``logit_bias``, penalties, ``top_k``, ``typical_p``, ``top_p``, ``min_p``, ``temperature``, and grammars with a
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


def sampler_for(params: SamplingParams, vocab: Vocab) -> FastSampler | SamplerChain:
    """Return the quickest sampler that does what ``params`` say; it has ``sample``, ``accept``, ``reset`` and ``close``."""
    return FastSampler(vocab, params) if covers(params) else params.chain(vocab)


class FastSampler:
    """Chooses tokens as the SamplerChain of the same SamplingParams does, some ten times as fast.

    The probabilities are the chain's; the random numbers are others (splitmix64), so a seed draws other tokens than there.
    A SamplerChain makes an array of the whole vocabulary for each token, this one reads the logits once.

    Args:
        vocab: of the model whose contexts it samples from.
        params: what it does.
        n_logprobs: how many of the most probable tokens to tell of, besides the one that was chosen; None tells nothing.

    Raises ValueError for ``params`` that it does not cover, or with tokens that the model does not have; GrammarError for a
    grammar that cannot be used.

    Attributes:
        guide: what knows which tokens the grammar allows next; None without one.
        seed: the seed, also where a random one was asked for.
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
        self._n_logprobs = n_logprobs
        self.forces = n_logprobs is None  # of a token that is not sampled there are none
        n_top = -1 if n_logprobs is None else number("n_logprobs", n_logprobs, 0, vocab.n_tokens)
        self.seed = secrets.randbelow(DEFAULT_SEED) if params.seed is None else params.seed
        self.logprob: float | None = None
        self.top_logprobs: list[tuple[int, float]] = []
        on = set(params.samplers)
        penalties = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
        last_n = params.repeat_last_n if "penalties" in on and penalties != (1, 0, 0) else 0
        bias = {**params.logit_bias, **dict.fromkeys(vocab.suppress_tokens(), -math.inf)}
        self._recent = ffi.new("int32_t[]", max(last_n, 1))
        self._bias_tokens = ffi.new(
            "int32_t[]", [number("logit_bias token", token, 0, vocab.n_tokens - 1) for token in bias]
        )
        self._biases = ffi.new("float[]", list(bias.values()))
        self._top_tokens = ffi.new("int32_t[]", max(n_top, 1))
        self._top_logprobs = ffi.new("float[]", max(n_top, 1))
        self._c = ffi.new(
            "og_fast_sampler *",
            {
                "temperature": params.temperature if "temp_ext" in on or params.temperature == 0 else 1.0,
                "top_k": params.top_k if "top_k" in on else 0, "typical_p": params.typical_p if "typical" in on else 1.0,
                "top_p": params.top_p if "top_p" in on else 1.0, "min_p": params.min_p if "min_p" in on else 0.0,
                "min_keep": params.min_keep, "repeat": penalties[0], "frequency": penalties[1], "presence": penalties[2],
                "last_n": last_n, "recent": self._recent, "n_bias": len(bias), "bias_tokens": self._bias_tokens,
                "biases": self._biases, "mask": ffi.NULL if self.guide is None else self.guide.mask,
                "random": self.seed, "n_top": n_top, "top_tokens": self._top_tokens, "top_logprobs": self._top_logprobs,
            },
        )  # fmt: skip
        self._lock = threading.Lock()  # a call lets go of the GIL

    def __repr__(self) -> str:
        return f"<FastSampler for {self._vocab._handle.name}>"

    def sample(self, context: Context, row: int) -> int:
        """Choose a token for a row of the context's last decode, and remember it for the penalties.

        A logit that is NaN counts as -inf, one of more than 1e30 as 1e30.

        Raises:
            ValueError: the row has no logits, or the context is of another model.
            SamplerError: every token is forbidden.
        """
        if context.model.vocab._handle is not self._vocab._handle:
            raise ValueError(f"{self!r} cannot sample from {context!r}")
        with self._lock, context._handle as ptr:
            return self._sample(lib.llama_get_logits_ith(ptr, context._readable(row)))

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token for a row of logits that you have, float32[n_vocab], writable; otherwise as ``sample``.

        The logits are as before afterwards. Raises ValueError for another shape or dtype, SamplerError as ``sample`` does.
        """
        with self._lock:
            return self._sample(row_of(logits, self._vocab))

    def _sample(self, logits: Any) -> int:
        if self.guide is not None:
            self.guide.fill()
        token = int(lib.og_fast_sample(self._c, logits, self._vocab.n_tokens))
        if token == lib.OG_THREW:
            raise_caught()
        if token < 0:
            raise self._nothing()
        if self._n_logprobs is not None:
            self.logprob = self._c.logprob
            self.top_logprobs = self._top(0)
        if self.guide is not None:
            self.guide.accept(token)
        return token

    def _nothing(self) -> GrammarError | SamplerError:
        """Return why there is no token that could be chosen."""
        if self.guide is not None:
            return self.guide.error or GrammarError(
                "no token was selected: the grammar, or what else, forbids them all"
            )
        return SamplerError("no token was selected: the model's logits are no numbers, or the biases forbid them all")

    def foresee(self, guesses: Sequence[int]) -> list[int]:
        """Return which tokens to check together where these are guessed to come next, as ``Guide.foresee`` does.

        Without a guide that is all of them.
        """
        return list(guesses) if self.guide is None else self.guide.foresee(guesses, forces=self.forces)

    def forced(self) -> list[int]:
        """Take the tokens that the grammar says must come next, and return them; none where logprobs are to be told."""
        if self.guide is None or not self.forces:
            return []
        tokens = self.guide.forced()
        for token in tokens:
            self._remember(token)
        return tokens

    def _reserve(self, n_tokens: int) -> None:
        """Make room for the most probable tokens of so many that are sampled in one native call."""
        n = n_tokens * max(self._n_logprobs or 0, 1)
        if len(self._top_tokens) < n:
            self._top_tokens, self._top_logprobs = ffi.new("int32_t[]", n), ffi.new("float[]", n)
            self._c.top_tokens, self._c.top_logprobs = self._top_tokens, self._top_logprobs

    def _top(self, index: int) -> list[tuple[int, float]]:
        """Return the most probable tokens of the ``index``-th token of a native call, with their logprobs."""
        n = self._n_logprobs or 0
        places = range(index * n, (index + 1) * n)
        return [(self._top_tokens[i], self._top_logprobs[i]) for i in places if self._top_tokens[i] >= 0]

    def accept(self, token: int) -> None:
        """Count ``token`` as one that was chosen, for penalties and grammar; ``sample`` has done so for its own."""
        token = number("token", token, 0, self._vocab.n_tokens - 1)
        with self._lock:
            self._remember(token)
            if self.guide is not None:
                self.guide.accept(token)

    def _remember(self, token: int) -> None:
        c = self._c
        if c.n_recent < c.last_n:
            c.recent[c.n_recent] = token
            c.n_recent += 1
        elif c.last_n:
            c.recent[c.oldest] = token
            c.oldest = (c.oldest + 1) % c.last_n

    def reset(self) -> None:
        """Forget all tokens, and start the random numbers anew."""
        with self._lock:
            if self.guide is not None:
                self.guide.reset()
            self._c.random, self._c.n_recent, self._c.oldest = self.seed, 0, 0

    def close(self) -> None:
        """Do nothing: it has no object of llama.h. For whoever has a SamplerChain in its place."""

    def clone(self) -> FastSampler:
        """Return a sampler of its own in the same state."""
        other = FastSampler(self._vocab, self._params, n_logprobs=self._n_logprobs)
        with self._lock:
            other.seed = self.seed
            other._c.random, other._c.n_recent, other._c.oldest = self._c.random, self._c.n_recent, self._c.oldest
            ffi.memmove(other._recent, self._recent, ffi.sizeof(self._recent))
            if self.guide is not None:
                other.guide = self.guide.clone()
                other._c.mask = other.guide.mask
        return other
