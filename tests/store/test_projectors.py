"""The projector that lies beside a model: in its folder, and in its repository of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.sources import BYTES, FILE, HUB_NAME, REPO, Server, needs_hub, shelf
from offgrid_llama import store
from offgrid_llama.errors import DownloadError, StoreError, UnknownModelError
from offgrid_llama.store.projectors import projector_among


@pytest.mark.parametrize(
    ("files", "model", "chosen"),
    [
        (["a-Q4_0.gguf", "mmproj-a-f16.gguf"], "a-Q4_0.gguf", "mmproj-a-f16.gguf"),
        (["mmproj-F32.gguf", "mmproj-BF16.gguf", "mmproj-F16.gguf"], "a.gguf", "mmproj-F16.gguf"),
        (["mmproj-model-Q8_0.gguf", "mmproj-model-f32.gguf"], "a.gguf", "mmproj-model-Q8_0.gguf"),
        (["mmproj-b-4b-f16.gguf", "mmproj-a-4b-q8_0.gguf"], "a-4b-Q4_K_M.gguf", "mmproj-a-4b-q8_0.gguf"),
        (["a-7b-mmproj.gguf", "a-2b-mmproj.gguf"], "a-7b-q4.gguf", "a-7b-mmproj.gguf"),
        (["sub/mmproj.gguf", "README.md"], "a.gguf", "sub/mmproj.gguf"),
        (["a.gguf", "mmproj.bin", "notmmproj1.gguf", "mmproject.gguf"], "a.gguf", None),
        ([], "a.gguf", None),
    ],
)  # fmt: skip
def test_names(files: list[str], model: str, chosen: str | None) -> None:
    """By the words that a name has in common with the model's, and then by its type; the order of files is nothing."""
    assert projector_among(files, model) == chosen
    assert projector_among(files[::-1], model) == chosen


def test_a_folder(tmp_path: Path) -> None:
    """Beside a file."""
    (tmp_path / "a.gguf").write_bytes(b"")
    with pytest.raises(StoreError, match=r"no file beside .*a\.gguf is a projector"):
        store.projector_of(tmp_path / "a.gguf")
    (tmp_path / "mmproj-a.gguf").write_bytes(b"")
    assert store.projector_of(tmp_path / "a.gguf") == tmp_path / "mmproj-a.gguf"
    assert store.projector_of(str(tmp_path / "a.gguf"), download="never") == tmp_path / "mmproj-a.gguf"
    with pytest.raises(UnknownModelError):
        store.projector_of(tmp_path / "b.gguf")


def test_a_model_of_the_catalog(tmp_path: Path) -> None:
    """None of these has one."""
    with pytest.raises(StoreError, match=r"Tiny-1\.0 has no projector in the catalog"):
        shelf(tmp_path).projector_of("tiny")


@needs_hub
def test_a_repository(online: store.Store, server: Server) -> None:
    """It is downloaded, found in the cache without the hub, and by the model's file in the cache as well."""
    server.files = [FILE, "mmproj-tiny-f32.gguf", "mmproj-tiny-f16.gguf"]
    with pytest.raises(StoreError, match=r"the cache .* has no projector for"):
        online.projector_of(HUB_NAME, download="never")
    path = online.projector_of(HUB_NAME)
    assert path.read_bytes() == BYTES
    assert list(online.cached()) == [f"hf:{REPO}/mmproj-tiny-f16.gguf"]
    model = online.pull(HUB_NAME)
    server.error = (500, "")
    assert online.projector_of(HUB_NAME, download="never") == path
    assert online.projector_of(model) == path


@needs_hub
def test_a_repository_without_one(online: store.Store, server: Server) -> None:
    """It is said so, and why the hub does not answer."""
    with pytest.raises(StoreError, match=f"{REPO} has no projector for"):
        online.projector_of(HUB_NAME)
    server.error = (401, "")
    with pytest.raises(DownloadError, match=r"401|private"):
        online.projector_of(HUB_NAME)
