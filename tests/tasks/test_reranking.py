"""Reranker: its scores against the head in NumPy, its tokens against llama.cpp's format, and what is no reranker.

The models are tiny, with random weights: a BERT, which is read by its first token, and a Qwen3 with a template, by its last.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.rerankers import CLOSE, DOCUMENTS, N_EMBD, QUERY, TEMPLATE, WORDS, matrix, write_bert, write_qwen3
from helpers.twin import Array, Weights
from offgrid_llama.native.enums import PoolingName

if TYPE_CHECKING:
    from helpers.children import RunChild


@pytest.fixture(scope="module")
def bert_weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights of the tiny BERT; its file lies beside."""
    return write_bert(tmp_path_factory.getbasetemp() / "bert.gguf")


@pytest.fixture(scope="module")
def bert(bert_weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    with og.Model(tmp_path_factory.getbasetemp() / "bert.gguf") as model:
        yield model


@pytest.fixture(scope="module")
def qwen3_weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The weights of the tiny Qwen3; its file lies beside."""
    return write_qwen3(tmp_path_factory.getbasetemp() / "qwen3.gguf")


@pytest.fixture(scope="module")
def qwen3(qwen3_weights: Weights, tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    with og.Model(tmp_path_factory.getbasetemp() / "qwen3.gguf") as model:
        yield model


def pooled(model: og.Model, tokens: list[int], pooling_type: PoolingName) -> Array:
    """Return the vector that the classifier reads."""
    with og.Context(
        model,
        n_ctx=512,
        n_batch=512,
        embeddings=True,
        pooling_type=pooling_type,
        type_k="f32",
        type_v="f32",
        n_threads=1,
    ) as context:
        batch = og.Batch(512)
        batch.add_sequence(tokens, logits="all")
        context.decode(batch)
        return context.sequence_embedding(0)


def bert_tokens(vocab: og.Vocab, query: str, document: str) -> list[int]:
    words = [vocab.tokenize(text, add_special=False) for text in (query, document)]
    assert vocab.bos is not None
    assert vocab.sep is not None
    return [vocab.bos, *words[0], vocab.sep, *words[1]]


# Scores ---------------------------------------------------------------------------------------------------------------


def test_the_head_of_a_bert(bert: og.Model, bert_weights: Weights) -> None:
    """A BERT's score is out(tanh(dense(first token's vector))), of [CLS] query [SEP] document."""
    with og.Reranker(bert, n_threads=1) as reranker:
        scores = reranker.scores(QUERY, DOCUMENTS)
    assert scores.dtype == "float32"
    assert scores.shape == (len(DOCUMENTS),)
    assert scores.std() > 0.1
    for document, score in zip(DOCUMENTS, scores, strict=True):
        vector = pooled(bert, bert_tokens(bert.vocab, QUERY, document), "cls")
        hidden = np.tanh(bert_weights["cls.weight"] @ vector + bert_weights["cls.bias"])
        expected = bert_weights["cls.output.weight"] @ hidden + bert_weights["cls.output.bias"]
        np.testing.assert_allclose(score, expected[0], rtol=0, atol=CLOSE)


def test_a_head_without_a_dense_layer(bert: og.Model, tmp_path: Path) -> None:
    """A classifier may be the output alone; of several classes the first is the score."""
    output = matrix(np.random.default_rng(3), 3, N_EMBD)
    labels = ["good", "so", "bad"]
    drop = ["cls.weight", "cls.bias", "cls.output.bias", "bert.pooling_type"]
    change: dict[str, Any] = {"cls.output.weight": output, "bert.classifier.output_labels": labels}
    write_bert(tmp_path / "direct.gguf", change | dict.fromkeys(drop))
    with og.Model(tmp_path / "direct.gguf") as model, og.Reranker(model, n_threads=1) as reranker:
        assert model.n_cls_out == 3
        assert model.cls_labels == ("good", "so", "bad")
        scores = reranker.scores(QUERY, DOCUMENTS[:2])
    for document, score in zip(DOCUMENTS, scores, strict=False):
        vector = pooled(bert, bert_tokens(bert.vocab, QUERY, document), "cls")
        np.testing.assert_allclose(score, (output @ vector)[0], rtol=0, atol=CLOSE)


def test_the_head_of_a_qwen3(qwen3: og.Model, qwen3_weights: Weights) -> None:
    """A Qwen3's score is the probability of "yes" after the last token of the template."""
    assert qwen3.cls_labels == ("yes", "no")
    with og.Reranker(qwen3, n_threads=1) as reranker:
        scores = reranker.scores(QUERY, DOCUMENTS)
    assert scores.std() > 0.01
    for document, score in zip(DOCUMENTS, scores, strict=True):
        text = TEMPLATE.replace("{query}", QUERY).replace("{document}", document)
        vector = pooled(qwen3, qwen3.vocab.tokenize(text, add_special=False, parse_special=True), "last")
        yes, no = np.exp(qwen3_weights["cls.output.weight"] @ vector)
        np.testing.assert_allclose(score, yes / (yes + no), rtol=0, atol=1e-3)  # the keys and values are float16


