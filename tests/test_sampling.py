"""Samplers: what each keeps and how it weighs it, against NumPy; what a chain draws, accepts and refuses.

The candidates that a chain leaves are read by applying it as llama.cpp does, to logits of our own; how often it draws
each token is counted on a real model's logits.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twin import N_VOCAB, TOKENS

import offgrid_llama as og
from offgrid_llama import samplers
from offgrid_llama._capi import ffi, lib

Array = npt.NDArray[Any]
INF = math.inf


def applied(chain: og.SamplerChain, logits: Array) -> dict[int, float]:
    """Apply a chain as llama.cpp does, and return the tokens that are left with their logits."""
    data = ffi.new("llama_token_data[]", [(token, float(logit), 0.0) for token, logit in enumerate(logits)])
    candidates = ffi.new("llama_token_data_array *", {"data": data, "size": len(logits), "selected": -1})
    with chain._handle as ptr:
        lib.llama_sampler_apply(ptr, candidates)
    left = candidates.data[0 : candidates.size]
    return {entry.id: entry.logit for entry in left if entry.logit != -INF}


def left_by(sampler: og.Sampler, logits: Array) -> dict[int, float]:
    with og.SamplerChain([sampler]) as chain:
        return applied(chain, logits)


def draw(chain: og.SamplerChain, logits: Array) -> int:
    """Draw a token as ``chain.sample`` does, from logits of our own."""
    values = np.ascontiguousarray(logits, np.float32)
    with chain._handle as ptr:
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


# argmax ---------------------------------------------------------------------------------------------------------------


def argmax(values: Array) -> int:
    values = np.ascontiguousarray(values, np.float32)
    return int(lib.og_argmax(ffi.from_buffer("float[]", values), len(values)))


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


# What is kept ---------------------------------------------------------------------------------------------------------


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


# What is drawn --------------------------------------------------------------------------------------------------------


def assert_counted(counts: dict[int, int], expected: Array) -> None:
    """Chi-square: 6 standard deviations; the seed is fixed, so a good sampler passes always."""
    n = sum(counts.values())
    assert expected.sum() == pytest.approx(n)
    assert all(expected[token] > 0 for token in counts), "a token was drawn that must not be"
    common = [int(token) for token in np.flatnonzero(expected >= 5)]
    seen = np.array([counts.get(token, 0) for token in common] + [n - sum(counts.get(token, 0) for token in common)])
    expected = np.append(expected[common], max(n - expected[common].sum(), 0))
    if expected[-1] < 5:
        seen, expected = seen[:-1], expected[:-1]
    freedom = max(len(seen) - 1, 1)
    assert ((seen - expected) ** 2 / expected).sum() < freedom + 6 * math.sqrt(2 * freedom)


def assert_drawn(counts: dict[int, int], probability: Array) -> None:
    assert_counted(counts, probability / probability.sum() * sum(counts.values()))


def narrowed(logits: Array, keep: Any, temperature: float) -> Array:
    probability = np.zeros(len(logits))
    probability[keep] = softmax(logits[keep] / temperature)
    return probability


def entropy(probability: Array) -> float:
    return float(-(probability * np.log(np.maximum(probability, 1e-300))).sum())


def typical_tokens(logits: Array, p: float) -> Array:
    """Return the tokens whose surprise is nearest to the entropy, until they sum up to more than ``p``."""
    probability = softmax(logits)
    order = np.argsort(np.abs(-np.log(probability) - entropy(probability)))
    return np.asarray(order[: int(np.argmax(np.cumsum(probability[order]) > p)) + 1])


CHAINS: dict[str, tuple[Callable[[], list[og.Sampler]], Callable[[Array], Array]]] = {
    "all": (lambda: [samplers.dist(1)], softmax),
    "temp": (lambda: [samplers.temp(0.6), samplers.dist(2)], lambda x: softmax(x / 0.6)),
    "top_k": (lambda: [samplers.top_k(7), samplers.dist(3)], lambda x: narrowed(x, np.argsort(-x)[:7], 1)),
    "top_p": (
        lambda: [samplers.top_p(0.7), samplers.temp(1.3), samplers.dist(4)],
        lambda x: narrowed(x, np.argsort(-x)[: int(np.argmax(np.cumsum(np.sort(softmax(x))[::-1]) >= 0.7)) + 1], 1.3),
    ),
    "min_p": (
        lambda: [samplers.min_p(0.1), samplers.temp(2.0), samplers.dist(5)],
        lambda x: narrowed(x, np.flatnonzero(softmax(x) >= 0.1 * softmax(x).max()), 2.0),
    ),
    "top_n_sigma": (
        lambda: [samplers.top_n_sigma(1.5), samplers.dist(6)],
        lambda x: narrowed(x, np.flatnonzero(x >= x.max() - 1.5 * x.astype(np.float64).std()), 1.0),
    ),
    "typical": (lambda: [samplers.typical(0.8), samplers.dist(7)], lambda x: narrowed(x, typical_tokens(x, 0.8), 1.0)),
    "xtc": (
        lambda: [samplers.xtc(0.4, 0.05, 1, seed=8), samplers.dist(9)],
        lambda x: 0.6 * softmax(x) + 0.4 * narrowed(x, np.argsort(-x)[np.count_nonzero(softmax(x) >= 0.05) - 1 :], 1.0),
    ),
    "temp_ext": (
        lambda: [samplers.temp_ext(1.0, 0.5), samplers.dist(10)],
        lambda x: softmax(x / (0.5 + entropy(softmax(x)) / math.log(len(x)))),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_draws_follow_the_distribution(name: str) -> None:
    """Tokens are drawn as often as NumPy's distribution says, and none that was thrown away."""
    make, reference = CHAINS[name]
    counts: dict[int, int] = {}
    with og.SamplerChain(make()) as chain:
        for _ in range(20_000):
            token = draw(chain, LOGITS)
            counts[token] = counts.get(token, 0) + 1
    assert_drawn(counts, reference(LOGITS))


