"""Text that would end the process if it got through to llama.cpp, or take it long."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.vocabularies import PAIRS, PRE_TOKENIZERS, WITHOUT_VECTORS, examples, vocabulary_file, with_pre_tokenizer
from offgrid_llama.model import tokenize_limits
from offgrid_llama.model.tokenize_limits import MAX_RUN_BYTES, MAX_TOKENIZE_BYTES, longest_run

if TYPE_CHECKING:
    from helpers.children import RunChild


# Kinds of text --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", b""])
def test_empty_text(text: str | bytes, smollm2: og.Model, gemma: og.Model) -> None:
    """No text gives no tokens but those that the model wants."""
    assert smollm2.vocab.tokenize(text) == []
    assert gemma.vocab.tokenize(text, add_special=False) == []
    assert gemma.vocab.tokenize(text) == [gemma.vocab.bos]
    assert gemma.vocab.detokenize([]) == ""


@pytest.mark.parametrize(
    "data",
    [b"\xf7\xbf\xbf\xbf", b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"abc\xe2\x82", b"\x80"],
)
def test_bytes_that_are_no_utf8(data: bytes, smollm2: og.Model) -> None:
    """Bytes that are no UTF-8 are refused by Python, as llama.cpp ends the process over some of them."""
    with pytest.raises(UnicodeDecodeError):
        smollm2.vocab.tokenize(data)
    with pytest.raises(UnicodeDecodeError):
        smollm2.vocab.tokenize(b"a " * 1000 + data)


def test_lone_surrogates(smollm2: og.Model) -> None:
    """A str that no UTF-8 can spell is refused."""
    with pytest.raises(UnicodeEncodeError):
        smollm2.vocab.tokenize("a\ud800b")


@pytest.mark.parametrize("text", [None, 5, ["a"], bytearray(b"a"), memoryview(b"a")])
def test_text_of_another_type(text: object, smollm2: og.Model) -> None:
    """Only str and bytes are text."""
    with pytest.raises(TypeError, match="text must be str or bytes"):
        smollm2.vocab.tokenize(text)  # type: ignore[arg-type]


def test_special_text_is_text_unless_asked_for(smollm2: og.Model, gemma: og.Model) -> None:
    """A control token in the text of a user is tokenized as letters; ``parse_special`` makes it the token."""
    for vocab, text in [(smollm2.vocab, "<|im_start|>"), (gemma.vocab, "<start_of_turn>")]:
        plain = vocab.tokenize(text, add_special=False)
        assert len(plain) > 1
        assert not any(vocab.is_control(token) for token in plain)
        (token,) = vocab.tokenize(text, add_special=False, parse_special=True)
        assert vocab.is_control(token)
        assert vocab.text(token) == text


# Long words -----------------------------------------------------------------------------------------------------------

RUNS = """
    import sys
    import offgrid_llama as og
    from offgrid_llama.model import tokenize_limits

    sys.path.append(sys.argv[2])
    from helpers.texts import mixed

    scale = int(sys.argv[1])
    tokenize_limits.MAX_RUN_BYTES //= scale
    tokenize_limits.DEEP_STACK_BYTES //= scale
    run = tokenize_limits.MAX_RUN_BYTES
    kinds = {
        "letters": "a", "capitals": "A", "digits": "7", "spaces": " ", "tabs": "\\t", "newlines": "\\n", "punctuation": "!",
        "symbols": "~", "accents": "\\xe9", "cjk": "\\u4e2d", "kana": "\\u3042", "emoji": "\\U0001f600", "marks": "\\u0301",
        "wide spaces": "\\u3000", "mixed": "aZ9!\\xe9\\u4e2d\\U0001f600",
    }
    texts = {kind: char * (run // len(char.encode())) for kind, char in kinds.items()}
    texts["punctuation and newlines"] = texts["punctuation"] + texts["newlines"]
    texts["spaces and a letter"] = texts["spaces"] + "x"
    texts["spaces and a digit"] = texts["spaces"] + "7"
    texts["words"] = "The quick brown fox jumps over the lazy dog " * (run // 20)
    texts["many kinds"] = mixed(80 * 1024)  # bench/tokenizer_limits.py takes 16 MiB
    if scale == 1:
        texts = {"letters": texts["letters"]}
    for path in sys.argv[3:]:
        with og.Model(path, vocab_only=True) as model:
            for kind, text in texts.items():
                print(path, kind, flush=True)
                try:
                    tokens = model.vocab.tokenize(text, add_special=False)
                except og.TokenizeError:
                    print("refused", flush=True)
                else:
                    assert all(0 <= token < model.vocab.n_tokens for token in tokens)
    print("alive")
"""


def assert_alive(run_child: RunChild, scale: int, files: list[Path], refused: int) -> None:
    child = run_child(RUNS, str(scale), Path(__file__).parents[1], *files, timeout=250)
    lines = child.stdout.splitlines()
    assert (child.returncode, lines[-1:]) == (0, ["alive"]), f"{lines[-1:]} {child.stderr[-500:]}"
    assert lines.count("refused") == refused, lines


def test_runs_at_the_limit(llama_cpp_dir: Path, run_child: RunChild) -> None:
    """No run of one kind of characters overflows the stack in any vocabulary; limit and stack are scaled down alike."""
    # deepseek-llm looks for the end of the text from each space before a digit.
    assert_alive(run_child, 128, [vocabulary_file(llama_cpp_dir, name) for name in PAIRS + WITHOUT_VECTORS], refused=1)


def test_spaces_before_a_digit(vocabulary: Callable[[str], og.Vocab]) -> None:
    """The pattern of deepseek-llm takes the square of the spaces before a digit: many are refused; other spaces are not."""
    vocab = vocabulary("deepseek-llm")
    for space in (" ", "\t", "\u2003"):
        assert vocab.tokenize("a" + space * 500 + "7")
        with pytest.raises(og.TokenizeError, match="spaces in a row"):
            vocab.tokenize("a" + space * 2048 + "7")
    for text in (" " * 50_000, " " * 50_000 + "x", " " * 50_000 + "!", "\n" * 50_000 + "7", "\u3000" * 9000):
        assert vocab.tokenize(text)


def test_runs_at_the_limit_in_other_pre_tokenizers(llama_cpp_dir: Path, tmp_path: Path, run_child: RunChild) -> None:
    """Nor does one in the pre-tokenizers that no vocabulary of llama.cpp's repository has."""
    files = []
    for name in PRE_TOKENIZERS:
        files.append(tmp_path / f"{name}.gguf")
        files[-1].write_bytes(with_pre_tokenizer(vocabulary_file(llama_cpp_dir, "gpt-2"), name))
    # exaone-moe takes words and the spaces between them as one, superbpe looks ahead over all digits from each digit.
    assert_alive(run_child, 128, files, refused=2)


def test_too_many_special_tokens(gemma: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp takes the square of the number of tokens that it finds before words: over a limit they are refused."""
    monkeypatch.setattr(tokenize_limits, "MAX_SPECIAL_TOKENS", 1000)
    words = "hello world " * 6000
    assert gemma.vocab.tokenize("\n\na" * 1000 + words)
    with pytest.raises(og.TokenizeError, match="special tokens"):
        gemma.vocab.tokenize("\n\na" * 1001 + words)
    control = "<end_of_turn>a" * 1001 + words  # text, unless it is parsed
    assert gemma.vocab.tokenize(control)
    with pytest.raises(og.TokenizeError, match="special tokens"):
        gemma.vocab.tokenize(control, parse_special=True)
    assert gemma.vocab.tokenize("\n\n<b><b>" * 200 + words + "\n" * 2000)  # one token of many newlines


def test_runs_that_are_no_tokens(gemma: og.Model, vocabulary: Callable[[str], og.Vocab]) -> None:
    """SentencePiece in llama.cpp takes the square of a run of characters that are no tokens: long ones are refused."""
    for vocab, char in [(gemma.vocab, "\0"), (vocabulary("llama-spm"), "\n")]:
        with pytest.raises(og.TokenizeError, match="100,000 characters in a row that are no tokens"):
            vocab.tokenize("some words " + char * 100_000)
        with pytest.raises(og.TokenizeError, match="10,000 characters in a row"):
            vocab.tokenize("some words " * 100_000 + char * 10_000)
        assert len(vocab.tokenize("some words " + char * 66_000)) > 66_000
        assert vocab.tokenize("some words " * 7000 + f"{char * 30}a" * 100)
    assert vocabulary("llama-bpe").tokenize("\n" * 200_000)
    assert gemma.vocab.tokenize("a" * 200_000)


@pytest.mark.parametrize("name", ["deepseek-coder", "deepseek-llm", "falcon", "gpt-neox"])
def test_a_million_letters(name: str, llama_cpp_dir: Path, run_child: RunChild) -> None:
    """A word of MAX_RUN_BYTES letters is tokenized where llama.cpp recurses for each letter."""
    assert_alive(run_child, 1, [vocabulary_file(llama_cpp_dir, name)], refused=0)


def test_a_chapter_of_words_without_punctuation(llama_cpp_dir: Path, tmp_path: Path, run_child: RunChild) -> None:
    """The pattern of exaone-moe goes on from word to word: such text is no less dangerous than one long word."""
    file = tmp_path / "exaone-moe.gguf"
    file.write_bytes(with_pre_tokenizer(vocabulary_file(llama_cpp_dir, "gpt-2"), "exaone-moe"))
    child = run_child(
        """
        import sys
        import offgrid_llama as og
        with og.Model(sys.argv[1], vocab_only=True) as model:
            text = "the quick brown fox jumps over the lazy dog " * 5000
            assert model.vocab.detokenize(model.vocab.tokenize(text)) == text
        """,
        file,
    )
    assert child.returncode == 0, child.stderr[-500:]


@pytest.mark.parametrize("text", ["a  b", "  ", "a \n b", "a\u00a0 b", "   x   "])
def test_spaces_in_a_row_in_a_whitespace_vocabulary(
    text: str, llama_cpp_dir: Path, tmp_path: Path, run_child: RunChild
) -> None:
    """Jina's whitespace pre-tokenizer, where llama.cpp aborts on two spaces in a row, takes them like one."""
    file = tmp_path / "whitespace.gguf"
    file.write_bytes(with_pre_tokenizer(vocabulary_file(llama_cpp_dir, "gpt-2"), "whitespace"))
    child = run_child(
        """
        import sys
        import offgrid_llama as og
        with og.Model(sys.argv[1], vocab_only=True) as model:
            words = [token for word in sys.argv[2].split() for token in model.vocab.tokenize(word)]
            assert [t for t in model.vocab.tokenize(sys.argv[2]) if model.vocab.piece(t).strip()] == words
        """,
        file,
        text,
    )
    assert child.returncode == 0, child.stderr[-500:]


@pytest.mark.parametrize("override", [False, True])
def test_a_long_number_where_each_digit_looks_ahead(
    override: bool, llama_cpp_dir: Path, tmp_path: Path, run_child: RunChild
) -> None:
    """The pattern of superbpe takes the square of a number's length: 100,000 digits are refused instead of taking hours."""
    file = tmp_path / "superbpe.gguf"
    file.write_bytes(with_pre_tokenizer(vocabulary_file(llama_cpp_dir, "gpt-2"), "gpt-2" if override else "superbpe"))
    child = run_child(
        """
        import sys
        import offgrid_llama as og
        overrides = {"tokenizer.ggml.pre": "superbpe"} if sys.argv[2] else {}
        with og.Model(sys.argv[1], vocab_only=True, kv_overrides=overrides) as model:
            assert model.vocab.tokenize("7" * 100)
            try:
                model.vocab.tokenize("7" * 100_000)
            except og.TokenizeError as error:
                print(error)
        """,
        file,
        "yes" if override else "",
    )
    assert child.returncode == 0, child.stderr[-500:]
    assert "digits" in child.stdout


@pytest.mark.parametrize("char", ["a", "7", "é", "!"])
def test_longer_words_are_refused(char: str, smollm2: og.Model) -> None:
    """A word over MAX_RUN_BYTES bytes is refused before llama.cpp sees it, also in the middle of other text."""
    word = char * (MAX_RUN_BYTES // len(char.encode()) + 1)
    with pytest.raises(og.TokenizeError, match="without a space"):
        smollm2.vocab.tokenize(f"some words {word} and more\n")


@pytest.mark.parametrize("space", [" ", "\n", " \t\r\n"])
def test_longer_stretches_of_space_are_refused(space: str, smollm2: og.Model) -> None:
    """Spaces in a row count like a word."""
    with pytest.raises(og.TokenizeError):
        smollm2.vocab.tokenize("a" + space * (MAX_RUN_BYTES // len(space) + 1) + "b")


def test_longer_texts_are_refused(smollm2: og.Model) -> None:
    """A text over MAX_TOKENIZE_BYTES is refused before anything is done with it."""
    with pytest.raises(og.TokenizeError, match="at once"):
        smollm2.vocab.tokenize(b"a " * (MAX_TOKENIZE_BYTES // 2 + 1))


@examples
@given(st.integers(0, 3000), st.integers(1025, 4000), st.integers(0, 3000), st.sampled_from([b"a", b" ", b"\n"]))
@example(0, 1025, 0, b"a")
@example(511, 1025, 3000, b" ")
def test_no_long_run_is_missed(before: int, length: int, after: int, char: bytes) -> None:
    """A stretch too long for the common stack is measured exactly, wherever it is."""
    around = b"a b c " if char != b"a" else b" b  c"
    text = (around * 600)[:before] + char * length + (around * 600)[:after]
    expected = max(len(match) for match in re.findall(rb"\s+|\S+", text))
    assert longest_run(text) == expected >= length


def test_measuring_runs_is_quick_for_spaces() -> None:
    """Looking for long runs costs no more for a text of spaces than a small multiple of what it costs for words."""

    def cost(text: bytes) -> float:
        times = []
        for _ in range(3):
            begin = time.thread_time()
            longest_run(text)
            times.append(time.thread_time() - begin)
        return min(times)

    spaces, words = (b" " * 1000 + b"x") * 200, b"hello world, this is it " * 8341
    assert cost(spaces) < 6 * cost(words)


def test_the_stack_size_of_other_threads_is_left_alone(smollm2: og.Model) -> None:
    """The thread with the deep stack leaves no trace in ``threading.stack_size()``."""
    before = threading.stack_size()
    smollm2.vocab.tokenize("a" * 5000)
    assert threading.stack_size() == before


def test_no_room_for_the_deep_stack(smollm2: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no address space for the thread, the error is a TokenizeError that says so."""

    def start(_self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(og.TokenizeError, match="thread"):
        smollm2.vocab.tokenize("a" * 5000)


def test_threads_tokenize_at_once(smollm2: og.Model) -> None:
    """Threads that share a vocabulary get what each would get alone, short words and long ones."""
    texts = [f"Thread {i} says {'ab' * (i * 300)} and 日本語 {i * 7919}" for i in range(8)]
    expected = [smollm2.vocab.tokenize(text) for text in texts]
    barrier = threading.Barrier(4)

    def work(_: int) -> list[list[int]]:
        barrier.wait()
        return [smollm2.vocab.tokenize(text) for text in texts]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [expected] * 4
