"""FastSampler: the same tokens with the same probabilities as llama.cpp's own samplers, with any parameters."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.candidates import applied
from helpers.twin import N_VOCAB
from offgrid_llama._capi import ffi, lib
from offgrid_llama.sampling.fast_sampler import sampler_for

Array = npt.NDArray[Any]
INF = math.inf
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_last_n": 0, "seed": 1}


def params(**given: Any) -> og.SamplingParams:
    """Return parameters with everything off but what is given."""
    return og.SamplingParams(**{**OFF, **given})


def draw(sampler: og.FastSampler, logits: Array) -> int:
    """Draw a token, or get one of the codes, as ``sampler.sample`` does, from logits of our own; they are not changed."""
    values = np.ascontiguousarray(logits, np.float32)
    before = values.copy()
    token = int(lib.og_fast_sample(sampler.native, ffi.from_buffer("float[]", values), len(values)))
    np.testing.assert_array_equal(values, before)
    return token


def expected(vocab: og.Vocab, given: og.SamplingParams, logits: Array) -> dict[int, float]:
    """Return the probability of each token by llama.cpp's chain, without the sampler that selects."""
    with given.chain(vocab) as chain, chain.remove(len(chain) - 1):
        left = applied(chain, logits)
    weights = {token: math.exp(logit - max(left.values())) for token, logit in left.items()}
    return {token: weight / sum(weights.values()) for token, weight in weights.items()}


def assert_drawn_by(counts: Mapping[int, int], probabilities: Mapping[int, float]) -> None:
    """Pearson's chi-square test, with the tokens that are expected fewer than five times as one; five sigma."""
    n = sum(counts.values())
    assert set(counts) <= {token for token, probability in probabilities.items() if probability > 0}
    often = [token for token, probability in probabilities.items() if n * probability >= 5]
    pairs = [(counts.get(token, 0), n * probabilities[token]) for token in often]
    seldom = n - sum(wanted for _, wanted in pairs)
    if seldom > 5:
        pairs.append((n - sum(count for count, _ in pairs), seldom))
    square = sum((count - wanted) ** 2 / wanted for count, wanted in pairs)
    freedom = len(pairs) - 1
    assert square < freedom + 5 * math.sqrt(2 * max(freedom, 1)) + 5


RULES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "temperature": {"temperature": 0.4},
    "hot": {"temperature": 3.0},
    "top-k": {"top_k": 7},
    "top-k of one": {"top_k": 1},
    "top-k of more than there are": {"top_k": 1000},
    "top-p": {"top_p": 0.7},
    "top-p of nothing": {"top_p": 0.0},
    "min-p": {"min_p": 0.1},
    "typical": {"typical_p": 0.6},
    "typical after top-k": {"typical_p": 0.5, "top_k": 12},
    "all": {"top_k": 20, "typical_p": 0.95, "top_p": 0.9, "min_p": 0.05, "temperature": 0.8},
    "llama.cpp's own": {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    "top-p and min-p": {"top_p": 0.8, "min_p": 0.2, "temperature": 1.5},
    "min-keep": {"top_p": 0.01, "min_p": 0.99, "typical_p": 0.01, "min_keep": 5},
    "min-keep of the first": {"top_k": 30, "top_p": 0.2, "min_keep": 4, "temperature": 2.0},
    "bias": {"logit_bias": {3: 4.0, 5: -INF, 9: -1.5}, "temperature": 0.9},
    "bias and top-k": {"logit_bias": {3: 20.0, 5: -INF}, "top_k": 3},
    "not in the list": {"top_k": 3, "top_p": 0.5, "temperature": 3.0, "samplers": ("top_p",)},
}


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", RULES)
def test_probabilities_are_llama_cpps(name: str, size: int, tiny: og.Model) -> None:
    """Tokens are drawn with the probabilities that llama.cpp's chain of the same samplers gives them."""
    logits = np.random.default_rng(size).standard_normal(N_VOCAB) * size
    given = params(**RULES[name])
    sampler = og.FastSampler(tiny.vocab, given)
    counts = Counter(draw(sampler, logits) for _ in range(20_000))
    assert_drawn_by(counts, expected(tiny.vocab, given, logits.astype(np.float32)))


@pytest.mark.parametrize(
    "name", ["nothing", "llama.cpp's own", "top-p and min-p", "top-k", "min-p", "typical after top-k"]
)
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_large_vocabularies(name: str, scale: float, tiny: og.Model) -> None:
    """Of many blocks and an odd end, the same tokens are kept."""
    logits = (np.random.default_rng(7).standard_normal(5003) * scale).astype(np.float32)
    given = params(**RULES[name])
    sampler = og.FastSampler(tiny.vocab, given)
    counts = Counter(draw(sampler, logits) for _ in range(10_000))
    assert_drawn_by(counts, expected(tiny.vocab, given, logits))


