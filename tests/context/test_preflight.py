"""Batches and contexts that cannot be are refused before llama.cpp sees them."""

from __future__ import annotations

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import CLOSE, EXACT, N_VOCAB, TOKENS, Array, Twin, Weights, decode


def test_a_batch_that_is_too_long(tiny: og.Model) -> None:
    """A batch over n_batch is refused, where llama.h would abort."""
    with og.Context(tiny, n_ctx=256, n_batch=8, n_threads=1) as context:
        batch = og.Batch(9)
        batch.add_sequence(TOKENS[:9])
        with pytest.raises(ValueError, match="n_batch=8"):
            context.decode(batch)
        decode(context, TOKENS[:8])


def test_a_non_causal_batch_fits_a_micro_batch(tiny: og.Model) -> None:
    """Without a causal mask a batch cannot be split into micro-batches, and a longer one is refused."""
    with og.Context(tiny, n_ctx=256, n_ubatch=8, attention_type="non_causal", n_threads=1) as context:
        with pytest.raises(ValueError, match="n_ubatch=8"):
            decode(context, TOKENS[:9])
        decode(context, TOKENS[:8])


def test_an_empty_batch(tiny: og.Model) -> None:
    """An empty batch is refused."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context, pytest.raises(ValueError, match="empty"):
        context.decode(og.Batch(3))


def test_tokens_and_sequences_that_are_not_there(tiny: og.Model) -> None:
    """Tokens over the vocabulary and sequences over n_seq_max are refused with their range, and memory stays as it was."""
    with og.Context(tiny, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        for token, seq, text in [(N_VOCAB, 0, "0 to 60"), (2**31 - 1, 0, "0 to 60"), (5, 2, "n_seq_max=2")]:
            batch = og.Batch(2)
            batch.add(1, 0, [0])
            batch.add(token, 1, [seq])
            with pytest.raises(ValueError, match=text):
                context.decode(batch)
        assert context.memory.positions(0) == range(0)
        batch = og.Batch(1)
        batch.add(N_VOCAB - 1, 0, [1])
        context.decode(batch)


@pytest.mark.parametrize(("unified", "n_ubatch"), [(False, 512), (False, 16), (True, 16)])
def test_a_full_cache(
    unified: bool, n_ubatch: int, tiny: og.Model, weights: Weights, long_text: tuple[list[int], Array]
) -> None:
    """A batch that finds no room is NoKVSlot; memory is as before, also when its first micro-batches would have fit."""
    tokens, expected = long_text
    with og.Context(tiny, n_ctx=256, n_ubatch=n_ubatch, kv_unified=unified, **EXACT) as context:
        assert context.n_ctx == 256
        begin = len(tokens) - 16
        decode(context, tokens[:begin])
        with pytest.raises(og.NoKVSlot) as caught:
            decode(context, TOKENS + TOKENS, begin)
        assert (caught.value.code, caught.value.memory_restored) == (1, True)
        assert "no room" in str(caught.value)
        assert any("memory slot" in line for line in caught.value.log)
        assert context.memory.positions(0) == range(begin)
        np.testing.assert_allclose(decode(context, tokens[begin:], begin), expected, rtol=0, atol=CLOSE)
        context.memory.remove(0, 10, -1)
        got = decode(context, TOKENS, 10)
        np.testing.assert_allclose(got, Twin(weights).sequence(tokens[:10] + TOKENS)[10:], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("positions", [[20], [3], [15, 17], [16, 18], [17, 16]])
def test_a_gap_in_positions(positions: list[int], tiny: og.Model, weights: Weights) -> None:
    """Positions that do not go on where the sequence ends are InvalidBatch, and memory is as before."""
    with og.Context(tiny, n_ctx=256, **EXACT) as context:
        decode(context, TOKENS)
        batch = og.Batch(4)
        for pos in positions:
            batch.add(5, pos, [0])
        with pytest.raises(og.InvalidBatch) as caught:
            context.decode(batch)
        assert (caught.value.code, caught.value.memory_restored) == (-1, True)
        assert "sequence 0" in str(caught.value)
        assert context.memory.positions(0) == range(16)
        got = decode(context, [7], 16)
        np.testing.assert_allclose(got, Twin(weights).sequence([*TOKENS, 7])[16:], rtol=0, atol=CLOSE)
