"""Batches: rows, their bookkeeping, and what is refused before llama.cpp sees it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.serving import wait_until
from helpers.twin import CLOSE, EXACT, TOKENS, Twin, Weights, decode
from offgrid_llama._capi import lib
from offgrid_llama.context.batch import MAX_POS, MAX_TOKENS


def contents(batch: og.Batch) -> list[tuple[int, int, list[int], bool]]:
    """Return what llama.cpp would read: token, position, sequences and the flag of each row."""
    c = batch.c
    return [
        (c.token[i], c.pos[i], [c.seq_id[i][k] for k in range(c.n_seq_id[i])], bool(c.logits[i]))
        for i in range(c.n_tokens)
    ]


def test_add_returns_the_row() -> None:
    """A row is a token's index, and rows that asked for logits are remembered in order."""
    batch = og.Batch(4)
    assert [batch.add(7, pos, [0], logits=pos % 2 == 1) for pos in range(4)] == [0, 1, 2, 3]
    assert (len(batch), batch.capacity, batch.rows) == (4, 4, (1, 3))
    assert repr(batch) == "<Batch of 4/4 tokens, 2 with logits>"
    assert contents(batch) == [(7, pos, [0], pos % 2 == 1) for pos in range(4)]


def test_what_is_added_is_what_llama_cpp_reads() -> None:
    """Tokens, positions, sequences and flags reach the C arrays, also after clear() of rows with several sequences."""
    batch = og.Batch(3)
    batch.add(1, 2, [3, 4, 5], logits=True)
    batch.add(6, 7, [8])
    batch.add(9, 10, (0, 1))
    assert contents(batch) == [(1, 2, [3, 4, 5], True), (6, 7, [8], False), (9, 10, [0, 1], False)]
    batch.clear()
    assert (len(batch), batch.rows, contents(batch)) == (0, (), [])
    batch.add(2, 0, [7])
    batch.add(3, 1, [6, 5], logits=True)
    batch.add(4, 2, [4])
    assert contents(batch) == [(2, 0, [7], False), (3, 1, [6, 5], True), (4, 2, [4], False)]
    batch.clear()
    batch.add_sequence([1, 2, 3], pos=5, seq_id=2)
    assert contents(batch) == [(1, 5, [2], False), (2, 6, [2], False), (3, 7, [2], True)]


@pytest.mark.parametrize(("logits", "rows"), [("none", ()), ("last", (3,)), ("all", (1, 2, 3))])
def test_add_sequence(logits: Literal["none", "last", "all"], rows: tuple[int, ...]) -> None:
    """add_sequence() is add() for each token, with the rows that it was asked for."""
    one, two = og.Batch(8), og.Batch(8)
    for batch in (one, two):
        batch.add(60, 0, [1])
    assert one.add_sequence(iter([5, 6, 7]), 10, 2, logits) == range(1, 4)
    for i, token in enumerate([5, 6, 7]):
        two.add(token, 10 + i, [2], logits=i + 1 in rows)
    assert contents(one) == contents(two)
    assert one.rows == two.rows == rows


def test_add_sequence_of_nothing() -> None:
    """No tokens are no rows."""
    batch = og.Batch(2)
    assert batch.add_sequence([], logits="all") == range(0)
    assert (len(batch), batch.rows) == (0, ())


