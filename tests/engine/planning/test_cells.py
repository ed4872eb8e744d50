"""Cells: the count of taken cells is right, however sequences share them."""

from __future__ import annotations

import random

import pytest

from offgrid_llama.engine.planning.cells import Cells


@pytest.mark.parametrize("seed", range(100))
def test_against_real_cells(seed: int) -> None:
    """Sequences that grow, share what they begin with, and are cut."""
    rng = random.Random(seed)
    cells = Cells(1000)
    real: list[list[object]] = [[] for _ in range(4)]
    for _ in range(200):
        seq = rng.randrange(4)
        match rng.choice(["add", "share", "cut", "drop"]):
            case "add":
                n = rng.randint(0, 20)
                cells.add(seq, n)
                real[seq] += [object() for _ in range(n)]
            case "share":
                target = rng.choice([other for other in range(4) if other != seq])
                length = rng.randint(0, len(real[seq]))
                cells.cut(target, 0)
                cells.share(seq, target, length)
                real[target] = real[seq][:length]
            case "cut":
                length = rng.randint(0, len(real[seq]))
                cells.cut(seq, length)
                del real[seq][length:]
            case "drop":
                cells.cut(seq, 0)
                real[seq].clear()
        taken = len({cell for own in real for cell in own})
        assert cells.free == 1000 - taken
    for seq in range(4):
        cells.cut(seq, 0)
    assert cells.free == 1000


def test_what_is_shared_counts_once() -> None:
    """Eight that begin with the same thousand take little more than one."""
    cells = Cells(2000)
    cells.add(0, 1010)
    for seq in range(1, 8):
        cells.share(0, seq, 1010)
        cells.add(seq, 10)
    assert cells.free == 2000 - 1010 - 70
    cells.cut(0, 0)
    assert cells.free == 2000 - 1010 - 70
    for seq in range(1, 8):
        cells.cut(seq, 0)
    assert cells.free == 2000
