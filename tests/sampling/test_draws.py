"""How often a chain draws each token, against NumPy's distribution, on logits of our own and on a real model's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.candidates import INF, LOGITS, ORDER, PROBABILITY, Array, argmax, draw, entropy, softmax, typical_tokens
from helpers.twin import N_VOCAB, TOKENS
from offgrid_llama import samplers
from offgrid_llama._capi import lib


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
