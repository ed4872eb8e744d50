"""The vocabulary: llama.cpp's own test vectors, round trips, and text that would end the process if it got through.

The vocabularies in ``models`` of llama.cpp stand for the tokenizers. Pre-tokenizers without one there are tried on gpt-2's
vocabulary, whose file is written anew with their name in it.
"""

from __future__ import annotations

import functools
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from offgrid_llama import vocab as vocab_module

if TYPE_CHECKING:
    from conftest import RunChild

PAIRS = [
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
WITHOUT_VECTORS = ["aquila", "baichuan", "gpt-neox", "nomic-bert-moe"]

# What tokens give back. detokenize() of those in SPACES_CLEANED drops spaces before punctuation, as the model's makers
# want it (clean_up_tokenization_spaces); their joined pieces are exact. falcon has no token for some bytes, bert-bge and
# nomic-bert-moe normalise.
LOSSLESS = ["command-r", "deepseek-coder", "deepseek-llm", "qwen2", "qwen35"]
SPACES_CLEANED = ["aquila", "gpt-2", "gpt-neox", "llama-bpe", "mpt"]
BYTES_MISSING = ["falcon", "refact", "starcoder"]
BLANK_IS_SPACE = ["baichuan", "gemma-4", "llama-spm", "phi-3"]
LOSSY = ["bert-bge", "nomic-bert-moe"]

# The kinds of std::regex among the pre-tokenizers that no vocabulary above has.
PRE_TOKENIZERS = [
    "afmoe", "bailingmoe", "deepseek-v3", "exaone-moe", "gpt-4o", "jais-2", "minicpm5", "poro-chat", "seed-coder",
    "spark2_5", "superbpe", "tekken", "tiny_aya", "ufakzeka", "viking", "whitespace", "youtu",
]  # fmt: skip

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
examples = settings(max_examples=40, deadline=None)


def vocabulary_file(llama_cpp_dir: Path, name: str) -> Path:
    return llama_cpp_dir / "models" / f"ggml-vocab-{name}.gguf"


@pytest.fixture(scope="module")
def vocabulary(llama_cpp_dir: Path) -> Iterator[Callable[[str], og.Vocab]]:
    """Open a vocabulary of llama.cpp by its name; it stays open until the last test of this file."""
    models: dict[str, og.Model] = {}

    def get(name: str) -> og.Vocab:
        if name not in models:
            models[name] = og.Model(vocabulary_file(llama_cpp_dir, name), vocab_only=True)
        return models[name].vocab

    yield get
    for model in models.values():
        model.close()


def with_pre_tokenizer(file: Path, name: str) -> bytes:
    """Return a vocabulary's file with another name under ``tokenizer.ggml.pre``."""
    data, key = file.read_bytes(), b"tokenizer.ggml.pre"
    at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)
    kind, length = struct.unpack_from("<IQ", data, at)
    assert kind == 8  # a string
    return data[: at + 4] + struct.pack("<Q", len(name)) + name.encode() + data[at + 12 + length :]


def through_stream(vocab: og.Vocab, tokens: list[int]) -> str:
    stream = og.TextStream()
    return "".join(stream.push(vocab.piece(token, special=True)) for token in tokens) + stream.finish()


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


# What text may be -----------------------------------------------------------------------------------------------------


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
    """A user who writes a control token gets its letters; ``parse_special`` makes it the token."""
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
    from offgrid_llama import vocab

    sys.path.append(sys.argv[2])
    from texts import mixed

    scale = int(sys.argv[1])
    vocab.MAX_RUN_BYTES //= scale
    vocab._DEEP_STACK_BYTES //= scale
    run = vocab.MAX_RUN_BYTES
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
    child = run_child(RUNS, str(scale), Path(__file__).parent, *files, timeout=250)
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
    monkeypatch.setattr(vocab_module, "MAX_SPECIAL_TOKENS", 1000)
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
    word = char * (vocab_module.MAX_RUN_BYTES // len(char.encode()) + 1)
    with pytest.raises(og.TokenizeError, match="without a space"):
        smollm2.vocab.tokenize(f"some words {word} and more\n")


@pytest.mark.parametrize("space", [" ", "\n", " \t\r\n"])
def test_longer_stretches_of_space_are_refused(space: str, smollm2: og.Model) -> None:
    """Spaces in a row count like a word."""
    with pytest.raises(og.TokenizeError):
        smollm2.vocab.tokenize("a" + space * (vocab_module.MAX_RUN_BYTES // len(space) + 1) + "b")


def test_longer_texts_are_refused(smollm2: og.Model) -> None:
    """A text over MAX_TEXT_BYTES is refused before anything is done with it."""
    with pytest.raises(og.TokenizeError, match="at once"):
        smollm2.vocab.tokenize(b"a " * (vocab_module.MAX_TEXT_BYTES // 2 + 1))


@examples
@given(st.integers(0, 3000), st.integers(1025, 4000), st.integers(0, 3000), st.sampled_from([b"a", b" ", b"\n"]))
@example(0, 1025, 0, b"a")
@example(511, 1025, 3000, b" ")
def test_no_long_run_is_missed(before: int, length: int, after: int, char: bytes) -> None:
    """A stretch too long for the common stack is measured exactly, wherever it is."""
    around = b"a b c " if char != b"a" else b" b  c"
    text = (around * 600)[:before] + char * length + (around * 600)[:after]
    expected = max(len(match) for match in re.findall(rb"\s+|\S+", text))
    assert vocab_module._longest_run(text) == expected >= length


def test_measuring_runs_is_quick_for_spaces() -> None:
    """Looking for long runs costs no more for a text of spaces than a small multiple of what it costs for words."""

    def cost(text: bytes) -> float:
        times = []
        for _ in range(3):
            begin = time.thread_time()
            vocab_module._longest_run(text)
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


# Tokens ---------------------------------------------------------------------------------------------------------------

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
    """The text of one token is the same each time it is asked for, whatever was asked before, until the model is closed."""
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