@pytest.mark.parametrize(
    "name", sorted(CHAINS.keys() - {"typical", "xtc", "temp_ext"})
)  # which sort all of it each time
def test_draws_from_a_real_model(name: str, real: og.Context) -> None:
    """The same on a real model's 49,152 logits, through sample()."""
    make, reference = CHAINS[name]
    counts: dict[int, int] = {}
    with og.SamplerChain(make()) as chain:
        for _ in range(600):
            token = chain.sample(real, -1)
            counts[token] = counts.get(token, 0) + 1
    assert_drawn(counts, reference(real.logits(-1).copy()))


def counted(steps: int, chain: og.SamplerChain, follow: Callable[[int], Array]) -> tuple[dict[int, int], Array]:
    """Draw ``steps`` tokens, and sum up the distributions that ``follow(token before)`` expects."""
    counts: dict[int, int] = {}
    expected, token = np.zeros(N_VOCAB), -1
    for _ in range(steps):
        expected += follow(token)
        token = draw(chain, LOGITS)
        counts[token] = counts.get(token, 0) + 1
    return counts, expected


@pytest.mark.parametrize(("tau", "eta"), [(3.0, 0.0), (2.0, 0.1), (4.0, 0.5)])
def test_mirostat_v2(tau: float, eta: float) -> None:
    """Mirostat 2.0 drops what surprises by more than mu, and moves mu by eta times what the surprise is over tau."""
    mu, probability = 2 * tau, np.zeros(0)

    def follow(token: int) -> Array:
        nonlocal mu, probability
        if token >= 0:
            mu -= eta * (-math.log2(probability[token]) - tau)
        keep = np.flatnonzero(-np.log2(PROBABILITY) <= mu)
        probability = narrowed(LOGITS, keep if len(keep) else ORDER[:1], 1.0)
        return probability

    with og.SamplerChain([samplers.mirostat_v2(3, tau, eta)]) as chain:
        assert_counted(*counted(4000, chain, follow))


