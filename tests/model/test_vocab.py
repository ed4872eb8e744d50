"""The vocabulary: its tokens, their pieces, scores and kinds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import offgrid_llama as og

METHODS: list[Callable[[og.Vocab, int], object]] = [
    og.Vocab.piece,
    og.Vocab.text,
    og.Vocab.score,
    og.Vocab.attr,
    og.Vocab.is_eog,
    og.Vocab.is_control,
    lambda vocab, token: vocab.detokenize([1, token]),
]
METHOD_NAMES = ["piece", "text", "score", "attr", "is_eog", "is_control", "detokenize"]


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
@pytest.mark.parametrize("token", [-1, -(2**31), 2**31 - 1, 2**31, 2**64, "n"])
def test_tokens_out_of_range(method: Callable[[og.Vocab, int], object], token: int | str, gemma: og.Model) -> None:
    """A token that the vocabulary does not have is a ValueError that names the range; llama.cpp ends the process."""
    bad = gemma.vocab.n_tokens if isinstance(token, str) else token
    with pytest.raises(ValueError, match=f"from 0 to {gemma.vocab.n_tokens - 1}"):
        method(gemma.vocab, bad)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
@pytest.mark.parametrize("token", [None, "a", 1.0])
def test_tokens_of_another_type(method: Callable[[og.Vocab, int], object], token: int, gemma: og.Model) -> None:
    """A token is an int."""
    with pytest.raises(TypeError):
        method(gemma.vocab, token)


@pytest.mark.parametrize("method", METHODS, ids=METHOD_NAMES)
def test_first_and_last_token(method: Callable[[og.Vocab, int], object], gemma: og.Model, smollm2: og.Model) -> None:
    """The first and the last token of a vocabulary are tokens, and any int type may name them."""
    import numpy as np

    for vocab in (gemma.vocab, smollm2.vocab):
        assert method(vocab, 0) == method(vocab, int(np.int64(0)))
        assert method(vocab, np.int32(len(vocab) - 1)) == method(vocab, len(vocab) - 1)


def test_special_tokens_are_those_of_the_file(smollm2: og.Model, gemma: og.Model) -> None:
    """The attributes agree with the file's metadata; what a vocabulary does not have is None."""
    for model in (smollm2, gemma):
        for attribute, key in [("bos", "bos"), ("eos", "eos"), ("pad", "padding")]:
            value = model.metadata.get(f"tokenizer.ggml.{key}_token_id")
            assert getattr(model.vocab, attribute) == (None if value is None else int(value))
        assert model.vocab.add_bos == (model.metadata.get("tokenizer.ggml.add_bos_token") == "true")
        assert model.vocab.mask is None
    assert gemma.vocab.eot is not None
    assert gemma.vocab.text(gemma.vocab.eot) == "<end_of_turn>"
    assert gemma.vocab.type is og.VocabType.SPM
    assert smollm2.vocab.type is og.VocabType.BPE
    assert len(smollm2.vocab) == smollm2.vocab.n_tokens == 49152
    assert repr(gemma.vocab) == f"<Vocab of Model {gemma.path.name}: 262144 tokens, SPM>"


def test_fill_in_the_middle_tokens(vocabulary: Callable[[str], og.Vocab]) -> None:
    """A code model's vocabulary names its fill-in-the-middle tokens."""
    vocab = vocabulary("refact")
    assert vocab.fim_pre is not None
    assert vocab.text(vocab.fim_pre) == "<fim_prefix>"
    assert vocab.fim_suf is not None
    assert vocab.text(vocab.fim_suf) == "<fim_suffix>"
    assert vocabulary("llama-spm").fim_pre is None


def test_end_of_generation(smollm2: og.Model, gemma: og.Model) -> None:
    """EOS and EOT end a generation; BOS and words do not."""
    for vocab in (smollm2.vocab, gemma.vocab):
        assert vocab.eos is not None
        assert vocab.bos is not None
        assert vocab.is_eog(vocab.eos)
        assert vocab.is_control(vocab.eos)
        (word,) = vocab.tokenize(" the", add_special=False)
        assert not vocab.is_eog(word)
        assert not vocab.is_control(word)
    assert gemma.vocab.eot is not None
    assert gemma.vocab.is_eog(gemma.vocab.eot)
    assert gemma.vocab.bos is not None
    assert not gemma.vocab.is_eog(gemma.vocab.bos)


def test_attributes_of_tokens(gemma: og.Model, smollm2: og.Model) -> None:
    """A token's kind is told by flags that agree with is_control()."""
    assert gemma.vocab.bos is not None
    assert og.TokenAttr.CONTROL in gemma.vocab.attr(gemma.vocab.bos)
    (word,) = gemma.vocab.tokenize("the", add_special=False)
    assert gemma.vocab.attr(word) == og.TokenAttr.NORMAL
    (byte,) = [t for t in range(500) if gemma.vocab.text(t) == "<0x0A>"]
    assert og.TokenAttr.BYTE in gemma.vocab.attr(byte)
    assert gemma.vocab.piece(byte) == b"\n"
    for token in range(0, len(smollm2.vocab), 97):
        assert smollm2.vocab.is_control(token) == (og.TokenAttr.CONTROL in smollm2.vocab.attr(token))


