"""Where a sound is cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offgrid_llama.media.sound_windows import SILENT, windows

RATE = 1000


def sound(*parts: tuple[float, float]) -> np.ndarray:
    """Return noise of some parts, each with its seconds and its loudness."""
    rng = np.random.default_rng(1)
    return np.concatenate([level * rng.uniform(-1, 1, int(seconds * RATE)) for seconds, level in parts]).astype(
        np.float32
    )


@given(n=st.integers(0, 5000), longest=st.floats(0.0001, 6), rate=st.sampled_from([1, 7, 1000]), quiet=st.floats(0, 1))
def test_all_of_a_sound_is_in_windows_that_are_short_enough(n: int, longest: float, rate: int, quiet: float) -> None:
    """They follow each other, and what is between them is silent; where nothing is, they are nearly as long as they may."""
    rng = np.random.default_rng(n)
    samples = (rng.uniform(-1, 1, n) * (rng.uniform(0, 1, n) >= quiet)).astype(np.float32)
    found = list(windows(samples, rate, longest))
    size = max(1, int(longest * rate))
    assert all(0 < end - begin <= size for begin, end in found)
    at = 0
    for begin, end in [*found, (n, n)]:
        assert at <= begin
        assert not len(samples[at:begin]) or np.abs(samples[at:begin]).max() < SILENT
        at = end
    if np.abs(samples).min(initial=1) >= SILENT:
        assert all(end - begin > 2 * size // 3 for begin, end in found[:-1])


def test_a_cut_is_in_a_pause() -> None:
    """The quietest pause of the last third of a window, whatever is quieter before it."""
    samples = sound((1, 0.5), (0.5, 0), (6.5, 0.5), (0.4, 0.01), (4, 0.5))
    (_, end), (begin, last) = windows(samples, RATE, 10)
    assert begin - end < 10
    assert 8 * RATE <= end <= 8.4 * RATE
    assert last == len(samples)


def test_without_a_pause_the_last_place_is_cut() -> None:
    """A steady sound is cut as late as it can be."""
    samples = np.full(15 * RATE, 0.5, np.float32)
    assert next(windows(samples, RATE, 10))[1] > 9.8 * RATE


@pytest.mark.parametrize(("level", "heard"), [(0.0, 0), (0.0009, 0), (-0.01, 1), (0.01, 1)])
def test_silence(level: float, heard: int) -> None:
    """What is 60 dB under the loudest sound is silent, whichever way it swings; it is cut off at both sides."""
    samples = np.zeros(100, np.float32)
    samples[50] = level
    assert list(windows(samples, 10, 100)) == [(50, 51)] * heard
