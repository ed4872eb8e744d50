"""Every network without a memory, and every encoder with its decoder: texts in one batch do not disturb each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.kinds import FELT, OTHER, TEXT, WITH_MEMORY, Rows, alone, architecture, each, of_kind, open_context, same
from helpers.twin import decode

# Encoders -------------------------------------------------------------------------------------------------------------


def embedded(context: og.Context, texts: Sequence[Sequence[int]]) -> list[Rows]:
    """Return the embeddings of texts that one batch computes: of each row where nothing is pooled, else one a text."""
    batch = og.Batch(sum(map(len, texts)))
    rows = [batch.add_sequence(text, seq_id=seq, logits="all") for seq, text in enumerate(texts)]
    (context.encode if context.model.has_encoder else context.decode)(batch)
    if context.pooling_type is og.PoolingType.NONE:
        return [np.array([context.embeddings(row) for row in rows[seq]]) for seq in range(len(texts))]
    return [context.sequence_embedding(seq) for seq in range(len(texts))]


@each(*of_kind("encoder", "diffusion"))
@pytest.mark.parametrize("pooling_type", ["none", "mean", "cls", "last"])
def test_embeddings(pooling_type: str, model: og.Model) -> None:
    """The embeddings of texts in one batch are those of each alone."""
    check_embeddings(pooling_type, model)


@each(*WITH_MEMORY)
def test_embeddings_of_decoders(model: og.Model) -> None:
    """So are those of generative models, except one, where llama.cpp reads out of bounds and aborts."""
    if architecture(model).name == "deepseek4":
        with pytest.raises(og.ContextError, match="embeddings of deepseek4"):
            open_context(model, n_seq_max=1, embeddings=True)
        return
    check_embeddings("mean", model)


def check_embeddings(pooling_type: str, model: og.Model) -> None:
    texts = [TEXT[:13], OTHER, TEXT[5:6], TEXT[3:]]
    options: dict[str, Any] = {"embeddings": True, "pooling_type": pooling_type, "unified": True}
    with open_context(model, **options) as context:
        together = embedded(context, texts)
    for text, expected in zip(texts, together, strict=True):
        with open_context(model, n_seq_max=1, **options) as context:
            (found,) = embedded(context, [text])
        assert np.isfinite(found).all()
        assert np.abs(found).max() > FELT
        same(found, expected)


@each(*of_kind("encoder", "diffusion"))
def test_no_memory(model: og.Model) -> None:
    """Encoders see the whole text at once, the later tokens too: they have no memory, and a batch cannot be split."""
    options: dict[str, Any] = {"embeddings": True, "pooling_type": "none", "n_seq_max": 1, "n_ubatch": 16}
    with open_context(model, **options) as context:
        (rows,) = embedded(context, [TEXT[:12]])
        (other,) = embedded(context, [[*TEXT[:11], 0]])
        assert np.abs(rows[0] - other[0]).max() > FELT
        with pytest.raises(ValueError, match="n_ubatch=16"):
            embedded(context, [TEXT])
        if model.has_encoder:
            with pytest.raises(og.ContextError, match="no decoder"):
                decode(context, TEXT[:4])
            return
        with pytest.raises(og.ContextError, match="no encoder"):
            context.encode(og.Batch(4))
        for call in (context.memory.clear, lambda: context.memory.positions(0), context.save_state):
            with pytest.raises(og.ContextError, match="no memory"):
                call()


@each(*of_kind("diffusion"))
def test_logits_of_a_diffusion_model(model: og.Model) -> None:
    """A diffusion model gives the logits of the whole text at once; two texts in one batch do not see each other."""
    with open_context(model, unified=True) as context:
        batch = og.Batch(64)
        rows = [batch.add_sequence(text, seq_id=seq, logits="all") for seq, text in enumerate((TEXT, OTHER))]
        context.decode(batch)
        found = [np.array([context.logits(row).copy() for row in rows[seq]]) for seq in range(2)]
    same(found[0], alone(model, tuple(TEXT)))
    same(found[1], alone(model, tuple(OTHER)))


# Encoder and decoder --------------------------------------------------------------------------------------------------


def read(context: og.Context, *sources: tuple[Sequence[int], list[int]]) -> None:
    """Let the encoder read texts, each for some sequences."""
    batch = og.Batch(64)
    for tokens, seq_ids in sources:
        for pos, token in enumerate(tokens):
            batch.add(token, pos, seq_ids)
    context.encode(batch)


def translated(model: og.Model, source: Sequence[int], text: Sequence[int]) -> Rows:
    """Return the rows of a text whose decoder reads ``source``, from a context of its own."""
    with open_context(model, n_seq_max=1) as context:
        read(context, (source, [0]))
        return decode(context, text)


@each("t5")
def test_a_decoder_reads_what_was_encoded(model: og.Model) -> None:
    """However the text is cut, each sequence reads its own source, and going back and copies work as elsewhere."""
    first, second = translated(model, OTHER, TEXT), translated(model, TEXT[3:8], TEXT)
    assert np.abs(first - second).max(axis=1).min() > FELT
    with open_context(model, unified=True, n_ubatch=32) as context:
        read(context, (OTHER, [0, 2]), (TEXT[3:8], [1]))
        same(decode(context, TEXT[:9], 0, 0), first[:9])
        same(decode(context, TEXT[:9], 0, 1), second[:9])
        context.memory.copy(0, 2)
        state = context.save_state(1)
        for pos, token in enumerate(TEXT[9:], 9):
            same(decode(context, [token], pos, 0)[0], first[pos])
        same(decode(context, TEXT[9:], 9, 2), first[9:])
        same(decode(context, TEXT[9:], 9, 1), second[9:])
        assert context.memory.remove(1, 5) is True
        same(decode(context, TEXT[5:], 5, 1), second[5:])
    with open_context(model, unified=True) as context:
        read(context, (TEXT[3:8], [3]))  # no part of the state
        context.load_state(state, 3)
        same(decode(context, TEXT[9:], 9, 3), second[9:])


@each("t5")
def test_a_decoder_with_nothing_to_read(model: og.Model) -> None:
    """A sequence that the encoder has read nothing for is refused, where llama.h aborts or attends to nothing."""
    with open_context(model, unified=True) as context:
        with pytest.raises(og.ContextError, match="sequence 0 has nothing to read; call encode"):
            decode(context, TEXT)
        read(context, (OTHER, [1]))
        with pytest.raises(og.ContextError, match="sequence 2 has nothing to read"):
            decode(context, TEXT, 0, 2)
        same(decode(context, TEXT, 0, 1), translated(model, OTHER, TEXT))
        read(context, (OTHER, [2]))
        with pytest.raises(og.ContextError, match="sequence 1 has nothing to read"):
            decode(context, TEXT, len(TEXT), 1)


@each("t5")
def test_contexts_that_an_encoder_decoder_cannot_have(model: og.Model) -> None:
    """Separate streams, where llama.h aborts, and a pooled encoder, which leaves nothing to read, are refused."""
    with pytest.raises(og.ContextError, match="kv_unified=True"):
        open_context(model)
    with (
        open_context(model, unified=True, embeddings=True, pooling_type="mean") as context,
        pytest.raises(og.ContextError, match="none"),
    ):
        read(context, (OTHER, [0]))
