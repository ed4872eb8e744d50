"""Chains of samplers: repeatable draws, clones, accepted tokens, refused samplers, ownership, and timings."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import pytest

import offgrid_llama as og
from helpers.twin import N_VOCAB
from offgrid_llama import samplers

INF = math.inf


# Seeds, clones, resets ------------------------------------------------------------------------------------------------


def test_seeds(context: og.Context) -> None:
    """The same seed draws the same tokens, another one others; a chain tells its seed."""

    def draws(seed: int | None) -> list[int]:
        with og.SamplerChain([samplers.temp(3.0), samplers.dist(seed)]) as chain:
            assert seed is None or chain.seed == seed
            return [chain.sample(context, 3) for _ in range(40)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(0) == draws(0)
    assert draws(2**32 - 2) == draws(2**32 - 2)
    assert draws(None) != draws(None)


def test_the_seed_of_a_chain(tiny: og.Model) -> None:
    """A chain without a random sampler at its end has no seed."""
    for chain, seed in [
        (og.SamplerChain(), None),
        (og.SamplerChain([samplers.greedy()]), None),
        (og.SamplerChain([samplers.dist(11)]), 11),
        (og.SamplerChain([samplers.mirostat(tiny.vocab, 12, m=50)]), 12),
        (og.SamplerChain([samplers.mirostat_v2(13)]), 13),
    ]:
        with chain:
            assert chain.seed == seed


def test_reset_begins_anew(context: og.Context, tiny: og.Model) -> None:
    """After reset() a chain draws what it drew first, and knows nothing of the tokens accepted."""
    with og.SamplerChain([samplers.penalties(tiny.vocab, repeat=1.3), samplers.temp(2.0), samplers.dist(5)]) as chain:
        first = [chain.sample(context, 3) for _ in range(30)]
        assert [chain.sample(context, 3) for _ in range(30)] != first
        chain.reset()
        assert [chain.sample(context, 3) for _ in range(30)] == first


def test_clone_goes_on_alike(context: og.Context, tiny: og.Model) -> None:
    """A clone has the state of its chain, random numbers and accepted tokens, and from then on a life of its own."""
    chain = og.SamplerChain([samplers.penalties(tiny.vocab, repeat=1.3), samplers.temp(2.0), samplers.dist(5)])
    for _ in range(10):
        chain.sample(context, 3)
    with chain.clone() as clone:
        assert clone.names == chain.names
        future = [chain.sample(context, 3) for _ in range(30)]
        chain.close()
        assert [clone.sample(context, 3) for _ in range(30)] == future


def test_sample_accepts(tiny: og.Model, context: og.Context) -> None:
    """sample() tells the samplers what it chose: a strong penalty never lets a token come twice."""
    with og.SamplerChain([samplers.penalties(tiny.vocab, last_n=100, present=1e6), samplers.greedy()]) as chain:
        assert sorted(chain.sample(context, 3) for _ in range(N_VOCAB)) == list(range(N_VOCAB))


def test_threads_share_a_chain(context: og.Context, tiny: og.Model) -> None:
    """Threads take turns in one chain: together they draw what one would."""
    with og.SamplerChain([samplers.penalties(tiny.vocab, last_n=300, freq=0.01), samplers.dist(3)]) as chain:
        expected = sorted(chain.sample(context, 3) for _ in range(200))
        chain.reset()
        barrier = threading.Barrier(4)

        def work(_: int) -> list[int]:
            barrier.wait()
            return [chain.sample(context, 3) for _ in range(50)]

        with ThreadPoolExecutor(4) as pool:
            assert sorted(token for tokens in pool.map(work, range(4)) for token in tokens) == expected


# Chains ---------------------------------------------------------------------------------------------------------------


def test_a_chain_names_its_samplers(tiny: og.Model) -> None:
    """names, len() and repr() tell the samplers in their order."""
    with og.SamplerChain([samplers.logit_bias(tiny.vocab, {1: 1.0})]) as chain:
        chain.add(samplers.top_k(4))
        chain.add(samplers.greedy())
        assert chain.names == ("logit-bias", "top-k", "greedy")
        assert len(chain) == 3
        assert repr(chain) == "<SamplerChain logit-bias > top-k > greedy>"
    assert repr(chain) == "<SamplerChain logit-bias > top-k > greedy (closed)>"
    with og.SamplerChain() as empty:
        assert repr(empty) == "<SamplerChain (empty)>"


def test_a_sampler_belongs_to_one_chain() -> None:
    """A sampler that was given to a chain is closed outside it, where llama.h would free it twice."""
    sampler = samplers.top_k(5)
    with og.SamplerChain([sampler]) as chain:
        assert sampler.closed
        with og.SamplerChain() as other, pytest.raises(og.ClosedError, match="given to a SamplerChain"):
            other.add(sampler)
        with pytest.raises(og.ClosedError):
            chain.add(sampler)
        assert len(chain) == 1
    sampler.close()


@pytest.mark.parametrize("make", [samplers.greedy, samplers.dist, samplers.mirostat_v2, samplers.adaptive_p])
def test_a_sampler_that_selects_stays_last(make: Callable[[], og.Sampler], context: og.Context) -> None:
    """Nothing can follow a sampler that selects; the chain is as it was, and the refused sampler still its owner's."""
    with og.SamplerChain([make()]) as chain, samplers.top_k(3) as late:
        with pytest.raises(ValueError, match="must stay last"):
            chain.add(late)
        assert not late.closed
        assert len(chain) == 1
        chain.sample(context, 0)


