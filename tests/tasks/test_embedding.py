"""Embeddings: rows and sequences of a context against NumPy, and the Embedder on a real sentence model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers import minilm
from helpers.twin import CLOSE, EXACT, N_EMBD, N_VOCAB, TOKENS, Twin, Weights
from offgrid_llama.native.enums import PoolingName
from offgrid_llama.tasks.pooled import packed

GOLDEN = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def sentences() -> Iterator[og.Model]:
    """all-MiniLM-L6-v2."""
    with og.Model(minilm.path()) as model:
        yield model


def batch_of(*texts: list[int]) -> og.Batch:
    batch = og.Batch(sum(map(len, texts)))
    for seq, text in enumerate(texts):
        batch.add_sequence(text, seq_id=seq, logits="all")
    return batch


# A context's embeddings -----------------------------------------------------------------------------------------------


def test_a_row_is_what_the_logits_are_made_of(tiny: og.Model, weights: Weights) -> None:
    """The embedding of a row, times the output matrix, are the row's logits."""
    with og.Context(tiny, n_ctx=256, embeddings=True, pooling_type="none", **EXACT) as context:
        context.decode(batch_of(TOKENS))
        expected = Twin(weights).sequence(TOKENS)
        for row in (0, 5, 15, -1):
            vector = context.embeddings(row)
            assert vector.shape == (N_EMBD,)
            assert vector.dtype == "float32"
            np.testing.assert_allclose(weights["output.weight"] @ vector, expected[row], rtol=0, atol=CLOSE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling(pooling: PoolingName, tiny: og.Model) -> None:
    """A sequence's embedding is the mean of its rows, the first, or the last."""
    texts = [TOKENS, TOKENS[::-1][:5], [7]]
    pool: Any = {"mean": lambda rows: rows.mean(axis=0), "cls": lambda rows: rows[0], "last": lambda rows: rows[-1]}[
        pooling
    ]
    options: dict[str, Any] = {"n_ctx": 768, "n_seq_max": 3, "kv_unified": True, "embeddings": True, **EXACT}
    with (
        og.Context(tiny, pooling_type="none", **options) as rows,
        og.Context(tiny, pooling_type=pooling, **options) as pooled,
    ):
        assert pooled.pooling_type is og.PoolingType[pooling.upper()]
        rows.decode(batch_of(*texts))
        pooled.decode(batch_of(*texts))
        begin = 0
        for seq, text in enumerate(texts):
            expected = pool(np.stack([rows.embeddings(begin + i) for i in range(len(text))]))
            np.testing.assert_allclose(pooled.sequence_embedding(seq), expected, rtol=0, atol=CLOSE)
            begin += len(text)


def test_contexts_that_cannot_pool(tiny: og.Model) -> None:
    """llama.cpp aborts, or pools a part, where sequences have separate streams, rows are left out or batches are cut."""
    with pytest.raises(ValueError, match="kv_unified"):
        og.Context(tiny, n_ctx=768, n_seq_max=3, embeddings=True, pooling_type="mean")
    with pytest.raises(ValueError, match="n_outputs_max"):
        og.Context(tiny, n_ctx=768, embeddings=True, pooling_type="mean", n_outputs_max=64)
    with pytest.raises(ValueError, match="n_ubatch"):
        og.Context(tiny, n_ctx=768, n_seq_max=8, n_ubatch=7, kv_unified=True, embeddings=True, pooling_type="mean")
    for n_seq_max, n_ubatch, expected in [(3, 512, 510), (5, 64, 60), (7, 7, 7)]:  # what does not divide aborts
        options: dict[str, Any] = {"n_seq_max": n_seq_max, "n_ubatch": n_ubatch, "kv_unified": True, **EXACT}
        with og.Context(tiny, n_ctx=1024, embeddings=True, pooling_type="mean", **options) as context:
            assert context.n_ubatch == expected
            context.decode(batch_of(TOKENS[:3], TOKENS[:1]))
            assert context.sequence_embedding(1).shape == (N_EMBD,)
    with og.Context(tiny, n_ctx=256, n_ubatch=8, embeddings=True, pooling_type="mean", **EXACT) as context:
        with pytest.raises(ValueError, match="n_ubatch=8"):
            context.decode(batch_of(TOKENS[:9]))
        context.decode(batch_of(TOKENS[:8]))
    with og.Context(tiny, n_ctx=768, n_seq_max=3, embeddings=True, pooling_type="none", **EXACT) as context:
        context.decode(batch_of(TOKENS[:9], TOKENS[:2]))
        assert context.embeddings(10).shape == (N_EMBD,)


def test_a_vector_is_a_copy(tiny: og.Model) -> None:
    """A vector that was given out does not change with the next decode."""
    with og.Context(tiny, n_ctx=256, embeddings=True, pooling_type="none", **EXACT) as context:
        context.decode(batch_of(TOKENS))
        vector = context.embeddings(-1)
        before = vector.copy()
        context.memory.clear()
        context.decode(batch_of(TOKENS[::-1]))
        np.testing.assert_array_equal(vector, before)
        assert not np.array_equal(context.embeddings(-1), before)


def test_what_has_no_embedding(tiny: og.Model) -> None:
    """Without a computed embedding of the kind, it is a ValueError that names the kinds available."""
    with og.Context(tiny, n_ctx=256, **EXACT) as context:
        context.decode(batch_of(TOKENS))
        with pytest.raises(ValueError, match="embeddings=False"):
            context.embeddings(-1)
        with pytest.raises(ValueError, match="embeddings=False"):
            context.sequence_embedding(0)
    with og.Context(
        tiny, n_ctx=512, n_seq_max=2, kv_unified=True, embeddings=True, pooling_type="mean", **EXACT
    ) as context:
        with pytest.raises(ValueError, match="sequence 0 has no embedding"):
            context.sequence_embedding(0)
        context.decode(batch_of(TOKENS))
        with pytest.raises(ValueError, match="'mean'"):
            context.embeddings(0)
        with pytest.raises(ValueError, match="sequence 1 has no embedding"):
            context.sequence_embedding(1)
        for seq in (-1, 2):
            with pytest.raises(ValueError, match="seq_id"):
                context.sequence_embedding(seq)
        with pytest.raises(ValueError, match="row 16"):
            context.embeddings(16)
    with og.Context(tiny, n_ctx=256, embeddings=True, pooling_type="none", **EXACT) as context:
        context.decode(batch_of(TOKENS))
        with pytest.raises(ValueError, match="'none'"):
            context.sequence_embedding(0)


# Many texts -----------------------------------------------------------------------------------------------------------


def test_many_texts_are_each_one_alone(tiny: og.Model) -> None:
    """Each text's vector is the one that it has alone, in any company; more texts than sequences are no matter."""
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, N_VOCAB, rng.integers(1, 40)).tolist() for _ in range(300)]
    with og.Embedder(tiny, pooling_type="mean", n_batch=256, n_threads=1) as embedder:
        vectors = embedder.embed(texts, normalize=False)
        assert vectors.shape == (300, N_EMBD)
        assert vectors.dtype == "float32"
        for i in range(0, 300, 17):
            np.testing.assert_allclose(embedder.embed([texts[i]], normalize=False)[0], vectors[i], rtol=0, atol=0.02)
        backwards = embedder.embed(texts[::-1], normalize=False)[::-1]
        np.testing.assert_allclose(backwards, vectors, rtol=0, atol=0.02)