@pytest.mark.parametrize(("tau", "eta", "m"), [(2.0, 0.0, 30), (1.5, 0.1, 61), (3.0, 0.2, 10)])
def test_mirostat(tau: float, eta: float, m: int, tiny: og.Model) -> None:
    """Mirostat 1.0 estimates Zipf's exponent from the m most probable, and keeps as many tokens as give a surprise of mu."""
    mu, probability = 2 * tau, np.zeros(0)
    best = PROBABILITY[ORDER[:m]]
    t, b = np.log(np.arange(2, m + 1) / np.arange(1, m)), np.log(best[:-1] / best[1:])
    s = (t * b).sum() / (t * t).sum()

    def follow(token: int) -> Array:
        nonlocal mu, probability
        if token >= 0:
            mu -= eta * (-math.log2(probability[token]) - tau)
        k = ((s - 1) * 2**mu / (1 - N_VOCAB ** -(s - 1))) ** (1 / s)
        probability = narrowed(LOGITS, ORDER[: max(int(k), 1)], 1.0)
        return probability

    with og.SamplerChain([samplers.mirostat(tiny.vocab, 3, tau, eta, m)]) as chain:
        assert_counted(*counted(4000, chain, follow))


@pytest.mark.parametrize(("target", "decay"), [(0.3, 0.0), (0.1, 0.5), (0.05, 0.9)])
def test_adaptive_p(target: float, decay: float) -> None:
    """adaptive-p prefers tokens whose probability is near a target, which makes up for those that were chosen."""
    weighted, weight = target / (1 - decay), 1 / (1 - decay)

    def follow(token: int) -> Array:
        nonlocal weighted, weight
        if token >= 0:
            weighted, weight = PROBABILITY[token] + decay * weighted, 1 + decay * weight
        adapted = min(max(2 * target - weighted / weight, 0), 1)
        distance = np.abs(PROBABILITY - adapted) / 0.3
        return softmax(5 - 10 * distance**2 / (1 + distance))

    with og.SamplerChain([samplers.adaptive_p(target, decay, 3)]) as chain:
        assert_counted(*counted(4000, chain, follow))


def test_a_wrong_distribution_is_seen() -> None:
    """The check above does fail for another temperature."""
    counts: dict[int, int] = {}
    with og.SamplerChain([samplers.temp(0.8), samplers.dist(1)]) as chain:
        for _ in range(20_000):
            token = draw(chain, LOGITS)
            counts[token] = counts.get(token, 0) + 1
    with pytest.raises(AssertionError):
        assert_drawn(counts, softmax(LOGITS))


def test_greedy_is_argmax(real: og.Context, context: og.Context) -> None:
    """Greedy selects NumPy's argmax, alone by our own loop and behind others by llama.cpp's."""
    with (
        og.SamplerChain([samplers.greedy()]) as alone,
        og.SamplerChain([samplers.temp(0.7), samplers.greedy()]) as behind,
    ):
        for chain in (alone, behind):
            assert chain.sample(real, -1) == int(np.argmax(real.logits(-1)))
            for row in range(len(TOKENS)):
                assert chain.sample(context, row) == int(np.argmax(context.logits(row)))


def test_a_negative_row_is_one_of_those_with_logits(context: og.Context) -> None:
    """Rows are those of the context, from the end, too; others are refused."""
    with og.SamplerChain([samplers.greedy()]) as chain:
        assert chain.sample(context, -2) == chain.sample(context, len(TOKENS) - 2)
        for row in (len(TOKENS), -len(TOKENS) - 1):
            with pytest.raises(ValueError, match="row"):
                chain.sample(context, row)