def test_a_chain_must_select(context: og.Context) -> None:
    """A chain without a sampler that selects is refused, where llama.h aborts."""
    for chain in (og.SamplerChain(), og.SamplerChain([samplers.top_k(3), samplers.temp(0.5)])):
        with chain, pytest.raises(ValueError, match="must end with"):
            chain.sample(context, 0)


def test_a_chain_that_cannot_be_made_leaves_nothing_open() -> None:
    """Samplers of a refused chain are closed with it, as the caller may hold no reference to them."""
    refused = [samplers.greedy(), samplers.top_k(3), samplers.temp(1.0)]
    with pytest.raises(ValueError, match="must stay last"):
        og.SamplerChain(refused)
    assert all(sampler.closed for sampler in refused)


@pytest.mark.parametrize("thing", [None, "greedy", 5, og.SamplerChain])
def test_only_samplers_make_a_chain(thing: Any) -> None:
    """Other things are refused by their type."""
    with og.SamplerChain() as chain, pytest.raises(TypeError, match="must be a Sampler"):
        chain.add(thing)
    with pytest.raises(TypeError, match=r"Sampler|iterable"):
        og.SamplerChain(thing)


def test_samplers_of_two_vocabularies(tiny: og.Model, smollm2: og.Model, real: og.Context) -> None:
    """A chain is for one model: samplers of another, and contexts of another, are refused."""
    with og.SamplerChain([samplers.logit_bias(tiny.vocab, {1: 1.0})]) as chain:
        with samplers.penalties(smollm2.vocab) as other, pytest.raises(ValueError, match="chain for"):
            chain.add(other)
        chain.add(samplers.greedy())
        with pytest.raises(ValueError, match="chain is for"):
            chain.sample(real, -1)


def test_a_chain_without_a_vocabulary_serves_all_models(context: og.Context, real: og.Context) -> None:
    """Samplers that know no vocabulary go with every model."""
    with og.SamplerChain([samplers.top_k(3), samplers.dist(1)]) as chain:
        assert 0 <= chain.sample(context, 0) < N_VOCAB
        assert 0 <= chain.sample(real, -1) < len(real.model.vocab)


def test_nothing_left_to_choose(tiny: og.Model, context: og.Context) -> None:
    """A chain whose samplers forbid every token raises SamplerError, and goes on with the next step."""
    for last in (samplers.greedy, lambda: samplers.dist(1)):
        bias = dict.fromkeys(range(N_VOCAB), -INF)
        with og.SamplerChain([samplers.logit_bias(tiny.vocab, bias), last()]) as chain:
            for _ in range(2):
                with pytest.raises(og.SamplerError, match="no token"):
                    chain.sample(context, 0)


@pytest.mark.parametrize("last", [samplers.greedy, samplers.dist, samplers.adaptive_p, samplers.mirostat_v2])
def test_a_logit_that_overflows(last: Callable[[], og.Sampler], tiny: og.Model, context: og.Context) -> None:
    """Where a logit became infinite there are no probabilities: SamplerError, and the chain goes on with other logits."""
    large = {3: 3e38}
    made = [samplers.logit_bias(tiny.vocab, large), samplers.logit_bias(tiny.vocab, large), last()]
    with og.SamplerChain(made) as chain:
        with pytest.raises(og.SamplerError, match="no token"):
            chain.sample(context, 0)
        chain.remove(0).close()
        assert 0 <= chain.sample(context, 0) < N_VOCAB


