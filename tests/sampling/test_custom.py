"""Custom samplers: Python in a chain of llama.cpp's, what it sees, what it may do, and what it cannot break."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

import offgrid_llama as og
from helpers.handles import n_children
from helpers.twin import N_VOCAB, TOKENS, decode
from offgrid_llama import samplers

if TYPE_CHECKING:
    from helpers.children import RunChild

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
INF = math.inf


@pytest.fixture(scope="module")
def context(tiny: og.Model) -> Iterator[og.Context]:
    """A context with logits for each of TOKENS; do not decode in it."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        yield context


def nothing(ids: Ids, logits: Floats) -> None:
    """Leave everything as it is."""


def only(token: int) -> Callable[[Ids, Floats], None]:
    """Return a function that forbids all tokens but one."""

    def apply(ids: Ids, logits: Floats) -> None:
        logits[ids != token] = -INF

    return apply


def best(ids: Ids, logits: Floats) -> int:
    """Select as greedy does."""
    return int(ids[logits.argmax()])


def no_repeat(seen: set[int] | None = None) -> og.Sampler:
    """Return a sampler with a state: it never lets a token come twice."""
    mine = set(seen or ())

    def apply(ids: Ids, logits: Floats) -> None:
        logits[np.isin(ids, list(mine))] = -INF

    return samplers.custom(apply, name="no-repeat", accept=mine.add, reset=mine.clear, clone=lambda: no_repeat(mine))


def returned(token: int, ids: Ids, logits: Floats) -> int:
    """Select ``token``."""
    return token


def sampled(context: og.Context, made: list[og.Sampler]) -> int:
    """Sample row 0 with a chain of its own."""
    with og.SamplerChain(made) as chain:
        return chain.sample(context, 0)


class FaultError(Exception):
    """The exception that the functions below raise."""


# Arguments and effects ------------------------------------------------------------------------------------------------


def test_it_sees_what_the_samplers_before_it_leave(context: og.Context) -> None:
    """The arrays are the candidates, first the whole vocabulary, and after top_k what that has left."""
    seen: list[tuple[Ids, Floats]] = []
    keep = lambda ids, logits: seen.append((ids, logits))  # noqa: E731
    with og.SamplerChain([samplers.custom(keep), samplers.top_k(5), samplers.custom(keep), samplers.greedy()]) as chain:
        chain.sample(context, 3)
    row = context.logits(3).copy()
    (ids, logits), (few, their) = seen
    assert (ids.dtype.name, logits.dtype.name, len(ids)) == ("int32", "float32", N_VOCAB)
    assert list(ids) == list(range(N_VOCAB))
    np.testing.assert_array_equal(logits, row)
    assert list(few) == list(np.argsort(-row)[:5])
    np.testing.assert_array_equal(their, row[few])


def test_what_it_writes_counts(context: og.Context, tiny: og.Model) -> None:
    """Logits that it writes are those that the next samplers see, and need not be sorted any more."""
    row = context.logits(3).copy()

    def turn(_ids: Ids, logits: Floats) -> None:
        logits *= -1

    with og.SamplerChain([samplers.top_k(8), samplers.custom(turn), samplers.top_k(1), samplers.dist(1)]) as chain:
        assert {chain.sample(context, 3) for _ in range(5)} == {int(np.argsort(-row)[7])}
    bias = {4: 2.5, 9: -INF, 50: 30.0}

    def add(ids: Ids, logits: Floats) -> None:
        for token, value in bias.items():
            logits[ids == token] += value

    with (
        og.SamplerChain([samplers.custom(add), samplers.dist(5)]) as ours,
        og.SamplerChain([samplers.logit_bias(tiny.vocab, bias), samplers.dist(5)]) as theirs,
    ):
        assert [ours.sample(context, 3) for _ in range(50)] == [theirs.sample(context, 3) for _ in range(50)]