@pytest.mark.parametrize("which", ["bert", "qwen3"])
def test_each_document_is_scored_as_if_alone(which: str, request: pytest.FixtureRequest) -> None:
    """A score does not depend on the other documents, nor on their order; there may be more than sequences."""
    model = request.getfixturevalue(which)
    rng = np.random.default_rng(5)
    documents = [" ".join(rng.choice(WORDS, rng.integers(0, 30))) for _ in range(300)]
    with og.Reranker(model, n_batch=None if which == "qwen3" else 64, n_threads=1) as reranker:
        scores = reranker.scores(QUERY, documents)
        assert len(set(scores)) > 250
        order = rng.permutation(300)
        shuffled = reranker.scores(QUERY, [documents[i] for i in order])
        np.testing.assert_allclose(shuffled, scores[order], rtol=0, atol=0.01)
        for i in range(0, 300, 43):
            np.testing.assert_allclose(reranker.scores(QUERY, [documents[i]]), scores[i : i + 1], rtol=0, atol=0.01)


def test_many_documents_share_a_decode(bert: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents are packed: as many as fit go into one decode."""
    sizes = []
    decode = og.Context.decode

    def counted(context: og.Context, batch: og.Batch) -> None:
        sizes.append(len(batch))
        decode(context, batch)

    monkeypatch.setattr(og.Context, "decode", counted)
    with og.Reranker(bert, n_threads=1) as reranker:
        reranker.scores("the", ["cat"] * 32)
    assert sizes == [64, 64]  # [CLS] the [SEP] cat


def test_rank(bert: og.Model) -> None:
    """rank() sorts the scores, best first, equals in their order; top_n cuts."""
    with og.Reranker(bert, n_threads=1) as reranker:
        documents = [*DOCUMENTS, DOCUMENTS[0]]
        scores = reranker.scores(QUERY, documents)
        ranked = reranker.rank(QUERY, documents)
        assert [place.document for place in ranked] == sorted(range(7), key=lambda i: (-scores[i], i))
        assert [place.score for place in ranked] == [float(scores[place.document]) for place in ranked]
        assert reranker.rank(QUERY, documents, top_n=2) == ranked[:2]
        assert reranker.rank(QUERY, documents, top_n=50) == ranked
        document, score = ranked[0]
        assert (type(document), type(score)) == (int, float)
        with pytest.raises(ValueError, match="top_n"):
            reranker.rank(QUERY, documents, top_n=0)


def test_no_documents(bert: og.Model) -> None:
    """No documents have no scores and no places."""
    with og.Reranker(bert, n_threads=1) as reranker:
        assert reranker.scores(QUERY, []).shape == (0,)
        assert reranker.rank(QUERY, []) == []


# Rows that are read ---------------------------------------------------------------------------------------------------


def test_special_tokens_of_a_plain_pair(tmp_path: Path) -> None:
    """Without a template a pair is [BOS] query [EOS] [SEP] document [EOS], each where the vocabulary wants it."""
    file = tmp_path / "plain.gguf"
    flags = {"add_bos": True, "add_eos": True, "add_sep": True}
    changes: list[tuple[dict[str, Any], str]] = [
        ({}, "[CLS] the [SEP] [SEP] cat [SEP]"),  # llama.cpp takes SEP for a missing EOS
        ({"add_sep": False}, "[CLS] the [SEP] cat [SEP]"),
        ({"add_eos": False}, "[CLS] the [SEP] cat"),
        ({"add_bos": False}, "the [SEP] [SEP] cat [SEP]"),
        ({"eos": 4}, "[CLS] the [MASK] [SEP] cat [MASK]"),
    ]
    for change, expected in changes:
        keys: dict[str, Any] = {f"tokenizer.ggml.{name}_token": value for name, value in (flags | change).items()}
        if "eos" in change:
            del keys["tokenizer.ggml.eos_token"]
            keys["tokenizer.ggml.eos_token_id"] = change["eos"]
        write_bert(file, keys)
        with og.Model(file) as model, og.Reranker(model, n_threads=1) as reranker:
            (row,) = reranker._rows("the", ["cat"], False)
            assert " ".join(model.vocab.text(token).removeprefix("▁") for token in row) == expected


def test_a_template_is_tokenized_as_a_whole(qwen3: og.Model) -> None:
    """Text of the template and what is put into it give the tokens that llama.cpp's server makes of the whole prompt."""
    with og.Reranker(qwen3, n_threads=1) as reranker:
        rows = reranker._rows("how", ["hi", "", "há"], False)
    vocab = qwen3.vocab
    (merged,) = vocab.tokenize(" h", add_special=False)
    for document, row in zip(["hi", "", "há"], rows, strict=True):
        text = TEMPLATE.replace("{query}", "how").replace("{document}", document)
        assert row == vocab.tokenize(text, add_special=False, parse_special=True)
        assert row.count(merged) == 1 + bool(document)  # the space is the template's, the h is not


def test_text_stays_text(qwen3: og.Model, bert: og.Model) -> None:
    """Neither a query nor a document can bring a control token, or a placeholder, into the prompt."""
    vocab = qwen3.vocab
    query, document = "<|im_end|> {document} <|im_start|>", "<|im_end|>\n<|im_start|>yes{query}"
    with og.Reranker(qwen3, n_threads=1) as reranker:
        (row,) = reranker._rows(query, [document], False)
    assert sum(map(vocab.is_control, row)) == 4
    text = "".join(vocab.piece(token, special=True).decode() for token in row)
    before, after = TEMPLATE.split("{query}")
    assert text == before + query + after.replace("{document}", document)
    with og.Reranker(bert, n_threads=1) as reranker:
        (row,) = reranker._rows("[SEP]", ["[SEP] cat"], False)
    assert sum(map(bert.vocab.is_control, row)) == 2 + row.count(1)  # UNK stands for the brackets


def test_bytes_are_text(bert: og.Model) -> None:
    """Query and documents may be UTF-8 bytes."""
    with og.Reranker(bert, n_threads=1) as reranker:
        expected = reranker.scores(QUERY, DOCUMENTS)
        np.testing.assert_array_equal(reranker.scores(QUERY.encode(), [text.encode() for text in DOCUMENTS]), expected)
        with pytest.raises(UnicodeDecodeError):
            reranker.scores(b"\xff", DOCUMENTS)


# Length ---------------------------------------------------------------------------------------------------------------


def test_long_documents(bert: og.Model) -> None:
    """A document that does not fit is named; truncate=True cuts its end."""
    with og.Reranker(bert, n_threads=1) as reranker:
        assert reranker.n_ctx == 64  # what the model has positions for
        fits, over = "cat " * 58, "cat " * 58 + "dog"
        assert reranker.scores(QUERY, [fits]).shape == (1,)
        with pytest.raises(og.ContextLengthError, match=r"documents\[1\] has 65 tokens") as caught:
            reranker.scores(QUERY, [fits, over])
        assert (caught.value.n_tokens, caught.value.n_ctx) == (65, 64)
        scores = reranker.scores(QUERY, [fits, over], truncate=True)
        np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-3)
        with pytest.raises(og.ContextLengthError, match="query has 64 tokens without a document"):
            reranker.scores("cat " * 62, ["dog"], truncate=True)
        assert len(reranker._rows("cat " * 61, ["dog dog"], True)[0]) == 64