def test_normalized_by_default(tiny: og.Model) -> None:
    """Vectors have length 1, unless asked otherwise."""
    with og.Embedder(tiny, pooling_type="last", n_threads=1) as embedder:
        vectors = embedder.embed([TOKENS, TOKENS[:3]])
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        raw = embedder.embed([TOKENS], normalize=False)[0]
        np.testing.assert_allclose(raw / np.linalg.norm(raw), vectors[0], atol=1e-6)


def test_vectors_of_tokens(tiny: og.Model, weights: Weights) -> None:
    """Without pooling each token has a vector."""
    with og.Embedder(tiny, pooling_type="none", n_threads=1) as embedder:
        first, second = embedder.embed_tokens([TOKENS, TOKENS[:4]], normalize=False)
        assert (first.shape, second.shape) == ((16, N_EMBD), (4, N_EMBD))
        expected = Twin(weights).sequence(TOKENS)
        np.testing.assert_allclose(first @ weights["output.weight"].T, expected, rtol=0, atol=0.1)
        with pytest.raises(ValueError, match="embed_tokens"):
            embedder.embed([TOKENS])
    with og.Embedder(tiny, pooling_type="mean", n_threads=1) as embedder, pytest.raises(ValueError, match="use embed"):
        embedder.embed_tokens([TOKENS])


def test_no_texts(tiny: og.Model) -> None:
    """No texts give no vectors."""
    with og.Embedder(tiny, pooling_type="mean", n_threads=1) as embedder:
        assert embedder.embed([]).shape == (0, N_EMBD)


def test_texts_that_are_refused(tiny: og.Model, smollm2: og.Model) -> None:
    """A text that is too long, empty or of a wrong kind is named; truncate=True shortens it instead."""
    with og.Embedder(tiny, pooling_type="last", n_batch=16, n_threads=1) as embedder:
        with pytest.raises(og.ContextLengthError, match=r"texts\[1\] has 17 tokens") as caught:
            embedder.embed([TOKENS, [*TOKENS, 5]])
        assert (caught.value.n_tokens, caught.value.n_ctx) == (17, 16)
        short, long = embedder.embed([TOKENS, [*TOKENS, 5]], truncate=True)
        np.testing.assert_allclose(short, long, atol=1e-3)
        with pytest.raises(ValueError, match=r"texts\[0\] gives no tokens"):
            embedder.embed([[]])
        with pytest.raises(ValueError, match=r"texts\[0\]\[1\]"):
            embedder.embed([[1, N_VOCAB]])
        with pytest.raises(TypeError, match=r"texts\[0\]\[0\]"):
            embedder.embed([["a"]])  # type: ignore[list-item]
    with og.Embedder(smollm2, pooling_type="mean", n_threads=1) as embedder:
        assert embedder.embed("one text").shape == (smollm2.n_embd,)
        np.testing.assert_allclose(embedder.embed(["one text"])[0], embedder.embed(b"one text"), atol=1e-6)
    with pytest.raises(og.ClosedError):
        embedder.embed("one text")
    with pytest.raises(ValueError, match="Reranker"):
        og.Embedder(tiny, pooling_type="rank")
    with pytest.raises(ValueError, match="n_batch"):
        og.Embedder(tiny, n_batch=0)