rows = st.tuples(
    st.integers(0, 2**31 - 1), st.integers(0, MAX_POS), st.lists(st.integers(0, 300), min_size=1, max_size=4, unique=True),
    st.booleans(),
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.one_of(rows, st.none()), max_size=20))
def test_a_batch_holds_what_was_added(operations: list[tuple[int, int, list[int], bool] | None]) -> None:
    """Whatever was added since the last clear() is there, and nothing else."""
    batch = og.Batch(20)
    expected: list[tuple[int, int, list[int], bool]] = []
    for operation in operations:
        if operation is None:
            batch.clear()
            expected = []
        else:
            batch.add(*operation)
            expected.append(operation)
    assert contents(batch) == expected
    assert batch.rows == tuple(i for i, row in enumerate(expected) if row[3])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((-1, 0, [0]), ValueError, "token"),
        ((2**31, 0, [0]), ValueError, "token"),
        (("a", 0, [0]), TypeError, "token"),
        ((1.0, 0, [0]), TypeError, "token"),
        ((0, -1, [0]), ValueError, "pos"),
        ((0, MAX_POS + 1, [0]), ValueError, "pos"),
        ((0, None, [0]), TypeError, "pos"),
        ((0, 0, []), ValueError, "at least one"),
        ((0, 0, [-1]), ValueError, "seq_ids"),
        ((0, 0, [2**31]), ValueError, "seq_ids"),
        ((0, 0, [0, 0]), ValueError, "twice"),
        ((0, 0, 0), TypeError, "seq_ids"),
        ((0, 0, None), TypeError, "iterable"),
        ((0, 0, ["a"]), TypeError, "seq_ids"),
    ],
)
def test_rows_that_are_refused(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    """A wrong argument is named, and leaves the batch as it was."""
    batch = og.Batch(2)
    batch.add(1, 0, [0], logits=True)
    add: Callable[..., int] = batch.add
    with pytest.raises(error, match=text):
        add(*arguments, logits=True)
    assert contents(batch) == [(1, 0, [0], True)]
    assert batch.rows == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (([1, -1],), ValueError, r"tokens\[1\]"),
        (([1, "a"],), TypeError, r"tokens\[1\]"),
        (([1], -1), ValueError, "pos"),
        (([1, 2], MAX_POS), ValueError, "pos"),
        (([1], 0, -1), ValueError, "seq_id"),
        (([1], 0, 0, "some"), ValueError, "logits"),
        (([1, 2, 3],), ValueError, "room"),
        ((5,), TypeError, "iterable"),
    ],
)
def test_sequences_that_are_refused(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    """A wrong argument is named, and leaves the batch as it was."""
    batch = og.Batch(3)
    batch.add(1, 0, [0])
    with pytest.raises(error, match=text):
        batch.add_sequence(*arguments)
    assert contents(batch) == [(1, 0, [0], False)]


@pytest.mark.parametrize("n_tokens", [0, -1, MAX_TOKENS + 1])
def test_capacities_that_are_refused(n_tokens: int) -> None:
    """A batch has room for at least one token and at most MAX_TOKENS."""
    with pytest.raises(ValueError, match="n_tokens"):
        og.Batch(n_tokens)


def test_a_full_batch() -> None:
    """A token that finds no room is refused, and the batch can be cleared and used again."""
    batch = og.Batch(2)
    batch.add_sequence([1, 2])
    with pytest.raises(ValueError, match="room"):
        batch.add(3, 2, [0])
    assert len(batch) == 2
    batch.clear()
    batch.add(3, 2, [0])


def test_a_batch_is_used_again(tiny: og.Model, weights: Weights) -> None:
    """A cleared batch decodes like a new one: no flag and no sequence of the earlier use is left in it."""
    with og.Context(tiny, n_ctx=256, n_seq_max=2, kv_unified=True, **EXACT) as context:
        batch = og.Batch(4)
        for pos, token in enumerate(TOKENS[:4]):
            batch.add(token, pos, [0, 1], logits=True)
        context.decode(batch)
        batch.clear()
        batch.add(7, 4, [1])
        batch.add(8, 5, [1], logits=True)
        context.decode(batch)
        assert context.memory.positions(0) == range(4)
        assert context.memory.positions(1) == range(6)
        with pytest.raises(ValueError, match="row 0"):
            context.logits(0)
        expected = Twin(weights).sequence([*TOKENS[:4], 7, 8])[-1]
        np.testing.assert_allclose(context.logits(1), expected, rtol=0, atol=CLOSE)


def test_a_batch_is_decoded_by_two_contexts(tiny: og.Model) -> None:
    """A batch belongs to no context."""
    with og.Context(tiny, n_ctx=256, **EXACT) as one, og.Context(tiny, n_ctx=256, **EXACT) as two:
        batch = og.Batch(16)
        batch.add_sequence(TOKENS, logits="all")
        one.decode(batch)
        two.decode(batch)
        np.testing.assert_array_equal(one.logits(-1).copy(), two.logits(-1).copy())


class Held:
    """A decode on another thread, which is under way when this is made, and ends after ``go_on()``."""

    def __init__(self, context: og.Context, batch: og.Batch) -> None:
        begun, self._goes_on = threading.Event(), threading.Event()

        def function(*arguments: Any) -> int:
            begun.set()
            assert self._goes_on.wait(60)
            code: int = lib.og_decode(*arguments)
            return code

        self._thread = threading.Thread(target=context.decode_with, args=(batch, function))
        self._thread.start()
        assert begun.wait(60)

    def go_on(self) -> None:
        """Let it compute, and wait for its end."""
        self._goes_on.set()
        self._thread.join()


def test_a_batch_cannot_change_while_it_is_decoded(tiny: og.Model) -> None:
    """While a decode reads the batch, also in several contexts, every change is refused."""
    with og.Context(tiny, n_ctx=256, **EXACT) as one, og.Context(tiny, n_ctx=256, **EXACT) as two:
        batch = og.Batch(17)
        batch.add_sequence(TOKENS)
        for reader in [Held(one, batch), Held(two, batch)]:
            for change in (lambda: batch.add(1, 0, [0]), lambda: batch.add_sequence([1]), batch.clear):
                with pytest.raises(RuntimeError, match="being decoded"):
                    change()
            reader.go_on()
        assert [context.memory.positions(0) for context in (one, two)] == [range(16)] * 2
        batch.clear()
        decode(one, [5], 16)


def test_a_batch_that_waits_for_its_turn_is_checked_then(tiny: og.Model) -> None:
    """A batch that is changed while its decode waits for another one is checked as it is when its turn comes."""
    with og.Context(tiny, n_ctx=512, n_batch=64, n_ubatch=32, n_seq_max=2, n_threads=1) as context:
        first, second = og.Batch(64), og.Batch(512)
        first.add_sequence(TOKENS)
        second.add_sequence([5], seq_id=1)
        outcome: list[BaseException] = []

        def work() -> None:
            try:
                context.decode(second)
            except ValueError as error:
                outcome.append(error)

        before = Held(context, first)
        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: context.handle.n_waiting > 0)  # for its turn
        second.add_sequence([6] * 300, pos=1, seq_id=1)
        before.go_on()
        thread.join()
        (error,) = outcome
        assert "n_batch=64" in str(error)