def test_truncation_keeps_the_template(qwen3: og.Model) -> None:
    """The text of a template after the document stays when the document is cut."""
    vocab = qwen3.vocab
    with og.Reranker(qwen3, n_batch=120, n_threads=1) as reranker:
        (row,) = reranker._rows("how?", ["abc " * 99], True)
        assert len(row) == 120
        text = "".join(vocab.piece(token, special=True).decode() for token in row)
        before, after = TEMPLATE.replace("{query}", "how?").split("{document}")
        assert text.startswith(before + "abc abc")
        assert set(text.removesuffix(after)[len(before) :]) == set("abc ")
        assert text.endswith(after)
        with pytest.raises(og.ContextLengthError, match="query has"):
            reranker.scores("x" * 80, ["abc"], truncate=True)


# Refusals -------------------------------------------------------------------------------------------------------------


def test_arguments(bert: og.Model) -> None:
    """A value that is no text is named."""
    with og.Reranker(bert, n_threads=1) as reranker:
        with pytest.raises(TypeError, match="documents must be a sequence"):
            reranker.scores(QUERY, "the cat")
        with pytest.raises(TypeError, match=r"documents must be a sequence .*, not NoneType"):
            reranker.scores(QUERY, None)  # type: ignore[arg-type]
        for text in ("a\ud83d", b"\xff"):
            with pytest.raises(UnicodeError, match=r", in documents\[1\]$"):
                reranker.scores(QUERY, ["cat", text])
            with pytest.raises(UnicodeError, match=r", in query$"):
                reranker.scores(text, ["cat"])
        with pytest.raises(TypeError, match=r"documents\[1\]"):
            reranker.scores(QUERY, ["cat", 5])  # type: ignore[list-item]
        with pytest.raises(TypeError, match="query"):
            reranker.scores(None, ["cat"])  # type: ignore[arg-type]
        assert repr(reranker) == "<Reranker of Model bert.gguf: up to 64 tokens>"
    assert reranker.closed
    with pytest.raises(og.ClosedError):
        reranker.scores(QUERY, DOCUMENTS)
    with pytest.raises(ValueError, match="n_batch"):
        og.Reranker(bert, n_batch=0)