def test_accept_checks_the_token(tiny: og.Model) -> None:
    """A token that the chain's vocabulary does not have is refused."""
    with og.SamplerChain([samplers.penalties(tiny.vocab)]) as chain:
        for token in (-1, N_VOCAB, 2**31):
            with pytest.raises(ValueError, match="token"):
                chain.accept(token)
        chain.accept(N_VOCAB - 1)
        with pytest.raises(TypeError):
            chain.accept("a")  # type: ignore[arg-type]


def test_after_close(context: og.Context) -> None:
    """A closed chain raises ClosedError in every method; closing twice is no harm."""
    chain = og.SamplerChain([samplers.greedy()])
    chain.close()
    chain.close()
    for call in (
        lambda: chain.sample(context, 0),
        lambda: chain.accept(0),
        chain.reset,
        chain.clone,
        lambda: chain.seed,
    ):
        with pytest.raises(og.ClosedError, match="SamplerChain"):
            call()
    other = og.SamplerChain([samplers.top_k(3)])
    other.close()
    with samplers.greedy() as sampler, pytest.raises(og.ClosedError, match="SamplerChain"):
        other.add(sampler)


# Clones and removed samplers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dist", "xtc", "mirostat", "mirostat_v2"])
@pytest.mark.parametrize("seed", [5, None])
def test_clones_of_random_samplers_go_on_alike(
    name: str, seed: int | None, context: og.Context, tiny: og.Model
) -> None:
    """A clone goes on with the same random numbers, also where the seed is a random one."""
    made = {
        "dist": lambda: [samplers.temp(2.0), samplers.dist(seed)],
        "xtc": lambda: [samplers.xtc(0.5, 0.01, seed=seed), samplers.greedy()],
        "mirostat": lambda: [samplers.mirostat(tiny.vocab, seed, m=30)],
        "mirostat_v2": lambda: [samplers.mirostat_v2(seed)],
    }[name]()
    with og.SamplerChain(made) as chain:
        for _ in range(5):
            chain.sample(context, 3)
        with chain.clone() as clone:
            expected = [chain.sample(context, 3) for _ in range(40)]
            assert len(set(expected)) > 1
            assert [clone.sample(context, 3) for _ in range(40)] == expected


def test_clones_of_adaptive_p(context: og.Context, tiny: og.Model) -> None:
    """A clone of adaptive-p has its average, but llama.cpp lets its random numbers begin anew."""
    with og.SamplerChain([samplers.adaptive_p(0.3, seed=5)]) as chain:
        for _ in range(10):
            chain.sample(context, 3)
        with chain.clone() as one, chain.clone() as two:
            draws = [[each.sample(context, 3) for _ in range(20)] for each in (one, two, chain)]
        assert draws[0] == draws[1] != draws[2]
    # After a row without a token it waits for one, with numbers that a clone does not have: llama.cpp would read at NULL.
    bias = dict.fromkeys(range(N_VOCAB), -INF)
    with og.SamplerChain([samplers.logit_bias(tiny.vocab, bias), samplers.adaptive_p(0.3, seed=5)]) as chain:
        with pytest.raises(og.SamplerError):
            chain.sample(context, 3)
        with chain.clone() as clone:
            for token in range(N_VOCAB):
                clone.accept(token)
            assert clone.names == ("logit-bias", "adaptive-p")


def test_a_clone_keeps_the_rules(smollm2: og.Model) -> None:
    """A clone knows the order, the vocabulary and the limits of its chain."""
    made = [samplers.top_k(40), samplers.infill(smollm2.vocab), samplers.dist(3)]
    with og.SamplerChain(made, perf=True) as chain, chain.clone() as clone:
        assert (clone.names, clone.seed, clone.perf().n_sample) == (("top-k", "infill", "dist"), 3, 0)
        with pytest.raises(ValueError, match="top_k"):
            clone.remove(0)
        with samplers.greedy() as late, pytest.raises(ValueError, match="stay last"):
            clone.add(late)


def test_removed_samplers_have_an_owner_again(context: og.Context, tiny: og.Model) -> None:
    """remove() gives the sampler back with its state: the chain goes on without it, and another may have it."""
    with og.SamplerChain([samplers.penalties(tiny.vocab, last_n=99, present=1e6), samplers.greedy()]) as chain:
        first = chain.sample(context, 3)
        assert chain.sample(context, 3) != first
        penalties = chain.remove(0)
        assert (chain.names, penalties.name, penalties.closed) == (("greedy",), "penalties", False)
        assert chain.sample(context, 3) == first
    with og.SamplerChain([penalties, samplers.greedy()]) as other:
        assert penalties.closed
        assert other.sample(context, 3) != first


