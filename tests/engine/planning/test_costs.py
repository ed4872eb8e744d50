"""Costs: what was seen of steps of each size says what a row more costs."""

from __future__ import annotations

import pytest

from offgrid_llama.engine.planning.costs import Costs
from offgrid_llama.engine.planning.lookup import Lookup


def test_costs() -> None:
    """Costs that were seen count, also for what is near; where none were, or long ago, it is taken to be worth a try."""
    costs = Costs()
    assert costs.slowdown(1, 4) == 3
    for _ in range(30):
        costs.observe(1, 0, 1.0)
        costs.observe(1, 4, 9.0)
        costs.observe(2, 0, 2.0)
    assert costs.slowdown(1, 4) == pytest.approx(9)
    assert costs.slowdown(1, 3) == pytest.approx(7)
    assert costs.slowdown(2, 4) == pytest.approx(5)  # as much more as with one
    costs.observe(1, 3, 1.5)
    assert costs.slowdown(1, 3) == 1.5
    assert costs.slowdown(1, 2) == pytest.approx(4 / 3)
    for _ in range(600):
        costs.observe(1, 0, 1.0)
    assert costs.slowdown(1, 4) == 3


def test_what_a_guess_may_cost() -> None:
    """Among several it is computed apart: as long as a step for as many rows takes, where those were seen."""
    costs, shared = Costs(), Costs(apart=False)
    for each in (costs, shared):
        assert each.slowdown(8, 4) == 1.25
        for n in (2, 8):
            each.observe(n, 0, 0.01 + 0.002 * n)
    assert costs.slowdown(8, 4) == pytest.approx(1 + 0.018 / 0.026)
    assert costs.slowdown(7, 8) == pytest.approx(2)  # from the measured time of eight
    assert costs.slowdown(8, 32) == pytest.approx(3)  # 32 rows are beyond any measured step
    assert costs.slowdown(1, 4) == 3  # guesses of a lone request share its batch
    assert shared.slowdown(8, 4) == 1.25


def test_a_guess_that_many_share() -> None:
    """What one guess has cost among many, another one pays for; where steps are slow anyway it costs little."""
    costs = Costs()
    for n in (1, 16):
        costs.observe(n, 0, 1.0 + 0.1 * n)
        costs.observe(n, 3, 2.0 + 0.1 * n)
    text = list(range(100, 140))
    lookup = Lookup([*text, *text[:3]])
    lookup.follow(text[3:13])
    assert lookup.guess(costs, 1, 0, 3)
    assert not lookup.guess(costs, 16, 0, 3)