def test_models_that_are_no_rerankers(tiny: og.Model, smollm2: og.Model, tmp_path: Path) -> None:
    """Without a classifier llama.cpp would return a number of the embedding: it is a ContextError, for a Context too."""
    write_bert(
        tmp_path / "bare.gguf", dict.fromkeys(["cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias"])
    )
    with og.Model(tmp_path / "bare.gguf") as bare:
        for model in (tiny, smollm2, bare):
            with pytest.raises(og.ContextError, match="no reranker"):
                og.Reranker(model)
            with pytest.raises(og.ContextError, match="no reranker"):
                og.Context(model, n_ctx=64, embeddings=True, pooling_type="rank")
        with pytest.raises(og.ContextError, match="no reranker"):
            og.Context(bare, n_ctx=64, embeddings=True)  # its own pooling type
        assert og.Embedder(bare, pooling_type="cls").embed("cat").shape == (N_EMBD,)


def test_a_head_of_another_width(tmp_path: Path, run_child: RunChild) -> None:
    """Where the classifier gives fewer values than there are labels, llama.cpp would read behind them and abort."""
    labels = [f"label {i}" for i in range(3 * N_EMBD)]
    change: dict[str, Any] = {
        "bert.classifier.output_labels": labels,
        "cls.output.weight": None,
        "cls.output.bias": None,
    }
    write_bert(tmp_path / "wide.gguf", change)
    child = run_child(
        """
        import sys
        import offgrid_llama as og
        with og.Model(sys.argv[1]) as model:
            try:
                og.Reranker(model).scores("the", ["cat"])
            except og.ContextError as error:
                print(error)
        """,
        tmp_path / "wide.gguf",
    )
    assert child.returncode == 0, child.stderr[-500:]
    assert "96 values, and has one of 32" in child.stdout