@pytest.mark.parametrize("selecting", ["mirostat", "mirostat_v2", "adaptive_p"])
def test_other_samplers_that_select(selecting: str, real: og.Context) -> None:
    """Mirostat and adaptive-p draw tokens that the model has, the same ones for the same seed."""

    def draws(seed: int) -> list[int]:
        vocab = real.model.vocab
        sampler = {
            "mirostat": lambda: samplers.mirostat(vocab, seed, tau=3.0),
            "mirostat_v2": lambda: samplers.mirostat_v2(seed, tau=3.0),
            "adaptive_p": lambda: samplers.adaptive_p(0.3, seed=seed),
        }[selecting]()
        with og.SamplerChain([samplers.min_p(1e-3), sampler]) as chain:
            return [chain.sample(real, -1) for _ in range(20)]

    first = draws(5)
    assert first == draws(5)
    assert first != draws(6)
    probability = softmax(real.logits(-1).copy())
    assert all(probability[token] >= 0.999e-3 * probability.max() for token in first)


def test_infill(smollm2: og.Model, real: og.Context) -> None:
    """Infill, after top-k and top-p, leaves tokens to choose from."""
    with og.SamplerChain(
        [samplers.top_k(40), samplers.top_p(0.9), samplers.infill(smollm2.vocab), samplers.dist(1)]
    ) as chain:
        token = chain.sample(real, -1)
    assert token in np.argsort(-real.logits(-1).copy())[:40] or smollm2.vocab.is_eog(token)


def test_infill_needs_few_candidates(smollm2: og.Model) -> None:
    """Infill compares each candidate with each: without a top-k before it, one step of a real vocabulary takes minutes."""
    makers: list[Callable[[], list[og.Sampler]]] = [
        list,
        lambda: [samplers.top_p(0.9)],
        lambda: [samplers.top_k(0)],
        lambda: [samplers.top_k(40_000)],
    ]
    for before in makers:
        with pytest.raises(ValueError, match="top_k"):
            og.SamplerChain([*before(), samplers.infill(smollm2.vocab)])


@pytest.mark.parametrize("values", [[math.nan] * 5, [-INF] * 5, []])
def test_logits_without_a_number(values: list[float]) -> None:
    """Where no logit is a number, no token is selected."""
    assert argmax(np.array(values)) == -1
    for last in (samplers.greedy, lambda: samplers.dist(1)):
        with og.SamplerChain([samplers.temp(1.0), last()]) as chain:
            assert draw(chain, np.array(values)) in (lib.OG_NOTHING_SELECTED, lib.OG_REFUSED)


@pytest.mark.parametrize("name", ["dist", "top_k", "top_p", "mirostat_v2", "adaptive_p", "greedy"])
def test_single_logits_that_are_no_numbers(name: str) -> None:
    """A token whose logit is NaN is never drawn, and changes nothing for the others; one of +inf always is."""
    before: dict[str, Callable[[], og.Sampler]] = {"top_k": samplers.top_k, "top_p": samplers.top_p}
    last: dict[str, Callable[[], og.Sampler]] = {
        "mirostat_v2": lambda: samplers.mirostat_v2(3),
        "adaptive_p": lambda: samplers.adaptive_p(seed=3),
        "greedy": samplers.greedy,
    }

    def chain() -> og.SamplerChain:
        first = before.get(name, lambda: samplers.temp(0.5))
        return og.SamplerChain([first(), last.get(name, lambda: samplers.dist(3))()])

    for value, other in ((math.nan, -INF), (INF, 1e30)):
        bad, good = LOGITS.copy(), LOGITS.copy()
        places = ORDER[[0, 5, 60]] if other < 0 else ORDER[[7]]
        bad[places], good[places] = value, other
        with chain() as one, chain() as two:
            draws = [draw(one, bad) for _ in range(300)]
            assert draws == [draw(two, good) for _ in range(300)]
        if name != "adaptive_p":  # which does not like what is too probable
            assert set(draws) == set(places) if other > 0 else not set(draws) & set(places)


def test_a_temperature_that_overflows() -> None:
    """Where a temperature next to 0 makes logits infinite, no token is selected rather than a wrong one."""
    for last in (samplers.greedy, lambda: samplers.dist(1)):
        with og.SamplerChain([samplers.temp(1e-45), last()]) as chain:
            assert draw(chain, LOGITS) == lib.OG_REFUSED


