"""Encoders and their decoders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import N_VOCAB, TOKENS, Array, decode, write_gguf


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """A tiny encoder-decoder model with random weights."""
    path = tmp_path_factory.getbasetemp() / "tiny-t5.gguf"
    rng = np.random.default_rng(5)
    n_embd, n_ff, n_head, head = 32, 48, 2, 16

    def matrix(rows: int, columns: int) -> Array:
        return np.asarray(rng.standard_normal((rows, columns)) / np.sqrt(columns), np.float32)

    tensors = {
        "token_embd.weight": matrix(N_VOCAB, n_embd) * 8,
        "enc.output_norm.weight": np.ones(n_embd, np.float32),
        "dec.output_norm.weight": np.ones(n_embd, np.float32),
        "output.weight": matrix(N_VOCAB, n_embd) * 3,
    }
    for side, attentions in [("enc", ["attn"]), ("dec", ["attn", "cross_attn"])]:
        block = f"{side}.blk.0"
        tensors[f"{block}.attn_rel_b.weight"] = matrix(8, n_head)
        for attention in attentions:
            tensors[f"{block}.{attention}_norm.weight"] = np.ones(n_embd, np.float32)
            for name in "qkv":
                tensors[f"{block}.{attention}_{name}.weight"] = matrix(n_head * head, n_embd)
            tensors[f"{block}.{attention}_o.weight"] = matrix(n_embd, n_head * head) * 3
        tensors[f"{block}.ffn_norm.weight"] = np.ones(n_embd, np.float32)
        tensors[f"{block}.ffn_up.weight"] = matrix(n_ff, n_embd)
        tensors[f"{block}.ffn_down.weight"] = matrix(n_embd, n_ff)
    keys: dict[str, str | int | float] = {
        "general.architecture": "t5",
        "t5.context_length": 512,
        "t5.embedding_length": n_embd,
        "t5.block_count": 1,
        "t5.feed_forward_length": n_ff,
        "t5.attention.head_count": n_head,
        "t5.attention.key_length": head,
        "t5.attention.value_length": head,
        "t5.attention.layer_norm_epsilon": 1e-6,
        "t5.attention.layer_norm_rms_epsilon": 1e-6,
        "t5.attention.relative_buckets_count": 8,
        "t5.decoder_start_token_id": 0,
        "t5.vocab_size": N_VOCAB,
        "tokenizer.ggml.model": "none",
    }
    write_gguf(path, keys, tensors)
    with og.Model(path) as model:
        yield model


def test_an_encoder_and_its_decoder(t5: og.Model) -> None:
    """A decoder that reads an encoder waits for encode(), and its logits follow from what was encoded."""
    assert (t5.has_encoder, t5.has_decoder, t5.decoder_start_token) == (True, True, 0)
    with og.Context(t5, n_ctx=256, n_threads=1, n_ubatch=32) as context:
        with pytest.raises(og.ContextError, match="encode"):
            decode(context, [0])

        def answer(text: Sequence[int]) -> Array:
            batch = og.Batch(33)
            batch.add_sequence(text, logits="all")
            context.memory.clear()
            context.encode(batch)
            return np.asarray(decode(context, [0, 5])[-1])

        one, two = answer(TOKENS), answer(TOKENS[::-1])
        np.testing.assert_allclose(answer(TOKENS), one, rtol=0, atol=1e-5)
        assert np.abs(one - two).max() > 0.01
        with pytest.raises(ValueError, match="n_ubatch=32"):
            answer(TOKENS + TOKENS + [1])


def test_an_encoder_is_needed_to_encode(tiny: og.Model) -> None:
    """encode() on a decoder-only model is refused, where llama.h would crash."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        batch = og.Batch(1)
        batch.add(1, 0, [0])
        with pytest.raises(og.ContextError, match="no encoder"):
            context.encode(batch)
