"""Architectures: facts by name are of names that llama.cpp has, and lie in one file."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.twin import write_tiny_llama
from offgrid_llama.files import architecture
from offgrid_llama.files.architecture import LONG_RUNS, SPACES_ONLY, Traits, head_sizes, keys_stay, wkv_head_multiple

PACKAGE = Path(architecture.__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def names(llama_cpp_dir: Path) -> set[str]:
    """The names of all architectures of llama.cpp."""
    source = (llama_cpp_dir / "src" / "llama-arch.cpp").read_text(encoding="utf-8")
    begin = source.index("LLM_ARCH_NAMES")
    return set(re.findall(r'LLM_ARCH_\w+, *"([^"]+)"', source[begin : source.index("};", begin)]))


def strings(path: Path) -> set[str]:
    """Return the strings of a Python file."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_names_are_llama_cpps(names: set[str], llama_cpp_dir: Path) -> None:
    """A fact about an architecture or a pre-tokenizer that llama.cpp does not have would never hold."""
    assert len(names) > 100
    facts = {name: value for name, value in vars(architecture).items() if isinstance(value, frozenset)}
    assert len(facts) == 7
    for name, value in facts.items():
        assert value <= names, name
    vocabulary = (llama_cpp_dir / "src" / "llama-vocab.cpp").read_text(encoding="utf-8")
    for name in (*LONG_RUNS, SPACES_ONLY):
        assert f'tokenizer_pre == "{name}"' in vocabulary


def test_one_file_names_architectures(names: set[str]) -> None:
    """When the pin moves, this is the one file to read again. "bert" is a kind of tokenizer, too; others are templates.

    The drop-in has llama-cpp-python's names: of chat formats, and ``llama`` of a parameter.
    """
    found = {path.relative_to(PACKAGE).as_posix(): strings(path) & names for path in PACKAGE.rglob("*.py")}
    others = {path: there for path, there in found.items() if there and not path.startswith("compat/llama_cpp/")}
    assert {path: there for path, there in others.items() if path != "files/architecture.py"} == {
        "files/gguf_preflight.py": {"bert"},
        "cli/llama_server_templates.py": {"command-r", "gemma", "phi3"},
    }


def test_keys_that_stay() -> None:
    """Keys of some architectures are never moved, and of others not where some layers have a sliding window."""
    assert [keys_stay("smollm3", windows) for windows in (False, True)] == [True, True]
    assert [keys_stay("cohere2", windows) for windows in (False, True)] == [False, True]
    assert [keys_stay("llama", windows) for windows in (False, True)] == [False, False]


def test_heads_of_rwkv() -> None:
    """Only RWKV's have a size that divides: RWKV-7's is a multiple of the widest vector."""
    assert [wkv_head_multiple(name) for name in ("llama", "rwkv6", "rwkv7", "arwkv7")] == [0, 1, 64, 64]


def test_sizes_of_heads() -> None:
    """The first key that the metadata have counts, with that of layers with a window; otherwise the default does."""
    metadata = {
        "general.architecture": "x", "x.attention.key_length": "64", "x.attention.key_length_swa": "32",
        "x.rope.dimension_count": "16",
    }  # fmt: skip
    assert head_sizes(metadata, 8, "attention.key_length") == {64, 32}
    assert head_sizes(metadata, 8, "rope.dimension_count", "attention.key_length") == {16}
    assert head_sizes(metadata, 8, "attention.value_length", "rope.dimension_count") == {16}
    assert head_sizes(metadata, 8, "attention.value_length") == {8}


def test_traits_of_a_file(tmp_path: Path) -> None:
    """Traits are read from the metadata and the table of tensors."""
    write_tiny_llama(tmp_path / "x.gguf")
    with og.GGUF(tmp_path / "x.gguf") as file:
        tensors = {tensor.name: tensor for tensor in file.tensors()}
        plain = Traits.of(file, tensors)
        assert plain == Traits("llama", sum(file.kv_heads()), False, 0, 0)
        table = tensors["token_embd.weight"]
        learned = Traits.of(file, {**tensors, "position_embd.weight": table, "cls.weight": table})
        assert learned == Traits("llama", plain.n_kv_heads, True, table.shape[1], table.shape[1])
