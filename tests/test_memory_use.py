"""Memory: the file is mapped, contexts share the weights, and what is closed comes back. Figures: bench/memory.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import offgrid_llama as og

MB = 2**20
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def resident(key: str = "VmRSS") -> int:
    """Return a line of /proc/self/status in bytes."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert match
    return int(match[1]) * 1024


def cycle(path: Path) -> None:
    """Open, decode, close."""
    with og.Model(path) as model, og.Context(model, n_ctx=64, n_outputs_max=1) as context:
        batch = og.Batch(4)
        batch.add_sequence([1, 2, 3, 4])
        context.decode(batch)


def test_cycles_give_their_memory_back(smollm2_path: Path) -> None:
    """Sixty cycles of open, decode and close move the resident size by less than 2 MB after a warm-up."""
    for _ in range(10):
        cycle(smollm2_path)
    before = resident()
    for _ in range(60):
        cycle(smollm2_path)
    assert abs(resident() - before) < 2 * MB


def test_the_file_is_mapped(smollm2_path: Path) -> None:
    """A loaded model's weights are pages of the file, not of the process."""
    with og.Model(smollm2_path) as model:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
        assert str(smollm2_path.resolve()) in maps
        assert model.size > 80 * MB


def test_two_contexts_share_the_weights(smollm2_path: Path) -> None:
    """A second context on a model takes a small part of what the model takes."""

    def context() -> og.Context:
        made = og.Context(model, n_ctx=64, n_outputs_max=1)
        batch = og.Batch(4)
        batch.add_sequence([1, 2, 3, 4])
        made.decode(batch)
        return made

    with og.Model(smollm2_path) as model, context():
        before = resident()
        with context():
            assert resident() - before < model.size / 4
