"""The memory of a context, held against a twin in NumPy that knows nothing of cells, streams and shifts of keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import offgrid_llama as og
from helpers.caches import BOTH
from helpers.twin import CLOSE, EXACT, N_VOCAB, TOKENS, Twin, Weights, decode, write_tiny_llama
from offgrid_llama.context.batch import MAX_POS
from offgrid_llama.native.enums import KVType


class Pair:
    """A context and its twin: each operation is done to both, and their results are compared."""

    def __init__(self, model: og.Model, weights: Weights, *, unified: bool, n_seq_max: int = 3) -> None:
        self.context = og.Context(model, n_ctx=256 * n_seq_max, n_seq_max=n_seq_max, kv_unified=unified, **EXACT)
        self.twin = Twin(weights, unified=unified)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def decode(self, tokens: list[int], seq_id: int = 0) -> None:
        """Go on with a sequence and compare the logits of every token."""
        pos = self.twin.positions(seq_id).stop
        expected = self.twin.sequence(tokens, pos, seq_id)
        np.testing.assert_allclose(decode(self.context, tokens, pos, seq_id), expected, rtol=0, atol=CLOSE)

    def do(self, name: str, *arguments: int) -> None:
        """Call a method of memory, and the twin's."""
        getattr(self.context.memory, name)(*arguments)
        getattr(self.twin, name)(*arguments)
        self.check()

    def check(self) -> None:
        for seq in range(self.context.n_seq_max):
            assert self.context.memory.positions(seq) == self.twin.positions(seq), f"sequence {seq}"


# Each operation by itself ---------------------------------------------------------------------------------------------