@pytest.mark.parametrize("n", [1, 7, 8, 31, 32, 33, 255, 256, 257, 511, 513, 5000])
def test_each_place_is_found(n: int, tiny: og.Model) -> None:
    """The most probable tokens are found wherever they are, at every length of the row."""
    rng = np.random.default_rng(n)
    for _ in range(20):
        logits = rng.standard_normal(n).astype(np.float32)
        places = rng.permutation(n)[: min(3, n)]
        logits[places] = 30 + np.arange(len(places))
        assert draw(og.FastSampler(tiny.vocab, params(temperature=0)), logits) == places[-1]
        sampler = og.FastSampler(tiny.vocab, params(top_k=len(places), temperature=100.0))
        assert {draw(sampler, logits) for _ in range(60)} == set(places.tolist())


@settings(max_examples=300, deadline=None)
@given(
    logits=st.lists(
        st.one_of(st.floats(width=32), st.sampled_from([-INF, INF, math.nan, 0.0])), min_size=1, max_size=70
    ),
    given=st.sampled_from([params(**rules) for rules in RULES.values() if "logit_bias" not in rules]),
)
def test_any_logits(logits: list[float], given: og.SamplingParams, tiny: og.Model) -> None:
    """Whatever the logits, a token is chosen that has a number, or none."""
    array = np.array(logits, np.float32)
    token = draw(og.FastSampler(tiny.vocab, given), array)
    if token < 0:
        assert token == lib.OG_REFUSED
        assert not (array > -INF).any()
    else:
        assert array[token] > -INF
        if given.temperature == 0 or given.top_k == 1:
            assert array[token] >= min(np.nanmax(array), 1e30)


def test_the_largest_of_all(tiny: og.Model) -> None:
    """A temperature of 0 takes the first of the largest logits, after biases and penalties."""
    logits = np.zeros(N_VOCAB)
    logits[[4, 9]] = 2
    assert draw(og.FastSampler(tiny.vocab, params(temperature=0)), logits) == 4
    assert draw(og.FastSampler(tiny.vocab, params(temperature=0, logit_bias={4: -0.5})), logits) == 9
    forbidden = params(temperature=0, logit_bias=dict.fromkeys(range(N_VOCAB), -INF))
    assert draw(og.FastSampler(tiny.vocab, forbidden), logits) == lib.OG_REFUSED


@pytest.mark.parametrize("temperature", [1e-45, 1e-30, 1e-4])
def test_next_to_nothing_of_temperature(temperature: float, tiny: og.Model) -> None:
    """The lowest temperatures leave the largest logit, with and without other samplers."""
    logits = np.random.default_rng(2).standard_normal(N_VOCAB)
    for rules in ({}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.9, "top_k": 9}):
        sampler = og.FastSampler(tiny.vocab, params(temperature=temperature, **rules))
        wanted = max(
            expected(tiny.vocab, params(**rules), logits.astype(np.float32)).items(), key=lambda pair: pair[1]
        )[0]
        assert {draw(sampler, logits) for _ in range(50)} == {wanted}


@pytest.mark.parametrize("value", [INF, 3e38])
def test_infinite_logits(value: float, tiny: og.Model) -> None:
    """They share the whole probability, and their logprobs are numbers."""
    logits = np.zeros(N_VOCAB)
    logits[[3, 8]] = value
    for rules in ({}, {"top_k": 5}, {"top_p": 0.9}, {"temperature": 0}):
        sampler = og.FastSampler(tiny.vocab, params(**rules), n_logprobs=3)
        tokens = {draw(sampler, logits) for _ in range(100)}
        assert tokens == ({3} if "temperature" in rules else {3, 8})
        assert sampler.native.logprob == 0
        assert [sampler.native.top_tokens[i] for i in range(2)] == [3, 8]


@pytest.mark.parametrize("base", [0.0, -9.0])
@pytest.mark.parametrize("last_n", [1, 5, 64])
def test_penalties_are_llama_cpps(last_n: int, base: float, tiny: og.Model) -> None:
    """Step for step the same token as llama.cpp's chain: what was chosen counts, and what is too long ago does not."""
    given = params(
        temperature=0, repeat_last_n=last_n, repeat_penalty=1.4, frequency_penalty=0.3, presence_penalty=0.2,
        logit_bias={7: 1.0},
    )  # fmt: skip
    rng = np.random.default_rng(last_n)
    logits = rng.standard_normal(N_VOCAB).astype(np.float32) + np.float32(base)  # penalties multiply negative ones
    sampler = og.FastSampler(tiny.vocab, given)
    with given.chain(tiny.vocab) as chain:
        for _ in range(3):
            sampler.accept(11)
            chain.accept(11)
        for _ in range(150):
            logits += rng.standard_normal(N_VOCAB).astype(np.float32) * 0.1
            with chain.handle as ptr:
                token = int(lib.og_sample(ptr, ffi.from_buffer("float[]", logits), N_VOCAB))
            assert draw(sampler, logits) == token