def test_it_may_select(context: og.Context) -> None:
    """With selects=True the token that it returns is chosen, and accepted by all."""
    accepted: list[int] = []
    last = samplers.custom(best, selects=True, name="greedy")
    with og.SamplerChain([samplers.custom(nothing, accept=accepted.append), samplers.top_k(9), last]) as chain:
        tokens = [chain.sample(context, row) for row in range(len(TOKENS))]
        assert tokens == [int(np.argmax(context.logits(row))) for row in range(len(TOKENS))]
        assert accepted == tokens
        assert chain.seed is None
        chain.accept(7)
        assert accepted[-1] == 7
    third = samplers.custom(lambda ids, _logits: int(ids[3]), selects=True, name="greedy")
    with og.SamplerChain([third]) as chain:  # whose name is no promise
        assert chain.sample(context, 0) == 3


def test_what_selects_stays_last(context: og.Context) -> None:
    """A custom sampler that selects is the last; one that does not is no end for a chain."""
    with pytest.raises(ValueError, match="mine selects the token and must stay last; top-k"):
        og.SamplerChain([samplers.custom(best, selects=True, name="mine"), samplers.top_k()])
    with pytest.raises(ValueError, match="must end with"):
        sampled(context, [samplers.custom(nothing, name="mine")])


def test_arrays_may_be_kept(context: og.Context) -> None:
    """An array that it keeps is its own: written to after the call it changes nothing, and it outlives the chain."""
    kept: list[Floats] = []
    keep = lambda ids, logits: kept.append(logits)  # noqa: E731
    with og.SamplerChain([samplers.custom(keep), samplers.greedy()]) as chain:
        expected = chain.sample(context, 3)
        kept[0][:] = np.nan
        assert chain.sample(context, 3) == expected
        del chain
    gc.collect()
    np.testing.assert_array_equal(kept[1], context.logits(3).copy())
    assert kept[1].base is None


def test_a_state(context: og.Context) -> None:
    """A state is kept through accept and reset: no token comes twice until the reset."""
    with og.SamplerChain([no_repeat(), samplers.greedy()]) as chain:
        assert sorted(chain.sample(context, 3) for _ in range(N_VOCAB)) == list(range(N_VOCAB))
        with pytest.raises(og.SamplerError, match="selected no token"):
            chain.sample(context, 3)
        chain.reset()
        assert chain.sample(context, 3) == context.argmax(3)


# Exceptions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [FaultError("no"), KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_what_apply_raises_comes_out_of_sample(context: og.Context, error: BaseException) -> None:
    """The exception itself comes out; nothing after it is applied, nothing is accepted, and the chain goes on."""
    angry, accepted, seen = [True], list[int](), list[int]()

    def apply(ids: Ids, logits: Floats) -> None:
        if angry[0]:
            raise error

    def chain_of(first: og.Sampler) -> og.SamplerChain:
        after = samplers.custom(lambda ids, logits: seen.append(1), accept=accepted.append)
        return og.SamplerChain([samplers.temp(2.0), first, after, samplers.dist(3)])

    with chain_of(samplers.custom(nothing)) as calm:
        expected = [calm.sample(context, 3) for _ in range(20)]
    accepted.clear()
    seen.clear()
    with chain_of(samplers.custom(apply)) as chain:
        for _ in range(3):
            with pytest.raises(type(error)) as caught:
                chain.sample(context, 3)
            assert caught.value is error
        assert accepted == seen == []
        angry[0] = False
        assert [chain.sample(context, 3) for _ in range(20)] == expected


def test_what_accept_and_reset_raise(context: og.Context, tiny: og.Model) -> None:
    """Their exceptions come out, after the other samplers have done their part."""

    def fail(*_: int) -> None:
        raise FaultError("no")

    never_twice = samplers.penalties(tiny.vocab, last_n=100, present=1e6)
    with og.SamplerChain([samplers.custom(nothing, accept=fail, reset=fail), never_twice, samplers.greedy()]) as chain:
        order = np.argsort(-context.logits(3).copy())
        with pytest.raises(FaultError):
            chain.sample(context, 3)
        with pytest.raises(FaultError):
            chain.accept(int(order[1]))
        chain.remove(0).close()
        assert chain.sample(context, 3) == order[2]
    with og.SamplerChain([samplers.custom(nothing, reset=fail), no_repeat(), samplers.greedy()]) as chain:
        first = chain.sample(context, 3)
        with pytest.raises(FaultError):
            chain.reset()
        assert chain.sample(context, 3) == first


