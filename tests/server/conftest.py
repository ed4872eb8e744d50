"""Models that do something else than chat, and one that thinks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import offgrid_llama as og
from helpers.chats import THINKING
from helpers.infill import FIM
from helpers.projectors import write_meaning
from helpers.serving import MODEL, Served, serving
from helpers.twin import LETTERS, write_tiny_llama


@pytest.fixture(scope="module")
def coder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama that can fill in the middle."""
    path = tmp_path_factory.mktemp("kinds") / "coder.gguf"
    write_tiny_llama(path, more={**LETTERS, **FIM, "tokenizer.ggml.add_bos_token": True})
    return path


@pytest.fixture(scope="module")
def thinker(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server whose model thinks before it answers, unless the request says otherwise."""
    del smollm2_path  # it is there
    folder = tmp_path_factory.mktemp("thinker")
    opens = "enable_thinking is not defined or enable_thinking"
    (folder / "template.jinja").write_text(THINKING.replace("open_thought", opens), encoding="utf-8")
    config = folder / "settings.toml"
    template = folder / "template.jinja"
    config.write_text(f"[[models]]\nname = '{MODEL}'\npreload = true\ntemplate = '{template}'\n", encoding="utf-8")
    with serving("--config", str(config)) as served:
        yield served


@pytest.fixture(scope="session")
def seeing(smollm2: og.Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server with two models: one that sees and hears, and one that does neither."""
    folder = tmp_path_factory.mktemp("seeing")
    write_meaning(folder / "mmproj.gguf", smollm2)
    config = folder / "settings.toml"
    config.write_text(
        f'[[models]]\nname = "seeing"\nmodel = "{MODEL}"\nprojector = "{folder / "mmproj.gguf"}"\n'
        f'image_min_tokens = 1\nimage_max_tokens = 64\npreload = true\n[[models]]\nname = "blind"\nmodel = "{MODEL}"\n'
    )
    with serving("--config", str(config)) as served:
        yield served