def test_a_mask(tiny: og.Model) -> None:
    """A mask of one bit a token allows what is set in it, and all is as if there were no others."""
    rng = np.random.default_rng(3)
    for n in (N_VOCAB, 1000):
        logits = rng.standard_normal(n)
        allowed = rng.permutation(n)[:20]
        bits = np.zeros(-(-n // 32) * 32, np.uint8)
        bits[allowed] = 1
        mask = np.packbits(bits, bitorder="little").view(np.uint32)
        for rules in (params(), params(top_k=3), params(temperature=0), params(top_p=0.9, min_p=0.01)):
            sampler = og.FastSampler(tiny.vocab, rules)
            sampler.native.mask = kept = ffi.from_buffer("uint32_t[]", mask)  # noqa: F841
            others = np.full(n, -INF)
            others[allowed] = logits[allowed]
            counts = Counter(draw(sampler, logits) for _ in range(2000))
            if rules.temperature == 0:
                assert list(counts) == [int(others.argmax())]
            else:
                assert_drawn_by(counts, expected(tiny.vocab, rules, others.astype(np.float32)))
        mask[:] = 0
        assert draw(sampler, logits) == lib.OG_REFUSED


def test_logprobs(context: og.Context) -> None:
    """The logprobs are those of the model, before any rule, as NumPy's log-softmax has them."""
    vocab = context.model.vocab
    for row in range(5):
        logits = context.logits(row).astype(np.float64)
        wanted = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        sampler = og.FastSampler(vocab, params(temperature=0.7, top_k=5, logit_bias={3: 50.0}), n_logprobs=4)
        token = sampler.sample(context, row)
        assert token == 3
        assert sampler.logprob == pytest.approx(wanted[token], abs=1e-5)
        order = np.argsort(-wanted, kind="stable")[:4]
        assert [each for each, _ in sampler.top_logprobs] == order.tolist()
        np.testing.assert_allclose([logprob for _, logprob in sampler.top_logprobs], wanted[order], atol=1e-5)
    only = og.FastSampler(vocab, params(), n_logprobs=0)
    only.sample(context, 0)
    assert only.logprob is not None
    assert only.top_logprobs == []
    without = og.FastSampler(vocab, params())
    without.sample(context, 0)
    assert without.logprob is None


def test_logprobs_of_a_large_vocabulary(tiny: og.Model) -> None:
    """The sum over many blocks is right to a few units in the last place."""
    logits = (np.random.default_rng(5).standard_normal(100_003) * 4).astype(np.float32)
    sampler = og.FastSampler(tiny.vocab, params(temperature=0), n_logprobs=1)
    token = draw(sampler, logits)
    exact = logits.astype(np.float64)
    assert sampler.native.logprob == pytest.approx(exact[token] - np.log(np.exp(exact).sum()), abs=2e-6)


def test_seeds(context: og.Context) -> None:
    """The same seed draws the same tokens, another one others; reset() begins anew, a clone goes on alike."""
    vocab = context.model.vocab

    def draws(sampler: og.FastSampler) -> list[int]:
        return [sampler.sample(context, 3) for _ in range(40)]

    given = params(temperature=3.0, repeat_penalty=1.3, repeat_last_n=9)
    sampler = og.FastSampler(vocab, given)
    first = draws(sampler)
    assert draws(og.FastSampler(vocab, given)) == first
    assert draws(og.FastSampler(vocab, params(temperature=3.0, repeat_penalty=1.3, repeat_last_n=9, seed=2))) != first
    clone = sampler.clone()
    assert draws(clone) == draws(sampler) != first
    sampler.reset()
    assert draws(sampler) == first
    one, two = (og.FastSampler(vocab, params(temperature=3.0, seed=None)) for _ in range(2))
    assert draws(one) != draws(two)
    assert draws(og.FastSampler(vocab, params(temperature=3.0, seed=one.seed))) == draws(og.FastSampler(vocab, params(
        temperature=3.0, seed=one.seed)))  # fmt: skip


def test_threads_share_a_sampler(context: og.Context) -> None:
    """Threads take turns: together they draw what one would."""
    given = params(temperature=2.0, frequency_penalty=0.01, repeat_last_n=300)
    sampler = og.FastSampler(context.model.vocab, given)
    wanted = sorted(sampler.sample(context, 3) for _ in range(200))
    sampler.reset()
    barrier = threading.Barrier(4)

    def work(_: int) -> list[int]:
        barrier.wait()
        return [sampler.sample(context, 3) for _ in range(50)]

    with ThreadPoolExecutor(4) as pool:
        assert sorted(token for tokens in pool.map(work, range(4)) for token in tokens) == wanted


@pytest.mark.parametrize(
    "given",
    [
        {"dry_multiplier": 0.8}, {"top_n_sigma": 1.0}, {"xtc_probability": 0.5}, {"dynatemp_range": 0.5},
        {"mirostat": 1}, {"mirostat": 2}, {"adaptive_target": 0.5},
        {"samplers": ("temp_ext", "top_k")}, {"samplers": ("top_p", "top_k")}, {"samplers": ("top_k", "infill")},
        {"samplers": ("top_k", "top_k")}, {"temperature": 0, "typical_p": 0.5}, {"temperature": 0, "xtc_probability": 0.5},
    ],
)  # fmt: skip
def test_what_takes_a_chain(given: dict[str, Any], tiny: og.Model) -> None:
    """Sampling that it does not do, or not in that order, is refused, and has a chain instead."""
    wanted = og.SamplingParams(**given)
    with pytest.raises(ValueError, match="SamplerChain"):
        og.FastSampler(tiny.vocab, wanted)


@pytest.mark.parametrize("given", [{}, {"temperature": 0}, {"temperature": 0, "mirostat": 2, "top_n_sigma": 1.0}])
def test_what_takes_no_chain(given: dict[str, Any], context: og.Context) -> None:
    """The usual samplers are covered."""
    sampler = og.FastSampler(context.model.vocab, og.SamplingParams(**given))
    assert 0 <= sampler.sample(context, 0) < N_VOCAB


def test_errors(tiny: og.Model, context: og.Context, smollm2: og.Model) -> None:
    """Rows without logits, other models, unknown tokens, and biases that forbid the whole vocabulary."""
    sampler = og.FastSampler(tiny.vocab, params())
    with pytest.raises(ValueError, match="row"):
        sampler.sample(context, 9999)
    with pytest.raises(ValueError, match="cannot sample"):
        og.FastSampler(smollm2.vocab, params()).sample(context, 0)
    with pytest.raises(ValueError, match="logit_bias"):
        og.FastSampler(tiny.vocab, params(logit_bias={N_VOCAB: 1.0}))
    for n in (-1, N_VOCAB + 1):
        with pytest.raises(ValueError, match="n_logprobs"):
            og.FastSampler(tiny.vocab, params(), n_logprobs=n)
    with pytest.raises(ValueError, match="token"):
        sampler.accept(N_VOCAB)
    with pytest.raises(og.SamplerError, match="no token"):
        og.FastSampler(tiny.vocab, params(logit_bias=dict.fromkeys(range(N_VOCAB), -INF))).sample(context, 0)
    with og.Context(tiny, n_ctx=256) as closed:
        pass
    with pytest.raises(og.ClosedError):
        sampler.sample(closed, 0)


@pytest.mark.parametrize(
    "given", [{"temperature": 0}, {"seed": 4}, {"seed": 4, "mirostat": 2}, {"seed": 4, "repeat_penalty": 1.5}]
)
def test_logits_of_ones_own(given: dict[str, Any], context: og.Context) -> None:
    """From an array is chosen what is chosen from the row that it is a copy of, and it stays as it is."""
    vocab = context.model.vocab
    logits = context.logits(0).copy()
    before = logits.copy()
    with closing(sampler_for(params(**given), vocab)) as one:
        from_row = [one.sample(context, 0) for _ in range(20)]
        one.reset()
        assert [one.choose(logits) for _ in range(20)] == from_row
        assert (logits == before).all()
        read_only = logits.copy()
        read_only.flags.writeable = False
        bad_ones: list[Any] = [
            logits.astype(np.float64),
            np.stack([logits]),
            np.repeat(logits, 2)[::2],
            read_only,
            None,
        ]
        if isinstance(one, og.FastSampler):  # this chain has no sampler that knows the vocabulary
            bad_ones.append(logits[:-1])
        for bad in bad_ones:
            with pytest.raises(ValueError, match="logits must be"):
                one.choose(bad)
        with pytest.raises(og.SamplerError):
            one.choose(np.full(N_VOCAB, -INF, np.float32))