def scribble(value: float) -> Callable[[Ids, Floats], None]:
    def apply(ids: Ids, logits: Floats) -> None:
        logits[5] = value

    return apply


@pytest.mark.parametrize("value", [math.nan, INF])
def test_logits_that_are_no_numbers(context: og.Context, value: float) -> None:
    """NaN and +inf are refused, where llama.cpp would sort and draw by them."""
    with pytest.raises(og.SamplerError, match="mine wrote NaN"):
        sampled(context, [samplers.custom(scribble(value), name="mine"), samplers.greedy()])


def test_forbidding_everything(context: og.Context) -> None:
    """Where it leaves no token there is none to select, with every sampler that selects."""
    for last in (samplers.greedy, lambda: samplers.dist(1), lambda: samplers.adaptive_p(seed=1), samplers.mirostat_v2):
        with pytest.raises(og.SamplerError, match="selected no token"):
            sampled(context, [samplers.custom(lambda ids, logits: logits.fill(-INF)), last()])
    with pytest.raises(og.SamplerError, match="selected no token"):
        sampled(context, [samplers.custom(only(4)), samplers.custom(lambda i, x: 5, selects=True)])


@pytest.mark.parametrize(
    ("token", "error"),
    [
        (N_VOCAB, ValueError), (-1, ValueError), (2**31, ValueError), (2**70, ValueError), (None, TypeError),
        (1.0, TypeError), ("1", TypeError),
    ],
)  # fmt: skip
def test_selecting_what_is_not_there(context: og.Context, token: Any, error: type[Exception]) -> None:
    """A token that is no candidate, or no token at all, is refused with the sampler's name."""
    with pytest.raises(error, match="sampler mine returned"):
        sampled(context, [samplers.custom(lambda ids, logits: token, selects=True, name="mine")])


def test_selecting_what_was_thrown_away(context: og.Context) -> None:
    """Tokens that a sampler before it has thrown away are no candidates; those that are left are found in any order."""
    order = [int(token) for token in np.argsort(-context.logits(3).copy())]
    for place, token in enumerate(order[:8]):
        chosen = samplers.custom(partial(returned, token), selects=True)
        with og.SamplerChain([samplers.top_k(7), chosen]) as chain:
            if place < 7:
                assert chain.sample(context, 3) == token
            else:
                with pytest.raises(ValueError, match="none of the 7 candidates"):
                    chain.sample(context, 3)


def test_returning_a_token_without_selecting(context: og.Context) -> None:
    """A sampler that was not made to select, and returns something, is told so."""
    with pytest.raises(TypeError, match="selects=True"):
        sampled(context, [samplers.custom(best), samplers.greedy()])


@pytest.mark.parametrize("apply", [lambda: None, lambda ids: None, lambda ids, logits, more: None])
def test_a_function_of_other_arguments(context: og.Context, apply: Any) -> None:
    """A function that cannot be called as apply(ids, logits) raises Python's own TypeError."""
    with pytest.raises(TypeError, match="argument"):
        sampled(context, [samplers.custom(apply), samplers.greedy()])


@pytest.mark.parametrize("name", ["apply", "accept", "reset", "clone"])
def test_arguments(name: str) -> None:
    """Each callback must be callable; the name is a str."""
    with pytest.raises(TypeError, match=f"^{name} must be callable"):
        samplers.custom(**{"apply": nothing, name: 5})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="name must be str"):
        samplers.custom(nothing, name=5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="apply must be callable"):
        samplers.custom(None)  # type: ignore[arg-type]


# Misuse ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def extra() -> Iterator[og.Sampler]:
    """A sampler that no chain takes."""
    with samplers.greedy() as sampler:
        yield sampler


