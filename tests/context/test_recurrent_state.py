"""Memory of recurrent models: sequences are forgotten and copied as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import CLOSE, N_VOCAB, TOKENS, decode, write_gguf


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """A tiny recurrent model with random weights."""
    path: Path = tmp_path_factory.getbasetemp() / "tiny-mamba.gguf"
    rng = np.random.default_rng(3)
    n_embd, inner, state, rank, kernel = 32, 64, 8, 4, 4

    def matrix(*shape: int) -> Any:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    tensors = {
        "token_embd.weight": matrix(N_VOCAB, n_embd) * 5,
        "output_norm.weight": np.ones(n_embd, np.float32),
        "output.weight": matrix(N_VOCAB, n_embd),
        "blk.0.attn_norm.weight": np.ones(n_embd, np.float32),
        "blk.0.ssm_in.weight": matrix(2 * inner, n_embd),
        "blk.0.ssm_conv1d.weight": matrix(inner, kernel),
        "blk.0.ssm_conv1d.bias": matrix(inner),
        "blk.0.ssm_x.weight": matrix(rank + 2 * state, inner),
        "blk.0.ssm_dt.weight": matrix(inner, rank),
        "blk.0.ssm_dt.bias": matrix(inner),
        "blk.0.ssm_a": -np.abs(matrix(inner, state)),
        "blk.0.ssm_d": matrix(inner),
        "blk.0.ssm_out.weight": matrix(n_embd, inner),
    }
    keys: dict[str, str | int | float] = {
        "general.architecture": "mamba",
        "mamba.context_length": 512,
        "mamba.embedding_length": n_embd,
        "mamba.block_count": 1,
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.ssm.conv_kernel": kernel,
        "mamba.ssm.inner_size": inner,
        "mamba.ssm.state_size": state,
        "mamba.ssm.time_step_rank": rank,
        "mamba.attention.layer_norm_rms_epsilon": 1e-5,
        "mamba.vocab_size": N_VOCAB,
        "tokenizer.ggml.model": "none",
    }
    write_gguf(path, keys, tensors)
    with og.Model(path) as model:
        yield model


def test_a_recurrent_state_is_whole(mamba: og.Model) -> None:
    """A recurrent model forgets and copies whole sequences only: remove() of a part says False and changes nothing."""
    assert mamba.is_recurrent
    with og.Context(mamba, n_ctx=512, n_seq_max=2, n_threads=1) as context:
        assert not context.memory.can_trim
        whole = decode(context, TOKENS, 0, 0)[-1]
        for p0, p1 in [(4, 8), (0, 8), (-1, 15), (15, -1), (1, -1)]:
            assert context.memory.remove(0, p0, p1) is False
            assert context.memory.remove(-1, p0, p1) is False
            assert context.memory.positions(0).stop == 16
        for p0, p1 in [(16, -1), (20, 30), (5, 5), (9, 3)]:  # nothing is there
            assert context.memory.remove(0, p0, p1) is True
        context.memory.copy(0, 1)
        one, two = decode(context, [5], 16, 0), decode(context, [5], 16, 1)
        np.testing.assert_allclose(one, two, rtol=0, atol=CLOSE)
        assert context.memory.remove(0) is True
        assert [context.memory.positions(seq).stop for seq in (0, 1)] == [0, 17]
        np.testing.assert_allclose(decode(context, TOKENS, 0, 0)[-1], whole, rtol=0, atol=CLOSE)
        assert context.memory.remove(-1) is True
        assert [context.memory.positions(seq) for seq in (0, 1)] == [range(0), range(0)]
        np.testing.assert_allclose(decode(context, TOKENS, 0, 1)[-1], whole, rtol=0, atol=CLOSE)
