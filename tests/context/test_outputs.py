"""Rows of a decode: which can be read, where they are found, and what a failed decode leaves of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import CLOSE, EXACT, N_VOCAB, TOKENS, Twin, Weights, decode


def test_only_rows_that_asked_can_be_read(tiny: og.Model) -> None:
    """A row without logits is refused, where llama.h would abort; -1 is the last row with logits."""
    with og.Context(tiny, n_ctx=256, **EXACT) as context:
        batch = og.Batch(8)
        for pos, token in enumerate(TOKENS[:6]):
            batch.add(token, pos, [0], logits=pos in (1, 4))
        context.decode(batch)
        for row in (0, 2, 3, 5, 6, 100, -3, 2**31, -(2**31)):
            for method in (context.logits, context.argmax):
                with pytest.raises(ValueError, match="row"):
                    method(row)
        assert context.logits(-1).row == context.logits(4).row == 4
        assert context.logits(-2).row == 1
        assert context.argmax(-1) == context.argmax(4) == int(np.argmax(context.logits(4).copy()))
        assert not np.array_equal(context.logits(1).copy(), context.logits(4).copy())
        assert context.argmax(int(np.int64(4))) == context.argmax(np.int64(4))
        bad: Any
        for bad in (None, 1.0, "1"):
            for method in (context.logits, context.argmax):
                with pytest.raises(TypeError, match="row must be an int"):
                    method(bad)


def test_rows_before_the_first_decode(tiny: og.Model) -> None:
    """Before a decode there is nothing to read, and the error says so."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        for row in (0, -1):
            with pytest.raises(ValueError, match="0 rows with logits"):
                context.logits(row)
            with pytest.raises(ValueError, match="0 rows with logits"):
                context.argmax(row)


def test_a_failed_decode_leaves_no_rows(tiny: og.Model) -> None:
    """After a decode that failed, the rows of the one before are gone."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        with pytest.raises(og.InvalidBatch):
            decode(context, TOKENS, 100)
        with pytest.raises(ValueError, match="0 rows with logits"):
            context.logits(-1)


def test_rows_of_several_micro_batches(tiny: og.Model, weights: Weights) -> None:
    """Rows are found where they are, also when llama.cpp computed them in another order."""
    texts = [TOKENS, TOKENS[4:9], TOKENS[::-1]]
    with og.Context(tiny, n_ctx=768, n_seq_max=3, n_ubatch=4, **EXACT) as context:
        batch = og.Batch(64)
        wanted = []
        for seq, text in enumerate(texts):
            for pos, token in enumerate(text):
                row = batch.add(token, pos, [seq], logits=pos % 3 == seq)
                if pos % 3 == seq:
                    wanted.append((row, seq, pos))
        context.decode(batch)
        expected = [Twin(weights).sequence(text) for text in texts]
        for row, seq, pos in wanted:
            np.testing.assert_allclose(context.logits(row), expected[seq][pos], rtol=0, atol=CLOSE)


def test_n_outputs_max(tiny: og.Model) -> None:
    """More rows with logits than n_outputs_max are refused before anything is computed."""
    with og.Context(tiny, n_ctx=256, n_outputs_max=2, n_threads=1) as context:
        batch = og.Batch(4)
        for pos in range(3):
            batch.add(5, pos, [0], logits=True)
        with pytest.raises(ValueError, match="n_outputs_max=2"):
            context.decode(batch)
        assert context.memory.positions(0) == range(0)
        batch.clear()
        batch.add(5, 0, [0], logits=True)
        batch.add(5, 1, [0])
        batch.add(5, 2, [0], logits=True)
        context.decode(batch)
        assert len(context.logits(2)) == N_VOCAB


def test_embeddings_make_every_row_readable(tiny: og.Model, weights: Weights) -> None:
    """A context that computes embeddings has logits for each row."""
    with og.Context(tiny, n_ctx=256, embeddings=True, **EXACT) as context:
        batch = og.Batch(16)
        batch.add_sequence(TOKENS, logits="none")
        context.decode(batch)
        got = [context.logits(row).copy() for row in range(len(TOKENS))]
        np.testing.assert_allclose(got, Twin(weights).sequence(TOKENS), rtol=0, atol=CLOSE)


def test_argmax(tiny: og.Model) -> None:
    """argmax() is NumPy's, for every row."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        expected = decode(context, TOKENS).argmax(axis=1)
        assert [context.argmax(row) for row in range(len(TOKENS))] == list(expected)
