"""Vocabularies of llama.cpp, opened once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.vocabularies import vocabulary_file


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