@pytest.mark.parametrize(
    "misuse",
    [
        lambda chain, context, _: chain.close(),
        lambda chain, context, _: chain.sample(context, 0),
        lambda chain, context, _: chain.accept(1),
        lambda chain, context, _: chain.reset(),
        lambda chain, context, _: chain.clone(),
        lambda chain, context, _: chain.remove(0),
        lambda chain, context, extra: chain.add(extra),
        lambda chain, context, _: chain.perf(),
        lambda chain, context, _: context.close(),
        lambda chain, context, _: context.model.close(),
        lambda chain, context, _: context.logits(0)[0],
        lambda chain, context, _: context.argmax(0),
        lambda chain, context, _: context.memory.clear(),
        lambda chain, context, _: decode(context, [1]),
    ],
)
def test_the_chain_and_the_context_are_taken(
    context: og.Context, extra: og.Sampler, misuse: Callable[..., object]
) -> None:
    """From inside, the chain and its context can be neither used nor closed: RuntimeError, and both work on."""

    def apply(ids: Ids, logits: Floats) -> None:
        misuse(chain, context, extra)

    with og.SamplerChain([samplers.custom(apply), samplers.greedy()]) as chain:
        with pytest.raises(RuntimeError, match="callback of its own call"):
            chain.sample(context, 3)
        assert not context.closed
        chain.remove(0).close()
        assert chain.sample(context, 3) == context.argmax(3)


def test_another_chain_from_inside(context: og.Context, smollm2: og.Model) -> None:
    """From inside, another chain may sample from another context, of a larger vocabulary, too; both get their own."""
    with og.Context(smollm2, n_ctx=64, n_threads=1) as other:
        batch = og.Batch(4)
        batch.add_sequence(smollm2.vocab.tokenize("Once upon"))
        other.decode(batch)
        expected = other.argmax(-1)
        inner = og.SamplerChain([samplers.temp(0.5), samplers.greedy()])

        def apply(ids: Ids, logits: Floats) -> None:
            assert inner.sample(other, -1) == expected
            logits[ids % 2 == 0] = -INF

        row = context.logits(3).copy()
        row[::2] = -INF
        with inner, og.SamplerChain([samplers.custom(apply), samplers.top_k(3), samplers.dist(2)]) as chain:
            assert {chain.sample(context, 3) for _ in range(100)} == {int(token) for token in np.argsort(-row)[:3]}


def test_threads_share_a_chain(context: og.Context) -> None:
    """Threads take turns in a chain with a custom sampler; an exception comes out on the thread that it belongs to."""
    with (
        og.SamplerChain([no_repeat(), samplers.custom(nothing), samplers.dist(3)]) as chain,
        ThreadPoolExecutor(4) as pool,
    ):
        tokens = list(pool.map(lambda _: chain.sample(context, 3), range(N_VOCAB)))
        assert sorted(tokens) == list(range(N_VOCAB))
        futures = [pool.submit(chain.sample, context, 3) for _ in range(8)]
        assert all(isinstance(future.exception(), og.SamplerError) for future in futures)


def test_clones(context: og.Context, smollm2: og.Model) -> None:
    """A clone has a state of its own; functions without a state are shared; a state without a clone= is refused."""
    with og.SamplerChain([no_repeat(), samplers.dist(3)]) as chain:
        chain.sample(context, 3)
        with chain.clone() as clone:
            assert clone.names == ("no-repeat", "dist")
            one = [chain.sample(context, 3) for _ in range(N_VOCAB - 1)]
            assert [clone.sample(context, 3) for _ in range(N_VOCAB - 1)] == one
    with og.SamplerChain([samplers.custom(only(7), name="seven"), samplers.greedy()]) as chain:
        clone = chain.clone()
        chain.close()
        with clone:
            assert clone.sample(context, 3) == 7
    for state in ({"accept": print}, {"reset": print}):
        stateful = samplers.custom(nothing, name="mine", **state)  # type: ignore[arg-type]
        with og.SamplerChain([stateful]) as chain, pytest.raises(og.SamplerError, match="mine has a state"):
            chain.clone()


