"""A tiny llama whose tokens are letters, one that often says the same, and an engine."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import offgrid_llama as og
from helpers.engines import EOS, make
from helpers.twin import LETTERS, tiny_llama, write_gguf, write_tiny_llama


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """A tiny llama whose tokens are letters; one of them ends a text."""
    path = tmp_path_factory.mktemp("engine") / "letters.gguf"
    write_tiny_llama(path, more={**LETTERS, "tokenizer.ggml.eos_token_id": EOS})
    with og.Model(path) as model:
        yield model


@pytest.fixture(scope="module")
def nearly(tmp_path_factory: pytest.TempPathFactory) -> Iterator[og.Model]:
    """One that often says what ``letters`` says."""
    path = tmp_path_factory.mktemp("engine") / "nearly.gguf"
    keys, weights = tiny_llama()
    weights["output.weight"] += 0.05 * np.random.default_rng(1).standard_normal((61, 64)).astype(np.float32)
    write_gguf(path, {**keys, **LETTERS, "tokenizer.ggml.eos_token_id": EOS}, weights)
    with og.Model(path) as model:
        yield model


@pytest.fixture
def engine(letters: og.Model) -> Iterator[og.Engine]:
    """Four sequences of 256 tokens, 64 in a step."""
    with make(letters) as engine:
        yield engine
