"""Windows: where a long sound is cut, so that each part is short enough for a model, and no word is cut in two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["windows"]

FRAME_SECONDS = 0.02
"""Of a frame, whose loudness is one number."""
PAUSE_FRAMES = 5
"""Frames of a pause. A window ends in the middle of the quietest one of this length in its last third."""
SILENT = 1e-3
"""Samples below this are silent: 60 dB under the loudest sound. Models hear words in silence."""


def windows(samples: npt.NDArray[np.float32], rate: int, longest: float) -> Iterator[tuple[int, int]]:
    """Yield the begin and the end of each window, as indices of samples, without silence at either side.

    Args:
        samples: float32[n_samples], from -1 to 1.
        rate: samples a second.
        longest: seconds of a window, at most.
    """
    begin, size = 0, max(1, int(longest * rate))
    while begin < len(samples):
        end = len(samples)
        if end - begin > size:
            begin_of_last_third = begin + 2 * size // 3
            end = begin_of_last_third + _quietest(samples[begin_of_last_third : begin + size], rate)
        heard = _heard(samples[begin:end])
        if heard is not None:
            yield begin + heard[0], begin + heard[1]
        begin = end


def _heard(samples: npt.NDArray[np.float32]) -> tuple[int, int] | None:
    """Return where there is something to hear, from the first such sample to behind the last; None if all is silent."""
    import numpy as np

    found = np.flatnonzero(np.abs(samples) >= SILENT)
    return None if not len(found) else (int(found[0]), int(found[-1]) + 1)


def _quietest(samples: npt.NDArray[np.float32], rate: int) -> int:
    """Return the middle of the quietest pause, the last one of several, as an index of samples; at least 1."""
    import numpy as np

    size = max(1, int(FRAME_SECONDS * rate))
    frames = samples[: len(samples) // size * size].reshape(-1, size)
    length = min(PAUSE_FRAMES, len(frames))
    if not length:
        return max(1, len(samples))
    power = np.einsum("ij,ij->i", frames, frames, dtype=np.float64)
    pauses = np.convolve(power, np.ones(length), "valid")
    return int((len(pauses) - 1 - np.argmin(pauses[::-1])) * size + length * size // 2) or 1