# The table ---------------------------------------------------------------------------------------------------------


def all_samplers(vocab: og.Vocab) -> list[og.Sampler]:
    return [
        samplers.adaptive_p(), samplers.dist(), samplers.dry(vocab), samplers.greedy(), samplers.logit_bias(vocab, {1: 1.0}),
        samplers.min_p(), samplers.mirostat(vocab), samplers.mirostat_v2(), samplers.penalties(vocab), samplers.temp(),
        samplers.temp_ext(), samplers.top_k(), samplers.top_n_sigma(), samplers.top_p(), samplers.typical(), samplers.xtc(),
        samplers.infill(vocab),
    ]  # fmt: skip


def test_every_sampler_has_llama_cpps_name(smollm2: og.Model) -> None:
    """A sampler's name is the one that llama.cpp gives it."""
    made = all_samplers(smollm2.vocab)
    makers = {name.replace("-", "_") for name in samplers.TABLE} - {"custom", "grammar"}
    assert {sampler.name.replace("-", "_") for sampler in made} == makers
    for sampler in made:
        with sampler, sampler._handle as ptr:
            name = ffi.string(lib.llama_sampler_name(ptr)).decode()
            assert name.lstrip("+?") in (sampler.name, sampler.name.replace("-", "_"))


def declared_in_llama_h(header: str) -> dict[str, list[str]]:
    """Return the sampler constructors of llama.h that are not deprecated, with the types of their arguments."""
    text = re.sub(r"//[^\n]*", "", header)
    text = re.sub(r"DEPRECATED\(.*?\);", "", text, flags=re.DOTALL)
    found = re.findall(r"llama_sampler_init_(\w+)\s*\(([^;]*)\);", text)
    return {
        name: [re.sub(r"\s*\w+$", "", part.strip()) for part in arguments.split(",") if part.strip() != "void"]
        for name, arguments in found
    }


def test_the_table_has_every_sampler_of_llama_h(llama_cpp_dir: Path) -> None:
    """Every constructor of llama.h is a row, with as many numbers of the same type in the same order; and no other is."""
    declared = declared_in_llama_h((llama_cpp_dir / "include" / "llama.h").read_text(encoding="utf-8"))
    # It runs a regular expression over all text so far for each token; triggers are for the caller to match.
    del declared["grammar_lazy_patterns"]
    assert len(declared) > 15
    assert {name.replace("-", "_") for name in samplers.TABLE} == {*declared, "custom"}
    for name, types in declared.items():
        kind = samplers.TABLE[name.replace("_", "-")]
        assert kind.needs_vocab == bool({"const struct llama_vocab *", "int32_t"} & set(types[:1]) and name != "top_k")
        numbers = [c_type for c_type in types[kind.needs_vocab :] if "*" not in c_type]
        numbers = numbers[: len(kind.arguments)]  # lengths of arrays follow
        whole = {"float": float, "int32_t": int, "uint32_t": int, "size_t": int}
        assert [argument.type for argument in kind.arguments.values()] == [whole[c_type] for c_type in numbers]


def test_what_selects_and_what_truncates() -> None:
    """The rows say which samplers choose the token, and which throw tokens away."""
    rows = samplers.TABLE.values()
    assert {kind.name for kind in rows if kind.selects} == {"greedy", "dist", "mirostat", "mirostat-v2", "adaptive-p"}
    truncating = {"top-k", "top-p", "min-p", "typical", "xtc", "top-n-sigma", "infill"}
    assert {kind.name for kind in rows if kind.truncates} == truncating


def test_the_table_is_the_signatures() -> None:
    """A row has the defaults of its function, every number among its arguments, and a seed that may be None."""
    for name, kind in samplers.TABLE.items():
        if name == "grammar":
            continue
        signature = inspect.signature(getattr(samplers, name.replace("-", "_")))
        numbers = {key: p.default for key, p in signature.parameters.items() if type(p.default) in (int, float)}
        assert {key: a.default for key, a in kind.arguments.items() if key != "seed"} == numbers
        assert ("seed" in kind.arguments) == ("seed" in signature.parameters)
        for key, argument in kind.arguments.items():
            assert (
                argument.default is None if key == "seed" else argument.low <= (argument.default or 0) <= argument.high
            )