@pytest.mark.parametrize("n_batch", [1, 2, 255, 256, 257, 300, 511, 700])
def test_any_size_of_a_batch(n_batch: int, tiny: og.Model) -> None:
    """Texts may have up to n_batch tokens, for each n_batch."""
    with og.Embedder(tiny, pooling_type="mean", n_batch=n_batch, n_threads=1) as embedder:
        text = (TOKENS * 50)[:n_batch]
        assert embedder.embed([text, [1], text]).shape == (3, N_EMBD)
        with pytest.raises(og.ContextLengthError):
            embedder.embed([[*text, 1]])


@settings(max_examples=200)
@given(st.lists(st.integers(1, 20), max_size=60), st.integers(20, 64), st.integers(1, 8))
def test_packing(lengths: list[int], n_tokens: int, n_seqs: int) -> None:
    """Every text comes once and in order, no batch is over a limit, and none could have taken the next text."""
    runs = list(packed(lengths, n_tokens, n_seqs))
    assert [i for run in runs for i in run] == list(range(len(lengths)))
    sizes = [sum(lengths[i] for i in run) for run in runs]
    assert all(run and len(run) <= n_seqs and size <= n_tokens for run, size in zip(runs, sizes, strict=True))
    for run, size, after in zip(runs, sizes, runs[1:], strict=False):
        assert len(run) == n_seqs or size + lengths[after[0]] > n_tokens


# A real sentence model ------------------------------------------------------------------------------------------------


def test_minilm_gives_the_reference_vectors(sentences: og.Model) -> None:
    """For 100 sentences the cosine similarity to sentence-transformers' vectors is at least 0.999."""
    texts = json.loads((GOLDEN / "minilm_sentences.json").read_text(encoding="utf-8"))["sentences"]
    expected = np.load(GOLDEN / "minilm_vectors.npy").astype(np.float32)
    with og.Embedder(sentences) as embedder:
        assert embedder.pooling_type is og.PoolingType.MEAN
        vectors = embedder.embed(texts)
    cosine = (vectors * expected).sum(axis=1) / np.linalg.norm(expected, axis=1)
    assert len(texts) == 100
    assert cosine.min() >= 0.999, texts[int(cosine.argmin())]


def test_minilm_takes_text_up_to_its_length(sentences: og.Model) -> None:
    """A text of 512 tokens is taken, a longer one refused or shortened with its last token kept."""
    with og.Embedder(sentences, n_threads=2) as embedder:
        vocab = sentences.vocab
        assert vocab.tokenize("hello")[0] == vocab.bos
        assert vocab.tokenize("hello")[-1] == vocab.sep
        exact = "hello " * 510
        assert len(vocab.tokenize(exact)) == 512
        with pytest.raises(og.ContextLengthError):
            embedder.embed(exact + "world")
        np.testing.assert_allclose(embedder.embed(exact + "world", truncate=True), embedder.embed(exact), atol=1e-3)


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        (["a", "b\ud83d"], r"surrogates not allowed, in texts\[1\]$"),
        (["a", b"\xff"], r"invalid start byte, in texts\[1\]$"),
        (["a", None], r"texts\[1\] must be several token ids, or a text, not NoneType"),
        (None, "texts must be several texts, not NoneType"),
        ([1, 2], r"texts\[0\] must be several token ids, or a text, not int"),
    ],
)  # fmt: skip
def test_which_text_is_wrong(smollm2: og.Model, texts: Any, told: str) -> None:
    """One wrong text of many is told by its place."""
    with og.Embedder(smollm2, pooling_type="mean") as embedder, pytest.raises((TypeError, UnicodeError), match=told):
        embedder.embed(texts)


def test_threads_share_an_embedder(tiny: og.Model) -> None:
    """Each thread gets the vectors of its own texts, however many embed at once, and however many decodes that takes."""
    texts = [[TOKENS[(at + shift) % len(TOKENS)] for shift in range(1 + at % 5)] for at in range(40)]
    with og.Embedder(tiny, pooling_type="mean", n_batch=32, n_threads=1) as embedder:
        alone = embedder.embed(texts)
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(lambda _: embedder.embed(texts), range(40)):
                np.testing.assert_allclose(found, alone, rtol=0, atol=CLOSE)
    with og.Embedder(tiny, pooling_type="none", n_batch=32, n_threads=1) as embedder:
        rows = embedder.embed_tokens(texts)
        with ThreadPoolExecutor(8) as pool:
            for each in pool.map(lambda _: embedder.embed_tokens(texts), range(8)):
                assert all(np.allclose(found, row, rtol=0, atol=CLOSE) for found, row in zip(each, rows, strict=True))
