"""EmbeddingBatch: embeddings in place of tokens, such as those of a picture, for one decode (``llama_batch.embd``)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from offgrid_llama._capi import ffi
from offgrid_llama.native.check import number

from .batch import MAX_POS, MAX_TOKENS, Rows

__all__ = ["EmbeddingBatch"]


class EmbeddingBatch(Rows):
    """A part of one sequence, given as embeddings. A Context decodes it as it does a Batch.

    Args:
        embeddings: float32[n_tokens, n_embd], of the width ``model.n_embd_inp``. A part of a larger array is not copied.
        positions: int32[n_tokens]; int32[4, n_tokens] for a model with M-RoPE. ``MediaChunk.positions`` gives them.
        seq_id: the sequence.
        logits: the rows whose logits can be read after the decode: "none", "last" or "all".

    Raises ValueError for arrays of other shapes, and for positions below 0.

    Attributes:
        n_embd: width of the embeddings.
        n_sections: 4 for positions of M-RoPE, else 1.
    """

    _instead = "make another one of the same embeddings"

    def __init__(
        self,
        embeddings: npt.ArrayLike,
        positions: npt.ArrayLike,
        seq_id: int = 0,
        *,
        logits: Literal["none", "last", "all"] = "last",
    ) -> None:
        super().__init__()
        self._embeddings = np.ascontiguousarray(embeddings, np.float32)
        if self._embeddings.ndim != 2 or not 0 < len(self._embeddings) <= MAX_TOKENS:
            raise ValueError(f"embeddings must have the shape [n_tokens, n_embd], not {self._embeddings.shape}")
        n, self.n_embd = self._embeddings.shape
        self._positions = np.ascontiguousarray(positions, np.int32)
        if self._positions.shape not in ((n,), (4, n)):
            raise ValueError(f"positions must have the shape [{n}] or [4, {n}], not {self._positions.shape}")
        if self._positions.min() < 0 or self._positions.max() > MAX_POS:
            raise ValueError(f"positions must be from 0 to {MAX_POS}")
        self.n_sections = 4 if self._positions.ndim == 2 else 1
        if logits not in ("none", "last", "all"):
            raise ValueError(f"logits must be 'none', 'last' or 'all', not {logits!r}")
        self.logit_rows = {"none": [], "last": [n - 1], "all": list(range(n))}[logits]
        self.max_seq_id = number("seq_id", seq_id, 0)
        self._n = n
        wanted = bytearray(n)
        for row in self.logit_rows:
            wanted[row] = 1
        self._seq_ids = ffi.new("llama_seq_id[]", [self.max_seq_id])
        self._arrays: dict[str, Any] = {
            "embd": ffi.from_buffer("float[]", self._embeddings), "pos": ffi.from_buffer("llama_pos[]", self._positions),
            "n_seq_id": ffi.new("int32_t[]", [1] * n), "seq_id": ffi.new("llama_seq_id *[]", [self._seq_ids] * n),
            "logits": ffi.from_buffer("int8_t[]", wanted),
        }  # fmt: skip
        self.c = ffi.new("struct llama_batch *", {"n_tokens": n, "token": ffi.NULL, **self._arrays})

    def __repr__(self) -> str:
        return f"<EmbeddingBatch of {len(self)} x {self.n_embd}>"

    def seq_ids(self) -> set[int]:
        """Return the sequence, as the one item of a set."""
        return {self.max_seq_id}
