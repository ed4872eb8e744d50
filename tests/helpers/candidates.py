"""The candidates that a chain leaves, read by applying it as llama.cpp does, and NumPy's own view of the same logits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

import offgrid_llama as og
from helpers.twin import N_VOCAB
from offgrid_llama._capi import ffi, lib

Array = npt.NDArray[Any]
INF = math.inf


def applied(chain: og.SamplerChain, logits: Array) -> dict[int, float]:
    """Apply a chain as llama.cpp does, and return the tokens that are left with their logits."""
    data = ffi.new("llama_token_data[]", [(token, float(logit), 0.0) for token, logit in enumerate(logits)])
    candidates = ffi.new("llama_token_data_array *", {"data": data, "size": len(logits), "selected": -1})
    with chain.handle as ptr:
        lib.llama_sampler_apply(ptr, candidates)
    left = candidates.data[0 : candidates.size]
    return {entry.id: entry.logit for entry in left if entry.logit != -INF}


def left_by(sampler: og.Sampler, logits: Array) -> dict[int, float]:
    with og.SamplerChain([sampler]) as chain:
        return applied(chain, logits)


def draw(chain: og.SamplerChain, logits: Array) -> int:
    """Draw a token as ``chain.sample`` does, from logits of our own."""
    values = np.ascontiguousarray(logits, np.float32)
    with chain.handle as ptr:
        return int(lib.og_sample(ptr, ffi.from_buffer("float[]", values), len(values)))


def softmax(logits: Array) -> Array:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(weights / weights.sum())


def assert_left(got: dict[int, float], tokens: Any, logits: Array) -> None:
    assert sorted(got) == sorted(int(token) for token in tokens)
    np.testing.assert_allclose([got[token] for token in sorted(got)], logits[sorted(got)], rtol=1e-5, atol=1e-5)


LOGITS = np.random.default_rng(1).standard_normal(N_VOCAB).astype(np.float32) * 2
ORDER = np.argsort(-LOGITS)
PROBABILITY = softmax(LOGITS)


def argmax(values: Array) -> int:
    values = np.ascontiguousarray(values, np.float32)
    return int(lib.og_argmax(ffi.from_buffer("float[]", values), len(values)))


def entropy(probability: Array) -> float:
    return float(-(probability * np.log(np.maximum(probability, 1e-300))).sum())


def typical_tokens(logits: Array, p: float) -> Array:
    """Return the tokens whose surprise is nearest to the entropy, until they sum up to more than ``p``."""
    probability = softmax(logits)
    order = np.argsort(np.abs(-np.log(probability) - entropy(probability)))
    return np.asarray(order[: int(np.argmax(np.cumsum(probability[order]) > p)) + 1])