ARGUMENTS = [(name, key) for name, kind in samplers.TABLE.items() for key in kind.arguments]


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_ranges_are_kept(name: str, key: str, smollm2: og.Model) -> None:
    """The ends of a range are taken and what lies beyond is refused, with the argument's name; so is another type."""
    kind = samplers.TABLE[name]
    argument = kind.arguments[key]
    vocab = [smollm2.vocab] if kind.needs_vocab else []

    def make(value: object) -> None:
        getattr(samplers, name.replace("-", "_"))(*vocab, **{key: value}).close()

    step: float = 1 if argument.type is int else max(abs(argument.low), abs(argument.high)) * 1e-6
    high = min(argument.high, len(smollm2.vocab)) if key == "m" else argument.high
    make(argument.low)
    make(high)
    for value in (argument.low - step, high + step, 10**400 if argument.type is int else 1e300, -1e300, "1", [1], 1j):
        with pytest.raises((ValueError, TypeError), match=rf"^{key}\b"):
            make(value)
    if argument.type is float:
        for value in (math.nan, INF, -INF, True):
            with pytest.raises((ValueError, TypeError), match=rf"^{key}\b"):
                make(value)


# Arguments ------------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, Callable[..., og.Sampler], dict[str, Any]]] = [
    ("k", samplers.top_k, {"k": -1}),
    ("k", samplers.top_k, {"k": 1.5}),
    ("p", samplers.top_p, {"p": -0.1}),
    ("p", samplers.top_p, {"p": 1.1}),
    ("p", samplers.top_p, {"p": math.nan}),
    ("min_keep", samplers.top_p, {"min_keep": -1}),
    ("p", samplers.min_p, {"p": 2}),
    ("p", samplers.typical, {"p": -1}),
    ("temperature", samplers.temp, {"temperature": -0.1}),
    ("temperature", samplers.temp, {"temperature": math.inf}),
    ("temperature", samplers.temp, {"temperature": "hot"}),
    ("delta", samplers.temp_ext, {"delta": -1}),
    ("exponent", samplers.temp_ext, {"exponent": math.nan}),
    ("probability", samplers.xtc, {"probability": 1.5}),
    ("threshold", samplers.xtc, {"threshold": -1}),
    ("n", samplers.top_n_sigma, {"n": -1}),
    ("tau", samplers.mirostat_v2, {"tau": -1}),
    ("eta", samplers.mirostat_v2, {"eta": math.nan}),
    ("target", samplers.adaptive_p, {"target": 2}),
    ("decay", samplers.adaptive_p, {"decay": 1.0}),
]
BAD_WITH_VOCAB: list[tuple[str, Callable[..., og.Sampler], dict[str, Any]]] = [
    ("m", samplers.mirostat, {"m": 1}),
    ("m", samplers.mirostat, {"m": 10**6}),
    ("last_n", samplers.penalties, {"last_n": -1}),
    ("last_n", samplers.penalties, {"last_n": 2**31 - 1}),
    ("repeat", samplers.penalties, {"repeat": 0}),
    ("freq", samplers.penalties, {"freq": math.inf}),
    ("multiplier", samplers.dry, {"multiplier": -1}),
    ("base", samplers.dry, {"base": 0.5}),
    ("allowed_length", samplers.dry, {"allowed_length": -1}),
    ("last_n", samplers.dry, {"last_n": 2**21}),
    ("breakers", samplers.dry, {"breakers": ["x"] * 257}),
    ("bias", samplers.logit_bias, {"bias": {-1: 0.0}}),
    ("bias", samplers.logit_bias, {"bias": {49152: 0.0}}),
    ("bias", samplers.logit_bias, {"bias": {1: math.nan}}),
    ("bias", samplers.logit_bias, {"bias": {1: math.inf}}),
    ("bias", samplers.logit_bias, {"bias": {1: 1e300}}),
    ("bias", samplers.logit_bias, {"bias": {1: "much"}}),
    ("bias", samplers.logit_bias, {"bias": {"a": 1.0}}),
]


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**32, 2**64])
def test_seeds_out_of_range(seed: int) -> None:
    """Seeds are 0 to 2**32 - 2: llama.h takes 2**32 - 1 for a random one, which only None stands for."""
    for make in (samplers.dist, samplers.mirostat_v2, lambda seed: samplers.xtc(seed=seed)):
        with pytest.raises(ValueError, match="seed"):
            make(seed)