@BOTH
def test_positions(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """positions() is what was decoded, and empty for a sequence that was not."""
    with Pair(tiny, weights, unified=unified) as pair:
        assert pair.context.memory.positions(1) == range(0)
        pair.decode(TOKENS, 1)
        assert pair.context.memory.positions(1) == range(16)
        assert pair.context.memory.positions(0) == range(0)
        decode(pair.context, TOKENS, 100, 0)
        assert pair.context.memory.positions(0) == range(100, 116)


@BOTH
@pytest.mark.parametrize(
    ("p0", "p1"), [(-1, -1), (0, -1), (5, -1), (0, 5), (3, 9), (-1, 9), (15, 16), (16, -1), (7, 7), (9, 3)]
)
def test_remove(p0: int, p1: int, unified: bool, tiny: og.Model, weights: Weights) -> None:
    """remove() forgets [p0, p1) of one sequence: what is decoded next does not see it."""
    with Pair(tiny, weights, unified=unified) as pair:
        pair.decode(TOKENS, 0)
        pair.decode(TOKENS[::-1], 1)
        assert pair.context.memory.remove(0, p0, p1) is True
        pair.twin.remove(0, p0, p1)
        pair.check()
        pair.decode([5, 6], 0)
        pair.decode([5, 6], 1)


@BOTH
def test_remove_from_all_sequences(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """remove(-1, ...) forgets the range in every sequence."""
    with Pair(tiny, weights, unified=unified) as pair:
        pair.decode(TOKENS, 0)
        pair.decode(TOKENS[:8], 2)
        pair.do("remove", -1, 4, 8)
        for seq in (0, 1, 2):
            pair.decode([7], seq)
        pair.do("remove", -1)
        assert [len(pair.context.memory.positions(seq)) for seq in range(3)] == [0, 0, 0]


@BOTH
def test_clear(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """clear() forgets every sequence, with and without zeroing the buffers."""
    for data in (True, False):
        with Pair(tiny, weights, unified=unified) as pair:
            pair.decode(TOKENS, 0)
            pair.decode(TOKENS, 1)
            pair.context.memory.clear(data)
            pair.twin.clear()
            pair.check()
            pair.decode(TOKENS[::-1], 1)


@BOTH
def test_keep(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """keep() forgets every sequence but one, which goes on."""
    with Pair(tiny, weights, unified=unified) as pair:
        for seq in range(3):
            pair.decode(TOKENS[seq:], seq)
        pair.do("keep", 1)
        assert [len(pair.context.memory.positions(seq)) for seq in range(3)] == [0, 15, 0]
        for seq in range(3):
            pair.decode([9], seq)


@BOTH
def test_copy(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """A copied sequence goes on by itself: neither sees what the other gets."""
    with Pair(tiny, weights, unified=unified) as pair:
        pair.decode(TOKENS, 0)
        pair.do("copy", 0, 2)
        pair.decode([5, 6, 7], 0)
        pair.decode([8, 9], 2)
        pair.do("remove", 0)
        pair.decode([10], 2)


@BOTH
def test_a_copy_can_be_trimmed(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """A whole copy with its tail removed is a copy of the prefix, in both kinds of cache."""
    with Pair(tiny, weights, unified=unified) as pair:
        pair.decode(TOKENS, 0)
        pair.do("copy", 0, 1)
        pair.do("remove", 1, 6, -1)
        pair.decode([11, 12], 1)
        pair.decode([11, 12], 0)


def test_a_part_can_be_copied_in_a_unified_cache(tiny: og.Model, weights: Weights) -> None:
    """A unified cache copies any range."""
    with Pair(tiny, weights, unified=True) as pair:
        pair.decode(TOKENS, 0)
        pair.do("copy", 0, 1, 2, 9)
        assert pair.context.memory.positions(1) == range(2, 9)
        pair.decode([11, 12], 1)


@BOTH
def test_a_copy_replaces_what_was_there(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """The other sequence loses its own positions, also if it is a copy already: no two tokens have one position."""
    with Pair(tiny, weights, unified=unified) as pair:
        pair.decode(TOKENS, 0)
        pair.decode(TOKENS[::-1], 1)
        pair.do("copy", 0, 1)
        pair.do("copy", 0, 1)
        pair.decode([5], 1)
        fresh = Twin(weights).sequence([*TOKENS, 5])[-1]
        np.testing.assert_allclose(pair.context.logits(-1).copy(), fresh, rtol=0, atol=CLOSE)


def test_a_copied_part_replaces_that_part(tiny: og.Model, weights: Weights) -> None:
    """In a unified cache the other sequence keeps what it has outside the range."""
    with Pair(tiny, weights, unified=True) as pair:
        pair.decode(TOKENS, 0)
        pair.decode(TOKENS[::-1], 1)
        pair.do("copy", 0, 1, 4, 9)
        pair.decode([5], 1)
        text = TOKENS[::-1][:4] + TOKENS[4:9] + TOKENS[::-1][9:]
        assert [cell.pos for cell in pair.twin.cells if 1 in cell.seqs].count(4) == 1
        assert pair.context.memory.positions(1) == range(len(text) + 1)


@pytest.mark.parametrize(("p0", "p1"), [(1, -1), (0, 5), (-1, 5), (3, 4)])
def test_a_part_cannot_be_copied_to_another_stream(p0: int, p1: int, tiny: og.Model, weights: Weights) -> None:
    """Separate streams are copied whole: a part is refused with the way around, where llama.h aborts."""
    with Pair(tiny, weights, unified=False) as pair:
        pair.decode(TOKENS, 0)
        with pytest.raises(ValueError, match="whole"):
            pair.context.memory.copy(0, 1, p0, p1)
        pair.check()
        pair.context.memory.copy(0, 1, 0, -1)
        assert pair.context.memory.positions(1) == range(16)
        pair.context.memory.copy(1, 1, 3, 4)  # onto itself: nothing to do


@BOTH
@pytest.mark.parametrize(
    ("p0", "p1", "delta"), [(0, -1, 5), (-1, -1, 100), (4, -1, 3), (4, -1, -2), (0, -1, -6), (8, 16, 9)]
)
def test_shift(p0: int, p1: int, delta: int, unified: bool, tiny: og.Model, weights: Weights) -> None:
    """shift() moves positions: what is decoded next sees the tokens there, and those below 0 no more."""
    with Pair(tiny, weights, unified=unified) as pair:
        pair.decode(TOKENS, 0)
        pair.decode(TOKENS, 1)
        pair.do("shift", 0, p0, p1, delta)
        pair.decode([5, 6], 0)
        pair.decode([5, 6], 1)


@BOTH
def test_a_hole_is_closed(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """remove() and shift() together drop the middle of a sequence, as a context that slides on does."""
    with Pair(tiny, weights, unified=unified) as pair:
        pair.decode(TOKENS, 0)
        pair.do("remove", 0, 4, 10)
        pair.do("shift", 0, 10, -1, -6)
        assert pair.context.memory.positions(0) == range(10)
        pair.decode([5, 6], 0)


@BOTH
@pytest.mark.parametrize(("p0", "p1", "d"), [(0, -1, 2), (-1, -1, 3), (4, 12, 4), (0, -1, 1), (0, -1, 2**31 - 1)])
def test_divide(p0: int, p1: int, d: int, unified: bool, tiny: og.Model, weights: Weights) -> None:
    """divide() divides positions, and what is decoded next sees the tokens there."""
    with Pair(tiny, weights, unified=unified) as pair:
        pair.decode(TOKENS, 0)
        pair.do("divide", 0, p0, p1, d)
        pair.decode([5, 6], 0)


def test_shared_cells_move_for_all(tiny: og.Model, weights: Weights) -> None:
    """In a unified cache a shared prefix is one set of cells: shift() moves it for every sequence that has it."""
    with Pair(tiny, weights, unified=True) as pair:
        pair.decode(TOKENS, 0)
        pair.do("copy", 0, 1)
        pair.do("shift", 1, 0, -1, 5)
        assert pair.context.memory.positions(0) == range(5, 21)
        pair.decode([5], 0)
    with Pair(tiny, weights, unified=False) as pair:
        pair.decode(TOKENS, 0)
        pair.do("copy", 0, 1)
        pair.do("shift", 1, 0, -1, 5)
        assert pair.context.memory.positions(0) == range(16)
        pair.decode([5], 0)


# All together ---------------------------------------------------------------------------------------------------------


class Machine(RuleBasedStateMachine):
    """Any operations in any order."""

    seqs = st.integers(0, 2)
    p0s = st.sampled_from([-1, 0, 1, 2, 3, 5, 8])
    p1s = st.sampled_from([-1, -1, 1, 2, 4, 7, 12])

    def __init__(self, model: og.Model, weights: Weights, unified: bool) -> None:
        super().__init__()
        self.pair = Pair(model, weights, unified=unified)
        self.unified = unified

    def teardown(self) -> None:
        self.pair.context.close()

    @rule(tokens=st.lists(st.integers(0, N_VOCAB - 1), min_size=1, max_size=5), seq=seqs)
    def decode(self, tokens: list[int], seq: int) -> None:
        if self.pair.twin.positions(seq).stop < 200:
            self.pair.decode(tokens, seq)

    @rule(seq=st.integers(-1, 2), p0=p0s, p1=p1s)
    def remove(self, seq: int, p0: int, p1: int) -> None:
        self.pair.do("remove", seq, p0, p1)

    @rule(src=seqs, dst=seqs)
    def copy(self, src: int, dst: int) -> None:
        self.pair.do("copy", src, dst)

    @precondition(lambda self: self.unified)
    @rule(src=seqs, dst=seqs, p0=p0s, p1=p1s)
    def copy_part(self, src: int, dst: int, p0: int, p1: int) -> None:
        self.pair.do("copy", src, dst, p0, p1)

    @rule(seq=seqs)
    def keep(self, seq: int) -> None:
        self.pair.do("keep", seq)

    @rule(seq=seqs, p0=p0s, p1=p1s, delta=st.integers(-4, 6))
    def shift(self, seq: int, p0: int, p1: int, delta: int) -> None:
        self.pair.do("shift", seq, p0, p1, delta)

    @rule(seq=seqs, p0=p0s, p1=p1s, d=st.integers(1, 3))
    def divide(self, seq: int, p0: int, p1: int, d: int) -> None:
        self.pair.do("divide", seq, p0, p1, d)

    @invariant()
    def agree(self) -> None:
        self.pair.check()


@BOTH
def test_any_operations_in_any_order(unified: bool, tiny: og.Model, weights: Weights) -> None:
    """After any operations the positions, and the logits of every decode, are those of the twin."""
    run_state_machine_as_test(
        lambda: Machine(tiny, weights, unified),  # type: ignore[arg-type]
        settings=settings(max_examples=40, stateful_step_count=15, deadline=None),
    )


# Refusals -------------------------------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[og.Memory, int], object]] = {
    "remove": lambda memory, seq: memory.remove(seq),
    "copy from": lambda memory, seq: memory.copy(seq, 0),
    "copy to": lambda memory, seq: memory.copy(0, seq),
    "keep": lambda memory, seq: memory.keep(seq),
    "shift": lambda memory, seq: memory.shift(seq, 0, -1, 1),
    "divide": lambda memory, seq: memory.divide(seq, 0, -1, 2),
    "positions": lambda memory, seq: memory.positions(seq),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seq", [-2, -1, 2, 255, 2**31, -(2**31)])
def test_sequences_that_are_not_there(name: str, seq: int, tiny: og.Model) -> None:
    """A sequence that the context does not have is refused, where llama.h aborts; -1 is all of them for remove() only."""
    with og.Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        if name == "remove" and seq == -1:
            CALLS[name](context.memory, seq)
            return
        with pytest.raises(ValueError, match="n_seq_max=2"):
            CALLS[name](context.memory, seq)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("seq", [None, "0", 0.0])
def test_sequences_of_another_type(name: str, seq: Any, tiny: og.Model) -> None:
    """A sequence is an int."""
    with (
        og.Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context,
        pytest.raises(TypeError, match="must be an int"),
    ):
        CALLS[name](context.memory, seq)


@pytest.mark.parametrize("p", [-2, 2**31])
def test_positions_out_of_range(p: int, tiny: og.Model) -> None:
    """Positions are -1 or from 0; the argument is named."""
    with og.Context(tiny, n_ctx=512, n_seq_max=2, kv_unified=True, n_threads=1) as context:
        memory = context.memory
        calls: list[tuple[str, Callable[[], object]]] = [
            ("p0", lambda: memory.remove(0, p, -1)),
            ("p1", lambda: memory.remove(0, 0, p)),
            ("p0", lambda: memory.copy(0, 1, p, -1)),
            ("p1", lambda: memory.copy(0, 1, 0, p)),
            ("p0", lambda: memory.shift(0, p, -1, 1)),
            ("p1", lambda: memory.shift(0, 0, p, 1)),
            ("p0", lambda: memory.divide(0, p, -1, 2)),
            ("p1", lambda: memory.divide(0, 0, p, 2)),
        ]
        for name, call in calls:
            with pytest.raises(ValueError, match=name):
                call()


@pytest.mark.parametrize("d", [0, -1, -(2**31), 2**31])
def test_divisors_out_of_range(d: int, tiny: og.Model) -> None:
    """A divisor is at least 1; 0 would end the process."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        with pytest.raises(ValueError, match="d must be"):
            context.memory.divide(0, 0, -1, d)


@pytest.mark.parametrize("delta", [2**31 - 1, -(2**31), MAX_POS])
def test_shifts_out_of_range(delta: int, tiny: og.Model) -> None:
    """A shift that would take a position out of int32 is refused, and nothing is moved."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        with pytest.raises(ValueError, match="delta"):
            context.memory.shift(0, 0, -1, delta)
        assert context.memory.positions(0) == range(16)
        context.memory.shift(0, 0, -1, 2**20)
        assert context.memory.positions(0) == range(2**20, 2**20 + 16)
        decode(context, [5], 2**20 + 16)


def test_can_shift(tiny: og.Model, gemma: og.Model) -> None:
    """Models with plain rotary positions can shift, those with a sliding window, too."""
    for model in (tiny, gemma):
        with og.Context(model, n_ctx=256, n_threads=1) as context:
            assert context.memory.can_shift


@pytest.mark.parametrize("type_k", ["q8_0", "q4_0"])
def test_quantized_keys_that_cannot_be_moved(
    type_k: KVType, tiny: og.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quantized keys in heads of 32 values are not moved, which would end the process; those in heads of 64 are."""
    write_tiny_llama(tmp_path / "heads-of-64.gguf", n_head=1)
    with og.Model(tmp_path / "heads-of-64.gguf") as model:
        for owner, can in [(tiny, False), (model, True)]:
            with og.Context(owner, n_ctx=256, type_k=type_k, n_threads=1) as context:
                assert context.memory.can_shift is can
                decode(context, TOKENS)
                if can:
                    context.memory.shift(0, 0, -1, 3)
                    assert np.isfinite(decode(context, [5], 19)).all()
                else:
                    for name in ("shift", "divide"):
                        with pytest.raises(og.ContextError, match="can_shift"):
                            getattr(context.memory, name)(0, 0, -1, 3)
        monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
        with og.Context(model, n_ctx=256, type_k=type_k, n_threads=1) as context:
            assert not context.memory.can_shift


def test_memory_dies_with_its_context(tiny: og.Model) -> None:
    """The memory is borrowed: every method raises ClosedError once the context is closed."""
    context = og.Context(tiny, n_ctx=256, n_threads=1)
    memory = context.memory
    assert "Model tiny" in repr(memory)
    context.close()
    for each in CALLS.values():
        with pytest.raises(og.ClosedError, match="Context"):
            each(memory, 0)
    with pytest.raises(og.ClosedError):
        memory.clear()
    with pytest.raises(og.ClosedError):
        _ = memory.can_shift
