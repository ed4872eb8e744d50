"""Samplers: what each keeps and how it weighs it, against NumPy.

The candidates that a chain leaves are read by applying it as llama.cpp does, to logits of our own.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.candidates import (
    INF,
    LOGITS,
    ORDER,
    PROBABILITY,
    applied,
    argmax,
    assert_left,
    left_by,
    typical_tokens,
)
from helpers.twin import N_VOCAB
from offgrid_llama import samplers

floats = st.one_of(st.floats(width=32), st.sampled_from([-INF, INF, math.nan, 0.0, -0.0, 1.0]))


@settings(max_examples=300, deadline=None)
@given(st.lists(floats, max_size=70))
def test_argmax_is_numpys(values: list[float]) -> None:
    """The first of the largest, NaN left out, as NumPy finds it; -1 where there is none."""
    array = np.array(values, np.float32)
    numbers = np.where(np.isnan(array), -INF, array)
    expected = int(np.argmax(numbers)) if len(numbers) and numbers.max() > -INF else -1
    assert argmax(array) == expected


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33, 49152, 262144])
def test_argmax_finds_each_place(n: int) -> None:
    """The largest is found at the beginning, at the end, and where the vectors meet; the first of two that are equal."""
    array = np.full(n, -5, np.float32)
    for place in {0, n // 2, max(n - 17, 0), n - 1}:
        array[place] = 3
        array[place + 1 :] = np.where(np.arange(n - place - 1) % 7 == 3, 3, -5)
        assert argmax(array) == place
        array[:] = -5


# Candidates that are kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 1, 2, 10, N_VOCAB, 1000])
def test_top_k(k: int) -> None:
    """top_k keeps the k largest logits, all for 0."""
    assert_left(left_by(samplers.top_k(k), LOGITS), ORDER[: k or None], LOGITS)


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("min_keep", [0, 1, 5])
def test_top_p(p: float, min_keep: int) -> None:
    """top_p keeps the most probable tokens until they sum up to p, and min_keep of them at least."""
    sums = np.cumsum(PROBABILITY[ORDER])
    count = N_VOCAB if p == 1 else max(int(np.argmax(sums >= p)) + 1, min_keep)
    assert_left(left_by(samplers.top_p(p, min_keep), LOGITS), ORDER[:count], LOGITS)


@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("min_keep", [0, 1, 5])
def test_min_p(p: float, min_keep: int) -> None:
    """min_p keeps what is at least p times as probable as the best, and min_keep tokens at least."""
    count = max(int(np.count_nonzero(PROBABILITY / PROBABILITY.max() >= p * (1 - 1e-6))), min_keep)
    assert_left(left_by(samplers.min_p(p, min_keep), LOGITS), ORDER[:count], LOGITS)


@pytest.mark.parametrize("p", [0.2, 0.5, 0.9, 1.0])
def test_typical(p: float) -> None:
    """Typical keeps the tokens whose surprise is nearest to the entropy, until they sum up to p."""
    expected = np.arange(N_VOCAB) if p == 1 else typical_tokens(LOGITS, p)
    assert_left(left_by(samplers.typical(p, 1), LOGITS), expected, LOGITS)


@pytest.mark.parametrize("n", [0.5, 1.0, 2.0, 10.0])
def test_top_n_sigma(n: float) -> None:
    """top_n_sigma keeps what lies within n standard deviations of the largest logit."""
    threshold = LOGITS.max() - n * LOGITS.std()
    assert_left(left_by(samplers.top_n_sigma(n), LOGITS), np.flatnonzero(LOGITS - threshold >= 0), LOGITS)


@pytest.mark.parametrize("threshold", [0.02, 0.05, 0.1, 0.4, 0.6])
def test_xtc(threshold: float) -> None:
    """XTC drops all tokens above the threshold but the least probable of them, always or never by its probability."""
    above = int(np.count_nonzero(PROBABILITY - threshold >= 0)) if threshold <= 0.5 else 0
    assert_left(left_by(samplers.xtc(1.0, threshold, 1, seed=3), LOGITS), ORDER[max(above - 1, 0) :], LOGITS)
    assert_left(left_by(samplers.xtc(0.0, threshold, 1, seed=3), LOGITS), ORDER, LOGITS)


def test_xtc_acts_as_often_as_asked() -> None:
    """XTC with a probability of 0.3 acts in 3 of 10 draws."""
    with og.SamplerChain([samplers.xtc(0.3, 0.05, 1, seed=1)]) as chain:
        acted = sum(len(applied(chain, LOGITS)) < N_VOCAB for _ in range(2000))
    assert 520 < acted < 680  # 4 standard deviations


# How it is weighed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.8, 1.0, 1.5, 100.0])
def test_temp(temperature: float) -> None:
    """Temp divides the logits."""
    assert_left(left_by(samplers.temp(temperature), LOGITS), ORDER, LOGITS / temperature)


def test_temp_of_zero() -> None:
    """A temperature of 0 leaves the largest only."""
    assert list(left_by(samplers.temp(0), LOGITS)) == [ORDER[0]]


@pytest.mark.parametrize(("delta", "exponent"), [(0.5, 1.0), (0.3, 2.0), (2.0, 1.0)])
def test_temp_ext(delta: float, exponent: float) -> None:
    """temp_ext takes its temperature from within temperature +- delta by the entropy, relative to the largest possible."""
    entropy = -(PROBABILITY * np.log(PROBABILITY)).sum() / math.log(N_VOCAB)
    low, high = max(0.0, 1.0 - delta), 1.0 + delta
    temperature = low + (high - low) * entropy**exponent
    got = left_by(samplers.temp_ext(1.0, delta, exponent), LOGITS)
    assert sorted(got) == list(range(N_VOCAB))
    np.testing.assert_allclose([got[i] for i in range(N_VOCAB)], LOGITS / temperature, rtol=1e-3, atol=1e-3)
    assert_left(left_by(samplers.temp_ext(0.7, 0.0), LOGITS), ORDER, LOGITS / 0.7)


def test_logit_bias(tiny: og.Model) -> None:
    """logit_bias adds to the logits of the tokens that it names; -inf forbids."""
    got = left_by(samplers.logit_bias(tiny.vocab, {3: 2.5, 7: -1.0, 0: -INF, 60: 0.0}), LOGITS)
    expected = LOGITS.copy()
    expected[3] += 2.5
    expected[7] -= 1.0
    assert_left(got, range(1, N_VOCAB), expected)
    assert_left(left_by(samplers.logit_bias(tiny.vocab, {}), LOGITS), range(N_VOCAB), LOGITS)


def test_penalties(tiny: og.Model) -> None:
    """The last tokens get less probable: logits divided by repeat, less freq for each occurrence and present once."""
    accepted = [5, 9, 5, 5, 11, 12]  # 5 is out of the last four but once
    with og.SamplerChain([samplers.penalties(tiny.vocab, last_n=4, repeat=1.5, freq=0.25, present=0.5)]) as chain:
        for token in accepted:
            chain.accept(token)
        got = applied(chain, LOGITS)
    expected = LOGITS.copy()
    for token in (5, 11, 12):
        value = expected[token]
        count = accepted[-4:].count(token)
        expected[token] = (value * 1.5 if value <= 0 else value / 1.5) - 0.25 * count - 0.5
    assert_left(got, range(N_VOCAB), expected)


def test_penalties_of_nothing(tiny: og.Model) -> None:
    """A window of no tokens, and a chain that was reset, change nothing."""
    for chain in (
        og.SamplerChain([samplers.penalties(tiny.vocab, last_n=0, repeat=2.0)]),
        og.SamplerChain([samplers.penalties(tiny.vocab, last_n=8, repeat=2.0)]),
    ):
        with chain:
            chain.accept(5)
            chain.reset()
            assert_left(applied(chain, LOGITS), range(N_VOCAB), LOGITS)


def test_dry(smollm2: og.Model) -> None:
    """DRY makes the token less probable that would go on with a repetition, the more the longer it is."""
    vocab = smollm2.vocab
    text = vocab.tokenize(" one two three four five six seven one two three four", add_special=False)
    logits = np.zeros(len(vocab), np.float32)
    with og.SamplerChain([samplers.dry(vocab, multiplier=0.8, base=1.75, allowed_length=2, breakers=())]) as chain:
        for token in text:
            chain.accept(token)
        got = applied(chain, logits)
    changed = {token: logit for token, logit in got.items() if logit != 0}
    (five,) = vocab.tokenize(" five", add_special=False)
    assert list(changed) == [five]
    assert changed[five] == pytest.approx(-0.8 * 1.75 ** (4 - 2))


def test_dry_stops_at_breakers(smollm2: og.Model) -> None:
    """A repetition ends at a breaker, and does not reach over it."""
    vocab = smollm2.vocab
    text = vocab.tokenize(" one two: three four five six seven one two: three four", add_special=False)
    logits = np.zeros(len(vocab), np.float32)
    with og.SamplerChain([samplers.dry(vocab, multiplier=0.8, base=1.75, allowed_length=1, breakers=[":"])]) as chain:
        for token in text:
            chain.accept(token)
        got = applied(chain, logits)
    (five,) = vocab.tokenize(" five", add_special=False)
    assert got[five] == pytest.approx(-0.8 * 1.75 ** (2 - 1))