def test_scores(gemma: og.Model, vocabulary: Callable[[str], og.Vocab]) -> None:
    """A SentencePiece score is the file's own, and orders the merges: what is merged later has a lower one."""
    with og.GGUF(gemma.path) as file:
        scores = file["tokenizer.ggml.scores"]
    assert isinstance(scores, list)
    assert [gemma.vocab.score(token) for token in range(0, 262144, 1009)] == scores[::1009]
    vocab = vocabulary("llama-spm")
    (early,), (late,) = (vocab.tokenize(text, add_special=False) for text in ("the", "Hello"))
    assert vocab.score(early) > vocab.score(late)


def test_piece_of_a_control_token(gemma: og.Model) -> None:
    """A control token has no text, unless it is asked for as it is written."""
    assert gemma.vocab.bos is not None
    assert gemma.vocab.piece(gemma.vocab.bos) == b""
    assert gemma.vocab.piece(gemma.vocab.bos, special=True) == b"<bos>"
    assert gemma.vocab.detokenize([gemma.vocab.bos]) == ""
    assert gemma.vocab.detokenize([gemma.vocab.bos], unparse_special=True) == "<bos>"


def test_detokenize_one_token(gemma_path: Path) -> None:
    """The text of one token is the same at each call, also between calls for others, until the model is closed."""
    with og.Model(gemma_path, vocab_only=True) as model:
        vocab = model.vocab
        bos, (a, *_) = vocab.bos or 0, vocab.tokenize(" a b", add_special=False)
        for _ in range(2):
            assert vocab.detokenize([bos], unparse_special=True) == "<bos>"
            assert vocab.detokenize([bos], remove_special=True, unparse_special=True) == ""
            assert vocab.detokenize([bos]) == ""
            assert vocab.detokenize([a]) == " a"
            with pytest.raises(TypeError):
                vocab.detokenize([1.0])  # type: ignore[list-item]
            with pytest.raises(ValueError, match=r"tokens\[0\]"):
                vocab.detokenize([vocab.n_tokens])
    with pytest.raises(og.ClosedError):
        vocab.detokenize([a])


def test_detokenize_without_special_tokens(gemma: og.Model) -> None:
    """``remove_special`` leaves out what ``add_special`` has added."""
    tokens = gemma.vocab.tokenize("Hello world")
    assert tokens[0] == gemma.vocab.bos
    assert gemma.vocab.detokenize(tokens, remove_special=True, unparse_special=True) == "Hello world"
    assert gemma.vocab.detokenize(tokens, unparse_special=True) == "<bos>Hello world"


def test_lstrip(gemma: og.Model) -> None:
    """``lstrip`` leaves out up to that many spaces at the beginning of a piece."""
    (word,) = gemma.vocab.tokenize(" hello", add_special=False)
    assert [gemma.vocab.piece(word, lstrip=n) for n in (0, 1, 5)] == [b" hello", b"hello", b"hello"]
    (spaces,) = gemma.vocab.tokenize("    ", add_special=False)
    assert [gemma.vocab.piece(spaces, lstrip=n) for n in (0, 1, 3, 9)] == [b"    ", b"   ", b" ", b""]
    with pytest.raises(ValueError, match="lstrip"):
        gemma.vocab.piece(word, lstrip=-1)


def test_every_piece_and_text(smollm2: og.Model, gemma: og.Model) -> None:
    """Each token of both models has a piece of any length, and those of text tokens are never empty."""
    for vocab in (smollm2.vocab, gemma.vocab):
        longest = 0
        for token in range(0, len(vocab), 13):
            piece = vocab.piece(token, special=True)
            longest = max(longest, len(piece))
            assert piece or vocab.is_control(token) or vocab.attr(token) != og.TokenAttr.NORMAL
        assert longest > 16


def test_suppressed_tokens(smollm2: og.Model) -> None:
    """A model that forbids no tokens gives an empty list."""
    assert smollm2.vocab.suppress_tokens() == []


def test_a_vocabulary_lives_as_long_as_its_model(smollm2_path: Path) -> None:
    """The vocabulary is borrowed: it holds its model, and is dead once that is closed."""
    model = og.Model(smollm2_path, vocab_only=True)
    vocab = model.vocab
    model.close()
    with pytest.raises(og.ClosedError, match="Model"):
        vocab.tokenize("Hello")
    with pytest.raises(og.ClosedError):
        vocab.piece(5)
    with pytest.raises(og.ClosedError):
        vocab.detokenize([5])
    assert len(vocab) == 49152
