"""The vocabulary: llama.cpp's own test vectors, and texts that come back from their tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given

import offgrid_llama as og
from helpers.vocabularies import (
    BLANK_IS_SPACE,
    BYTES_MISSING,
    LOSSLESS,
    LOSSY,
    PAIRS,
    SPACES_CLEANED,
    WITHOUT_VECTORS,
    any_text,
    examples,
    through_stream,
    vocabulary_file,
)

# Vectors --------------------------------------------------------------------------------------------------------------


def test_every_vocabulary_of_llama_cpp_is_tried(llama_cpp_dir: Path) -> None:
    """The lists above name each vocabulary there is, so that a new one is not forgotten."""
    there = {path.stem.removeprefix("ggml-vocab-") for path in (llama_cpp_dir / "models").glob("*.gguf")}
    vectors = {path.name.split(".")[0].removeprefix("ggml-vocab-") for path in (llama_cpp_dir / "models").glob("*.inp")}
    assert vectors == set(PAIRS)
    assert there == set(PAIRS) | set(WITHOUT_VECTORS)
    assert there == set(LOSSLESS + SPACES_CLEANED + BYTES_MISSING + BLANK_IS_SPACE + LOSSY)


@pytest.mark.parametrize("name", PAIRS)
def test_tokens_are_those_of_llama_cpp(name: str, llama_cpp_dir: Path, vocabulary: Callable[[str], og.Vocab]) -> None:
    """Each case of llama.cpp's own tokenizer test gives the recorded tokens, as str and as bytes."""
    file = vocabulary_file(llama_cpp_dir, name)
    texts = file.with_suffix(".gguf.inp").read_bytes().split(b"\n__ggml_vocab_test__\n")
    if not texts[-1]:  # test-tokenizer-0 reads no empty case at the end
        texts.pop()
    lines = file.with_suffix(".gguf.out").read_text(encoding="ascii").splitlines()
    assert len(texts) == len(lines) > 40
    for data, line in zip(texts, lines, strict=True):
        expected = [int(token) for token in line.split()]
        text = data.decode("utf-8")
        assert vocabulary(name).tokenize(text, add_special=False) == expected, text
        assert vocabulary(name).tokenize(data, add_special=False) == expected, text


# Round trips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSLESS)
@examples
@given(text=any_text)
@example(text="^ßZ . ' don't\x00\x85\r\n\n  ▁Ġ\u2028😶\u200d🌫️ 1234")
def test_byte_level_text_comes_back(name: str, text: str, vocabulary: Callable[[str], og.Vocab]) -> None:
    """Tokens of a byte-level vocabulary stand for exactly the text that they came from."""
    vocab = vocabulary(name)
    tokens = vocab.tokenize(text, add_special=False)
    assert vocab.detokenize(tokens, unparse_special=True) == text
    assert through_stream(vocab, tokens) == text


def assert_only_missing_bytes_are_lost(vocab: og.Vocab, text: str, single: set[bytes]) -> None:
    pieces = b"".join(vocab.piece(token) for token in vocab.tokenize(text, add_special=False))
    assert pieces == bytes(byte for byte in text.encode() if bytes([byte]) in single)


@functools.cache
def single_bytes(vocab: og.Vocab) -> set[bytes]:
    return {piece for token in range(len(vocab)) if len(piece := vocab.piece(token)) == 1}


@pytest.mark.parametrize("name", BYTES_MISSING)
@examples
@given(text=any_text)
@example(text="\x16 \U00040000")
def test_only_missing_bytes_are_lost(name: str, text: str, vocabulary: Callable[[str], og.Vocab]) -> None:
    """A byte-level vocabulary without a token for some bytes gives back all the others."""
    assert_only_missing_bytes_are_lost(vocabulary(name), text, single_bytes(vocabulary(name)))


@examples
@given(text=any_text)
@example(text="\x16 \U00040000")
def test_only_missing_bytes_are_lost_in_smollm2(text: str, smollm2: og.Model) -> None:
    """SmolLM2 lacks tokens for a few control characters and unassigned planes, and gives back all else."""
    single = single_bytes(smollm2.vocab)
    assert {bytes([byte]) for byte in range(0x20, 0x7F)} < single
    assert_only_missing_bytes_are_lost(smollm2.vocab, text, single)
    if len(text.encode()) == sum(bytes([byte]) in single for byte in text.encode()):
        tokens = smollm2.vocab.tokenize(text, add_special=False)
        assert smollm2.vocab.detokenize(tokens, unparse_special=True) == text
        assert through_stream(smollm2.vocab, tokens) == text


@pytest.mark.parametrize("name", SPACES_CLEANED)
@examples
@given(text=any_text)
@example(text="^ßZ . we 'll \x00\x85\r\n\n  ▁Ġ")
def test_pieces_of_a_cleaning_vocabulary_are_exact(name: str, text: str, vocabulary: Callable[[str], og.Vocab]) -> None:
    """Where detokenize() tidies spaces, the joined pieces still give exactly the text, and it removes nothing but spaces."""
    vocab = vocabulary(name)
    tokens = vocab.tokenize(text, add_special=False)
    assert through_stream(vocab, tokens) == text
    assert vocab.detokenize(tokens, unparse_special=True).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("name", BLANK_IS_SPACE)
@examples
@given(text=any_text)
def test_a_blank_comes_back_as_a_space(name: str, text: str, vocabulary: Callable[[str], og.Vocab]) -> None:
    """Vocabularies that write a space as U+2581 give the text back with spaces for U+2581, after the prefix they add."""
    vocab = vocabulary(name)
    tokens = vocab.tokenize(text, add_special=False)
    prefix = " " if text and name != "gemma-4" else ""
    assert through_stream(vocab, tokens) == prefix + text.replace("\u2581", " ")


@examples
@given(text=any_text)
def test_a_blank_comes_back_as_a_space_in_gemma(text: str, gemma: og.Model) -> None:
    """Gemma gives the text back with spaces for U+2581, and adds no prefix."""
    tokens = gemma.vocab.tokenize(text, add_special=False)
    assert gemma.vocab.detokenize(tokens, unparse_special=True) == text.replace("\u2581", " ")
    assert through_stream(gemma.vocab, tokens) == text.replace("\u2581", " ")


@pytest.mark.parametrize("name", LOSSY)
@examples
@given(text=any_text)
def test_lossy_vocabularies_take_any_text(name: str, text: str, vocabulary: Callable[[str], og.Vocab]) -> None:
    """A vocabulary that cannot give a text back still takes it, and gives tokens that it has."""
    vocab = vocabulary(name)
    tokens = vocab.tokenize(text)
    assert all(0 <= token < len(vocab) for token in tokens)
    vocab.detokenize(tokens)


def test_pieces_cut_inside_a_character_are_joined(smollm2: og.Model) -> None:
    """A character that is spread over several tokens comes out of TextStream whole, and out of no single piece."""
    vocab, text = smollm2.vocab, "𝄞🦙"
    tokens = vocab.tokenize(text, add_special=False)
    assert len(tokens) > 2
    stream = og.TextStream()
    assert stream.push(vocab.piece(tokens[0])) == ""
    assert through_stream(vocab, tokens) == text
    assert vocab.detokenize(tokens[:1]) == "\ufffd"
