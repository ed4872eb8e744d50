"""The projector with meaning, for the default model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.projectors import write_meaning


@pytest.fixture(scope="session")
def meaning_path(smollm2: og.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector that makes " dog" of red pictures and of 400 Hz; see helpers/projectors.py."""
    path = tmp_path_factory.mktemp("projector") / "mmproj.gguf"
    write_meaning(path, smollm2)
    return path


@pytest.fixture(scope="session")
def meaning(smollm2: og.Model, meaning_path: Path) -> Iterator[og.Projector]:
    """That projector, open for the whole session; do not close it."""
    with og.Projector(smollm2, meaning_path, image_min_tokens=1, image_max_tokens=64) as projector:
        yield projector