@pytest.mark.parametrize(("name", "make", "arguments"), BAD)
def test_arguments_out_of_range(name: str, make: Callable[..., og.Sampler], arguments: dict[str, Any]) -> None:
    """An argument out of its range, or of another type, is named."""
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        make(**arguments)


@pytest.mark.parametrize(("name", "make", "arguments"), BAD_WITH_VOCAB)
def test_arguments_with_a_vocabulary_out_of_range(
    name: str, make: Callable[..., og.Sampler], arguments: dict[str, Any], smollm2: og.Model
) -> None:
    """An argument out of its range is named, for the samplers that know a vocabulary, too."""
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        make(smollm2.vocab, **arguments)


def test_breakers_that_are_no_text(smollm2: og.Model) -> None:
    """Breakers are strings of whole characters, each named in the error; one string is not a list of letters."""
    with pytest.raises(UnicodeEncodeError):
        samplers.dry(smollm2.vocab, breakers=["\ud800"])
    with pytest.raises(TypeError, match="breakers"):
        samplers.dry(smollm2.vocab, breakers=[5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="breakers"):
        samplers.dry(smollm2.vocab, breakers=b"ab")  # type: ignore[arg-type]


def test_extreme_arguments_do_no_harm(context: og.Context, tiny: og.Model) -> None:
    """Values at the ends of the ranges draw a token, or raise SamplerError."""
    tiny_vocab = tiny.vocab
    extremes: list[Callable[[], og.Sampler]] = [
        lambda: samplers.temp(1e-45),
        lambda: samplers.temp(samplers.MAX_FLOAT),
        lambda: samplers.temp_ext(0, samplers.MAX_FLOAT, samplers.MAX_FLOAT),
        lambda: samplers.top_k(2**31 - 1),
        lambda: samplers.top_p(0.0, 2**31 - 1),
        lambda: samplers.min_p(1.0, 2**31 - 1),
        lambda: samplers.typical(0.0, 2**31 - 1),
        lambda: samplers.xtc(1.0, 0.0, 0, 1),
        lambda: samplers.top_n_sigma(0.0),
        lambda: samplers.top_n_sigma(samplers.MAX_FLOAT),
        lambda: samplers.penalties(tiny_vocab, 2**20, 1e-6, 1e38, -1e38),
        lambda: samplers.logit_bias(tiny_vocab, {0: samplers.MAX_FLOAT, 1: -samplers.MAX_FLOAT}),
    ]
    lasts: list[Callable[[], og.Sampler]] = [
        samplers.greedy,
        lambda: samplers.dist(1),
        lambda: samplers.mirostat(tiny_vocab, 1, samplers.MAX_FLOAT, samplers.MAX_FLOAT, N_VOCAB),
        lambda: samplers.mirostat(tiny_vocab, 1, 0, 0, 2),
        lambda: samplers.mirostat_v2(1, 0.0, samplers.MAX_FLOAT),
        lambda: samplers.adaptive_p(0.0, 0.99, 1),
        lambda: samplers.adaptive_p(1.0, 0.0, 1),
    ]
    for extreme in extremes:
        for last in lasts:
            with og.SamplerChain([extreme(), last()]) as chain:
                for row in (0, 3, 5):
                    with contextlib.suppress(og.SamplerError):
                        assert 0 <= chain.sample(context, row) < N_VOCAB