def test_what_cannot_be_removed(smollm2: og.Model) -> None:
    """An unknown index, and a sampler that another one needs, are refused; the chain is unchanged."""
    with og.SamplerChain([samplers.top_p(), samplers.top_k(9), samplers.infill(smollm2.vocab)]) as chain:
        for index in (-1, 3, 2**31):
            with pytest.raises(ValueError, match="index"):
                chain.remove(index)
        with pytest.raises(TypeError, match="index"):
            chain.remove("top-k")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="put a top_k"):
            chain.remove(1)
        assert chain.names == ("top-p", "top-k", "infill")
        for name in ("top-p", "infill", "top-k"):
            with chain.remove(chain.names.index(name)) as removed:
                assert removed.name == name
        with pytest.raises(ValueError, match="index"):
            chain.remove(0)


def test_a_removed_sampler_is_closed_with_its_model(tiny: og.Model) -> None:
    """A removed sampler that reads a vocabulary is closed with the model, and names itself."""
    with og.Model(tiny.path) as model:
        chain = og.SamplerChain([samplers.penalties(model.vocab), samplers.greedy()])
        removed = chain.remove(0)
    assert removed.closed
    with og.SamplerChain() as other, pytest.raises(og.ClosedError, match="sampler penalties is closed"):
        other.add(removed)


# Perf -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alone", [True, False])
def test_perf(context: og.Context, alone: bool) -> None:
    """A chain that measures counts each token once, and time that passes in its samplers, also where greedy is alone."""
    with og.SamplerChain([*([] if alone else [samplers.temp(0.5)]), samplers.greedy()], perf=True) as chain:
        assert chain.perf() == og.SamplerPerf(t_sample_ms=0.0, n_sample=0)
        times = []
        for n in range(1, 4):
            for _ in range(3000):  # llama.cpp counts whole microseconds, and one takes less
                chain.sample(context, 3)
            perf = chain.perf()
            assert perf.n_sample == 3000 * n
            times.append(perf.t_sample_ms)
        assert 0 < times[0] < times[1] < times[2]
        chain.perf_reset()
        assert chain.perf() == og.SamplerPerf(t_sample_ms=0.0, n_sample=0)


def test_perf_is_the_time_of_the_samplers(context: og.Context) -> None:
    """The time that a sampler takes is in t_sample_ms, in milliseconds."""

    def slow(ids: object, logits: object) -> None:
        end = perf_counter() + 0.003
        while perf_counter() < end:
            pass

    with og.SamplerChain([samplers.custom(slow), samplers.greedy()], perf=True) as chain:
        begin = perf_counter()
        for _ in range(5):
            chain.sample(context, 3)
        passed = perf_counter() - begin
        assert 15 <= chain.perf().t_sample_ms <= 1e3 * passed


def test_perf_unasked(context: og.Context) -> None:
    """A chain that does not measure says how to make one that does; perf is True or False."""
    with og.SamplerChain([samplers.greedy()]) as chain:
        chain.sample(context, 3)
        chain.perf_reset()
        with pytest.raises(og.SamplerError, match="perf=True"):
            chain.perf()
    with pytest.raises(TypeError, match=r"^perf must be True or False"):
        og.SamplerChain(perf=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^no_perf must be True or False"):
        og.SamplerChain(no_perf=0)  # type: ignore[arg-type]


def test_no_perf_is_deprecated(tiny: og.Model) -> None:
    """The old name, which is the opposite, works with a warning that points at the caller."""
    for make in (og.SamplerChain, lambda **switch: og.SamplingParams().chain(tiny.vocab, **switch)):
        with pytest.warns(DeprecationWarning, match="no_perf=False is deprecated: use perf=True") as caught:
            chain = make(no_perf=False)
        assert caught[0].filename == __file__
        with chain:
            assert chain.perf().n_sample == 0


@pytest.mark.parametrize("sorts", [samplers.top_k, samplers.top_p, samplers.temp_ext])
def test_a_bias_after_what_sorts(sorts: Callable[[], og.Sampler], tiny: og.Model) -> None:
    """llama.cpp would take the candidates for sorted after the bias, and give other probabilities: it is refused."""
    with pytest.raises(ValueError, match="logit_bias must come before"):
        og.SamplerChain([sorts(), samplers.logit_bias(tiny.vocab, {0: -1.0}), samplers.dist(1)])
    og.SamplerChain([samplers.logit_bias(tiny.vocab, {0: -1.0}), sorts(), samplers.dist(1)]).close()
