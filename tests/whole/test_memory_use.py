"""Memory: the file is mapped, contexts share the weights, and what is closed comes back. Figures: bench/memory.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import offgrid_llama as og

if TYPE_CHECKING:
    from helpers.children import RunChild

MB = 2**20
pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


def resident(key: str = "VmRSS") -> int:
    """Return a line of /proc/self/status in bytes."""
    match = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert match
    return int(match[1]) * 1024


CYCLES = """
    import ctypes, gc, re, sys
    from pathlib import Path
    import offgrid_llama as og

    give_back = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)

    def resident():
        gc.collect()
        give_back(0)
        return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

    seen = []
    for i in range(145):
        with og.Model(sys.argv[1]) as model, og.Context(model, n_ctx=64, n_outputs_max=1) as context:
            batch = og.Batch(4)
            batch.add_sequence([1, 2, 3, 4])
            context.decode(batch)
        if 80 <= i < 85 or i >= 140:
            seen.append(resident())
    print(*seen)
"""


def test_cycles_give_their_memory_back(smollm2_path: Path, run_child: RunChild) -> None:
    """Sixty cycles of open, decode and close make the resident size grow by less than 1 MB after a warm-up of eighty.

    They do it in a process of their own, because other tests have left objects in this one, which may be freed at any
    time. What glibc keeps of freed memory differs by some MB from one cycle to the next: five looks at each end tell more
    than one.
    """
    done = run_child(CYCLES, smollm2_path, timeout=600, env={"PYTHONMALLOC": "pymalloc"})
    assert done.returncode == 0, done.stderr
    seen = [int(each) for each in done.stdout.split()]
    assert min(seen[5:]) - max(seen[:5]) < MB, seen


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