@pytest.mark.parametrize("answer", [None, FaultError("no"), "the same"])
def test_a_clone_that_fails(context: og.Context, answer: Any, smollm2: og.Model) -> None:
    """Where clone= raises, or returns no new sampler, chain.clone() raises, leaves nothing open, and the chain works on."""
    made: list[og.Sampler] = []

    def clone() -> Any:
        if isinstance(answer, FaultError):
            raise answer
        return made[0] if answer else None

    made.append(samplers.custom(nothing, clone=clone))
    grammar = og.Grammar.gbnf('root ::= "yes"').sampler(smollm2.vocab)
    before = n_children(smollm2)
    with og.SamplerChain([grammar, made[0], samplers.greedy()]) as chain:
        with pytest.raises((FaultError, TypeError, og.ClosedError)):
            chain.clone()
        assert n_children(smollm2) == before
        (yes,) = smollm2.vocab.tokenize("yes", add_special=False)
        chain.accept(yes)


def test_a_clone_with_a_grammar(smollm2: og.Model) -> None:
    """A chain of a grammar and a custom sampler is cloned in the middle of the text, and both go on alike."""
    vocab = smollm2.vocab
    (yes,) = vocab.tokenize("yes", add_special=False)
    with og.Context(smollm2, n_ctx=64, n_threads=1) as context:
        batch = og.Batch(8)
        batch.add_sequence(vocab.tokenize("Is it so?"))
        context.decode(batch)
        first = og.Grammar.gbnf('root ::= "yes"').sampler(vocab)
        with og.SamplerChain([first, no_repeat(), samplers.greedy()]) as chain:
            chain.accept(yes)
            with chain.clone() as clone:
                for each in (clone, chain):
                    assert smollm2.vocab.is_eog(each.sample(context, -1))
                with pytest.raises(og.GrammarError):
                    clone.accept(yes)


def test_it_can_be_removed_and_used_again(context: og.Context) -> None:
    """A custom sampler that was taken out of its chain, which is gone, works in another."""
    with og.SamplerChain([samplers.custom(only(11), name="eleven"), samplers.greedy()]) as chain:
        sampler = chain.remove(0)
    gc.collect()
    with og.SamplerChain([sampler, samplers.greedy()]) as chain:
        assert chain.names == ("eleven", "greedy")
        assert chain.sample(context, 3) == 11


def test_cycles_are_collected() -> None:
    """A function that knows its chain does not keep it from being freed."""

    class Rule:
        chain: og.SamplerChain

        def apply(self, ids: Ids, logits: Floats) -> None:
            """Do nothing."""

    rule = Rule()
    rule.chain = og.SamplerChain([samplers.custom(rule.apply), samplers.greedy()])
    gone, handle = weakref.ref(rule), rule.chain.handle
    del rule
    with pytest.warns(ResourceWarning, match="SamplerChain"):
        gc.collect()
    assert gone() is None
    assert handle.closed


def test_chains_are_freed_by_any_thread(context: og.Context) -> None:
    """A chain with custom samplers may be made on one thread, used on another, and freed on a third."""
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as two:
        chain = one.submit(lambda: og.SamplerChain([samplers.custom(only(3)), no_repeat(), samplers.greedy()])).result()
        assert two.submit(chain.sample, context, 3).result() == 3
        chain.close()
    assert chain.closed


def test_the_end_of_the_process(tiny: og.Model, run_child: RunChild) -> None:
    """A process that ends with custom samplers open, in chains and cycles and on a thread, ends with 0 and in silence."""
    done = run_child(
        """
        import sys, threading, warnings
        warnings.simplefilter("ignore", ResourceWarning)
        import offgrid_llama as og
        S = og.samplers
        model = og.Model(sys.argv[1])
        context = og.Context(model, n_ctx=64, n_threads=1)
        batch = og.Batch(1)
        batch.add(1, 0, [0], logits=True)
        context.decode(batch)
        class Rule:
            def apply(self, ids, logits):
                logits[3] = 50
            def accept(self, token):
                print(token)
            def __del__(self):
                pass
        rule = Rule()
        rule.chain = og.SamplerChain([S.custom(rule.apply, accept=rule.accept), S.greedy()])
        loose = S.custom(rule.apply)
        rule.chain.sample(context, 0)
        busy = og.SamplerChain([S.custom(rule.apply), S.greedy()])
        begun = threading.Event()
        def work():
            while True:
                busy.sample(context, 0)
                begun.set()
        threading.Thread(target=work, daemon=True).start()
        begun.wait()
        """,
        tiny.path,
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
