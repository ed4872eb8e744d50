"""ToldSampler: a SamplerChain that reports the probabilities of tokens, as FastSampler does for the usual samplers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from .token_sampler import TokenSampler

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offgrid_llama.errors import GrammarError, SamplerError

    from .chain import SamplerChain

__all__ = ["ToldSampler"]


class ToldSampler(TokenSampler):
    """Chooses tokens with a chain, from a row of logits that its caller hands over, and reports their logprobs.

    Args:
        chain: the SamplerChain, which is closed with this object.
        n_logprobs: how many of the most probable tokens to report.
        sampled: report the distribution from which the chain draws, instead of the model's own.
    """

    _instead = "make another one"
    by_hand = True

    def __init__(self, chain: SamplerChain, n_logprobs: int, *, sampled: bool = False) -> None:
        self._chain = chain
        self._sampled = sampled
        self.n_logprobs = n_logprobs
        self.seed = chain.seed
        self.top_logprobs: list[tuple[int, float]] = []

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """Choose a token, as ``SamplerChain.choose`` does, and keep its logprob and those of the most probable ones."""
        n = self.n_logprobs or 0
        if self._sampled:
            token, left = self._chain.draw(logits)
            found = dict(left)
            self.logprob = _logarithm(found.get(token, 1.0))
            ordered = sorted(left, key=lambda each: -each[1])[:n]
            self.top_logprobs = [(other, _logarithm(each)) for other, each in ordered if each > 0]
            return token
        token = self._chain.choose(logits)
        self.logprob, self.top_logprobs = _of_model(logits, token, n)
        return token

    def accept(self, token: int) -> None:
        """Take ``token`` as chosen."""
        self._chain.accept(token)

    def failure(self, code: int) -> GrammarError | SamplerError:
        """Return the error for a native code in place of a token. Internal: Step calls it."""
        return self._chain.failure(code)

    def close(self) -> None:
        """Free the chain."""
        self._chain.close()


def _logarithm(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _of_model(logits: npt.NDArray[np.float32], token: int, n: int) -> tuple[float, list[tuple[int, float]]]:
    """Return the logprob of a token, and the ``n`` most probable tokens with theirs."""
    import numpy as np

    usable = np.nan_to_num(logits, nan=-np.inf, posinf=1e30, neginf=-np.inf)
    largest = usable.max()
    logprobs = usable - largest - np.log(np.exp((usable - largest).astype(np.float64)).sum())
    most = np.argpartition(-logprobs, min(n, logits.size - 1))[:n]
    ordered = most[np.argsort(-logprobs[most], kind="stable")]
    return float(logprobs[token]), [(int(each), float(logprobs[each])) for each in ordered]
