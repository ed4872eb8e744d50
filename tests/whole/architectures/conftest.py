"""The tiny model of the architecture that a test names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.architectures import ARCHITECTURES
from helpers.kinds import alone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[og.Model]:
    """A tiny model of the architecture that the test names; open for all of its tests."""
    path = folder / f"{request.param}.gguf"
    ARCHITECTURES[request.param].write(path)
    with og.Model(path) as model:
        yield model
    alone.cache_clear()
