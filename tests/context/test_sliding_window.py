"""Memory with a sliding window: what it forgets, and where it can be trimmed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import CLOSE, EXACT, N_VOCAB, decode, write_gguf


@pytest.fixture(scope="module")
def sliding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """A tiny model of Gemma 3's architecture: six layers with a window of 16 tokens, then one without."""
    path: Path = tmp_path_factory.getbasetemp() / "tiny-gemma.gguf"
    rng = np.random.default_rng(11)
    n_embd, n_ff, n_head, head, n_layer = 64, 96, 2, 32, 7

    def matrix(rows: int, columns: int, scale: float = 1.5) -> Any:
        return (rng.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)

    def norm(size: int = n_embd) -> Any:
        return (1 + 0.1 * rng.standard_normal(size)).astype(np.float32)

    tensors = {"token_embd.weight": matrix(N_VOCAB, n_embd, 3.0), "output_norm.weight": norm()}
    for i in range(n_layer):
        tensors |= {
            f"blk.{i}.{name}.weight": matrix(rows, columns)
            for name, rows, columns in [
                ("attn_q", n_head * head, n_embd),
                ("attn_k", head, n_embd),
                ("attn_v", head, n_embd),
                ("attn_output", n_embd, n_head * head),
                ("ffn_gate", n_ff, n_embd),
                ("ffn_up", n_ff, n_embd),
                ("ffn_down", n_embd, n_ff),
            ]
        }
        for name in ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"):
            tensors[f"blk.{i}.{name}.weight"] = norm()
        for name in ("attn_q_norm", "attn_k_norm"):
            tensors[f"blk.{i}.{name}.weight"] = norm(head)
    keys: dict[str, str | int | float] = {
        "general.architecture": "gemma3",
        "gemma3.context_length": 4096,
        "gemma3.embedding_length": n_embd,
        "gemma3.block_count": n_layer,
        "gemma3.feed_forward_length": n_ff,
        "gemma3.attention.head_count": n_head,
        "gemma3.attention.head_count_kv": 1,
        "gemma3.attention.key_length": head,
        "gemma3.attention.value_length": head,
        "gemma3.attention.sliding_window": 16,
        "gemma3.attention.layer_norm_rms_epsilon": 1e-6,
        "gemma3.vocab_size": N_VOCAB,
        "tokenizer.ggml.model": "none",
    }
    write_gguf(path, keys, tensors)
    with og.Model(path) as model:
        assert model.n_swa == 16
        yield model


LONG = [(7 * i * i + 3 * i) % N_VOCAB for i in range(700)]
SLIDING: dict[str, Any] = EXACT | {"n_ctx": 1024, "n_ubatch": 16}


def feed(context: og.Context, begin: int, end: int) -> Any:
    """Decode a part of LONG and return the logits of its last token."""
    for pos in range(begin, end, 50):
        logits = decode(context, LONG[pos : min(pos + 50, end)], pos)
    return logits[-1]


def test_a_sliding_window_forgets(sliding: og.Model) -> None:
    """Without swa_full the tokens that no later one can see are dropped, and the results are the same."""
    with og.Context(sliding, swa_full=True, **SLIDING) as full, og.Context(sliding, swa_full=False, **SLIDING) as short:
        np.testing.assert_allclose(feed(short, 0, 700), feed(full, 0, 700), rtol=0, atol=CLOSE)
        assert full.memory.positions(0) == range(700)
        positions = short.memory.positions(0)
        assert positions.stop == 700
        assert 0 < positions.start <= 684


def test_a_full_sliding_window_can_be_trimmed(sliding: og.Model) -> None:
    """With swa_full a sequence can be cut anywhere and goes on as if the rest had never been."""
    with og.Context(sliding, swa_full=True, **SLIDING) as context:
        expected = feed(context, 0, 102)
        context.memory.clear()
        feed(context, 0, 700)
        assert context.memory.remove(0, 101, -1) is True
        assert context.memory.positions(0) == range(101)
        np.testing.assert_allclose(feed(context, 101, 102), expected, rtol=0, atol=CLOSE)


def test_a_sliding_window_that_moved_on_cannot_be_trimmed(sliding: og.Model) -> None:
    """Without swa_full remove() says False where the next token would miss its window, and changes nothing."""
    with og.Context(sliding, swa_full=False, **SLIDING) as context:
        expected = feed(context, 0, 701 - 1)
        there = context.memory.positions(0)
        for p0, p1 in [(101, -1), (1, 700), (there.start + 14, -1)]:
            assert context.memory.remove(0, p0, p1) is False
            assert context.memory.remove(-1, p0, p1) is False
            assert context.memory.positions(0) == there
        assert context.memory.remove(0, 699, -1) is True
        np.testing.assert_allclose(feed(context, 699, 700), expected, rtol=0, atol=CLOSE)
        assert context.memory.remove(0, there.start + 15, -1) is True
        with og.Context(sliding, swa_full=True, **SLIDING) as full:
            expected = feed(full, 0, there.start + 16)
        np.testing.assert_allclose(feed(context, there.start + 15, there.start + 16), expected, rtol=0, atol=CLOSE)
        assert context.memory.remove(0) is True
        assert context.memory.positions(0) == range(0)
        with og.Context(sliding, swa_full=True, **SLIDING) as full:
            np.testing.assert_allclose(feed(context, 0, 60), feed(full, 0, 60), rtol=0, atol=CLOSE)


def test_what_can_be_trimmed(sliding: og.Model, tiny: og.Model) -> None:
    """The end of a sequence can be removed unless the layers with a window keep the last positions only."""
    for model, swa_full, can_trim in [(sliding, True, True), (sliding, False, False), (tiny, False, True)]:
        with og.Context(model, n_ctx=256, swa_full=swa_full) as context:
            assert context.memory.can_trim is can_trim
