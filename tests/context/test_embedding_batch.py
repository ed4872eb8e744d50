"""EmbeddingBatch: embeddings in place of tokens give what the tokens give; what no Context takes is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import CLOSE, EXACT, N_EMBD, TOKENS, Weights


def test_embeddings_of_tokens_are_tokens(tiny: og.Model, weights: Weights) -> None:
    """The rows of the model's own table give the logits of its tokens, all of them, in any sequence."""
    rows = weights["token_embd.weight"][TOKENS]
    with og.Context(tiny, n_ctx=64, n_seq_max=2, **EXACT) as context:
        batch = og.Batch(len(TOKENS))
        batch.add_sequence(TOKENS, logits="all")
        context.decode(batch)
        expected = [context.logits(row).copy() for row in batch.rows]
        embedded = og.EmbeddingBatch(rows, np.arange(len(TOKENS)), 1, logits="all")
        context.decode(embedded)
        assert embedded.rows == batch.rows
        for row in embedded.rows:
            assert np.abs(np.asarray(context.logits(row)) - expected[row]).max() < CLOSE
        assert context.memory.positions(1) == context.memory.positions(0)


def test_only_the_rows_that_asked(tiny: og.Model, weights: Weights) -> None:
    """``logits`` says which rows can be read."""
    rows = weights["token_embd.weight"][TOKENS[:3]]
    with og.Context(tiny, n_ctx=64, **EXACT) as context:
        context.decode(og.EmbeddingBatch(rows, [0, 1, 2]))
        context.logits(2)
        with pytest.raises(ValueError, match="row 1"):
            context.logits(1)
        context.decode(og.EmbeddingBatch(rows, [3, 4, 5], logits="none"))
        with pytest.raises(ValueError, match="row 2"):
            context.logits(2)


@pytest.mark.parametrize(
    ("embeddings", "positions", "options", "said"),
    [
        (np.zeros((0, 4)), [], {}, "n_tokens, n_embd"),
        (np.zeros(4), [0], {}, "n_tokens, n_embd"),
        (np.zeros((2, 4)), [0], {}, r"\[2\] or \[4, 2\]"),
        (np.zeros((2, 4)), [[0, 1]], {}, r"\[2\] or \[4, 2\]"),
        (np.zeros((2, 4)), [-1, 0], {}, "positions must be from 0"),
        (np.zeros((2, 4)), [0, 2**30 + 1], {}, "positions must be from 0"),
        (np.zeros((2, 4)), [0, 1], {"seq_id": -1}, "seq_id"),
        (np.zeros((2, 4)), [0, 1], {"logits": "first"}, "logits must be"),
    ],
)
def test_batches_that_are_refused(embeddings: Any, positions: Any, options: dict[str, Any], said: str) -> None:
    """Arrays of other shapes, and values that no decode takes."""
    with pytest.raises(ValueError, match=said):
        og.EmbeddingBatch(embeddings, positions, **options)


def test_batches_that_a_context_refuses(tiny: og.Model) -> None:
    """Another width, the positions of M-RoPE, an unknown sequence, and too many rows."""
    with og.Context(tiny, n_ctx=64, n_batch=8, **EXACT) as context:
        with pytest.raises(ValueError, match=f"embeddings of 3 values; the model takes {N_EMBD}"):
            context.decode(og.EmbeddingBatch(np.zeros((2, 3)), [0, 1]))
        with pytest.raises(ValueError, match=r"positions of the shape \[2\]"):
            context.decode(og.EmbeddingBatch(np.zeros((2, N_EMBD)), np.zeros((4, 2))))
        with pytest.raises(ValueError, match="seq_ids"):
            context.decode(og.EmbeddingBatch(np.zeros((2, N_EMBD)), [0, 1], 1))
        with pytest.raises(ValueError, match="n_batch=8"):
            context.decode(og.EmbeddingBatch(np.zeros((9, N_EMBD)), np.arange(9)))
