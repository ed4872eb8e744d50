"""Padding: unused rows are added to a step where they make it quicker."""

from __future__ import annotations

from offgrid_llama.engine.planning.limits import Limits
from offgrid_llama.engine.planning.padding import MEASURED_AFTER_STEPS, MEASURED_FOR_STEPS, Padding
from offgrid_llama.engine.planning.slots import Slots, Taken


def after(padding: Padding, **seconds: float) -> Padding:
    """Observe steps of the given times: ``_7=0.06`` is 60 ms for seven rows."""
    for name, each in seconds.items():
        for _ in range(MEASURED_AFTER_STEPS):
            padding.observe(int(name[1:]), each)
    return padding


def test_what_is_quicker_is_done() -> None:
    """Where eight rows take less than seven, seven become eight; where they take as long, or more, not."""
    assert after(Padding(99), _7=0.060, _8=0.042).n_pads(7) == 1
    assert after(Padding(99), _5=0.049, _8=0.042).n_pads(5) == 3
    assert after(Padding(99), _7=0.030, _8=0.030).n_pads(7) == 0
    assert after(Padding(99), _8=0.042, _12=0.001).n_pads(8) == 0


def test_what_is_not_known_is_tried() -> None:
    """First the rows as they are, then with padding, a few times each; and again after a long time."""
    padding = Padding(99)
    tried = []
    for _ in range(2 * MEASURED_FOR_STEPS):
        n = 6 + padding.n_pads(6)
        tried.append(n)
        padding.observe(n, {6: 0.03, 8: 0.04}[n])
    assert tried[: 2 * MEASURED_AFTER_STEPS + 1] == [6] * MEASURED_AFTER_STEPS + [8] * MEASURED_AFTER_STEPS + [6]
    assert tried.count(8) == 2 * MEASURED_AFTER_STEPS


def test_a_few_are_not_filled_up() -> None:
    """One or two rows would become twice as many, or more."""
    padding = after(Padding(99), _1=0.1, _2=0.1, _3=0.1, _4=0.01)
    assert [padding.n_pads(n) for n in (1, 2, 3)] == [0, 0, 1]


def test_slots_that_are_filled_up() -> None:
    """Those between slots in use come first, then those beside them; full ones, and some of too few, never."""
    slots = Slots(Limits(8, n_batch=64, n_ctx_seq=256))
    for i in range(6):
        taken = slots.take([10 * i, 1])
        assert isinstance(taken, Taken)
        slots.advance(taken.seq, 2)
    for seq in (0, 2, 4):
        slots.release(seq)
    assert slots.unused(1, 9) == [(2, 2)]
    assert slots.unused(4, 9) == [(2, 2), (4, 2), (0, 2), (6, 0)]
    assert slots.unused(2, 2) == [(6, 0), (7, 0)]
    assert slots.unused(6, 9) == []
