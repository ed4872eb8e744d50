"""LlamaState: what a ``Llama`` has computed, as it is saved and loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["LlamaState"]


@dataclass(eq=False)
class LlamaState:
    """A saved state.

    Args:
        input_ids: the tokens, int32.
        scores: the logits that are kept, float32.
        n_tokens: how many tokens are in memory.
        llama_state: the context's state, as llama.cpp writes it.
        llama_state_size: its number of bytes.
        seed: the seed of the sampler.
    """

    input_ids: npt.NDArray[np.intc]
    scores: npt.NDArray[np.single]
    n_tokens: int
    llama_state: bytes
    llama_state_size: int
    seed: int
