"""The vocabularies in ``models`` of llama.cpp, by what each can give back.

They stand for the tokenizers. Pre-tokenizers without one there are tried on gpt-2's with another name.
"""

from __future__ import annotations

import struct
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st

import offgrid_llama as og

PAIRS = [
    "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-2", "llama-bpe", "llama-spm",
    "mpt", "phi-3", "qwen2", "qwen35", "refact", "starcoder",
]  # fmt: skip
WITHOUT_VECTORS = ["aquila", "baichuan", "gpt-neox", "nomic-bert-moe"]

# Texts that tokens give back. detokenize() of those in SPACES_CLEANED drops spaces before punctuation, as the model's makers
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
