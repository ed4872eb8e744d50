"""ChunkPace: it learns what a step costs in any case, and what each row costs."""

from __future__ import annotations

import pytest

from offgrid_llama.engine.planning.chunk_pace import FIRST_ROWS, MIN_ROWS, ChunkPace


@pytest.mark.parametrize(("fixed", "row"), [(0.01, 0.001), (0.0, 0.002), (0.03, 0.0005)])
def test_steps_take_what_they_may(fixed: float, row: float) -> None:
    """After some steps they have as many rows as fit into the time, with a part of it that no row takes."""
    pace = ChunkPace()
    assert pace.rows(0.1) == FIRST_ROWS
    for _ in range(12):
        n = pace.rows(0.1)
        pace.observe(n, fixed + row * n)
    assert fixed + row * pace.rows(0.1) == pytest.approx(0.1, rel=0.1)


def test_a_step_has_some_rows() -> None:
    """However little time there is, a step has some rows; a slow step now and then changes little."""
    pace = ChunkPace()
    pace.observe(32, 1.0)
    assert pace.rows(0.001) == MIN_ROWS
    for n in (40, 60, 50, 60):
        pace.observe(n, 0.01 + 0.001 * n)
    before = pace.rows(0.1)
    pace.observe(before, 0.3)
    for _ in range(4):
        pace.observe(before, 0.1)
    assert pace.rows(0.1) > before / 2