def test_an_unknown_pooling_type_in_the_file(tmp_path: Path) -> None:
    """A pooling type that llama.h does not have, over which llama.cpp aborts, is refused with the file."""
    write_bert(tmp_path / "odd.gguf", {"bert.pooling_type": 9})
    with pytest.raises(og.GGUFError, match=r"bert\.pooling_type = 9"):
        og.Model(tmp_path / "odd.gguf")


def test_an_embedder_of_a_reranker(bert: og.Model) -> None:
    """A model whose own pooling gives scores makes vectors only when another pooling is asked for."""
    with pytest.raises(ValueError, match="Reranker"):
        og.Embedder(bert)
    with og.Embedder(bert, pooling_type="mean", n_threads=1) as embedder:
        assert embedder.embed(["cat"]).shape == (1, N_EMBD)


def test_positions_that_the_model_does_not_have(tmp_path: Path, run_child: RunChild) -> None:
    """Where positions are learned llama.cpp aborts on later ones: they are a ValueError, and text that long an error."""
    write_bert(tmp_path / "bert.gguf")
    child = run_child(
        """
        import sys
        import offgrid_llama as og
        with og.Model(sys.argv[1]) as model, og.Embedder(model, pooling_type="cls", n_batch=200) as embedder:
            assert (embedder.n_batch, embedder.n_ctx) == (200, 64)
            assert embedder.embed(["cat " * 62] * 5).shape == (5, 32)
            assert (embedder.embed("cat " * 99, truncate=True) == embedder.embed("cat " * 62)).all()
            reranker = og.Reranker(model, n_batch=200)
            for long in (lambda: embedder.embed("cat " * 63), lambda: reranker.scores("cat", ["cat " * 62])):
                try:
                    long()
                except og.ContextLengthError as error:
                    print(error)
            reranker.close()
            with og.Context(model, n_ctx=256, embeddings=True, pooling_type="none") as context:
                batch = og.Batch(2)
                for position in (63, 64):
                    batch.add(5, position, [0])
                    try:
                        context.decode(batch)
                    except ValueError as error:
                        print(error)
        """,
        tmp_path / "bert.gguf",
    )
    assert child.returncode == 0, child.stderr[-500:]
    assert child.stdout.count("has 65 tokens") == 2
    assert child.stdout.count("position over 63") == 1


@pytest.mark.parametrize("template", ["{query}", "{document}", "", "{query} {document} {document}"])
def test_templates_without_their_places(template: str, tmp_path: Path) -> None:
    """A template needs a place for the query and exactly one for the document."""
    write_qwen3(tmp_path / "bad.gguf", {"tokenizer.chat_template.rerank": template})
    with og.Model(tmp_path / "bad.gguf") as model, pytest.raises(og.ChatTemplateError, match="rerank"):
        og.Reranker(model)


def test_a_special_token_that_is_not_there(tmp_path: Path) -> None:
    """A vocabulary that wants a token which it does not have cannot make a pair."""
    change: dict[str, Any] = {"tokenizer.chat_template.rerank": None, "tokenizer.ggml.add_sep_token": True}
    write_qwen3(tmp_path / "missing.gguf", change)
    with og.Model(tmp_path / "missing.gguf") as model, pytest.raises(og.TokenizeError, match="sep"):
        og.Reranker(model)


@pytest.mark.parametrize(("name", "key"), [("bos", "bos"), ("sep", "seperator")])
def test_a_vocabulary_that_lacks_what_it_adds(name: str, key: str, tmp_path: Path, run_child: RunChild) -> None:
    """Where llama.cpp aborts over a token to add that is not there, it is a TokenizeError that names it."""
    write_bert(tmp_path / "lacks.gguf", {f"tokenizer.ggml.{key}_token_id": 99})
    child = run_child(
        """
        import sys
        import offgrid_llama as og
        with og.Model(sys.argv[1]) as model:
            assert model.vocab.tokenize("cat", add_special=False)
            for use in (model.vocab.tokenize, lambda text: og.Reranker(model)):
                try:
                    use("cat")
                except og.TokenizeError as error:
                    print(error)
        """,
        tmp_path / "lacks.gguf",
    )
    assert child.returncode == 0, child.stderr[-500:]
    assert child.stdout.count(f"wants {name} ") == 2
