"""Models read from open files: the same weights, and descriptors that are closed."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest

import offgrid_llama as og
from helpers.splits import NAMES, logits, with_keys, write_splits
from helpers.twin import TOKENS, Weights, write_tiny_llama
from offgrid_llama.files.gguf_encoding import encoded, positions


@pytest.mark.parametrize("offset", [0, 32, 4096 + 64])
def test_an_open_file(offset: int, tiny: og.Model, tmp_path: Path) -> None:
    """An open file is read from its position, inside of a larger one too; its position stays, and it may be closed."""
    path = tmp_path / "larger"
    path.write_bytes(b"x" * offset + tiny.path.read_bytes() + b"y" * 1000)
    with path.open("rb") as file:
        file.seek(offset)
        with og.GGUF(file) as header, og.GGUF(tiny.path) as other:
            assert dict(header) == dict(other)
            assert header.fingerprint() == other.fingerprint()
            assert header.begin == offset
        model = og.Model(file)
        assert file.tell() == offset
        assert file.read(4) == b"GGUF"
    path.write_bytes(b"")
    path.unlink()
    with model:
        assert model.path == path
        assert model.fingerprint() == tiny.fingerprint()
    with tiny.path.open("rb", buffering=0) as raw, og.Model(raw) as model:
        np.testing.assert_array_equal(logits(model), logits(tiny))


def test_a_position_that_cannot_be_mapped(tiny: og.Model, tmp_path: Path) -> None:
    """Tensors at odd addresses, on which llama.cpp aborts, are read into memory or refused."""
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 7 + tiny.path.read_bytes())
    with path.open("rb") as file:
        file.seek(7)
        for options in (
            {},
            {"load_mode": "mmap"},
            {"load_mode": "none"},
            {"load_mode": "direct_io", "lazy_mode": "off"},
        ):
            with pytest.raises(og.ModelLoadError, match='load_mode="none", lazy_mode="off"'):
                og.Model(file, **options)  # type: ignore[arg-type]
        with og.Model(file, load_mode="none", lazy_mode="off") as model:
            np.testing.assert_array_equal(logits(model), logits(tiny))


def test_a_path_that_cannot_be_mapped(weights: Weights, tmp_path: Path) -> None:
    """The same holds for a file whose own alignment is a smaller one."""
    path = tmp_path / "aligned8.gguf"
    write_tiny_llama(path)
    with_keys(path, x=("u64", 0))
    with og.GGUF(path) as file:
        begin = file.data_offset
    data = path.read_bytes()
    places, (table, end) = positions(data[:begin])
    for filler in range(4):
        added = encoded("general.alignment", "u32", 8) + encoded("filler", "str", "x" * (1 + 8 * filler))
        counts = struct.pack("<QQ", len(weights), len(places) + 2)
        head = data[:8] + counts + data[24:table] + added + data[table:end]
        head += bytes(-len(head) % 8)
        if len(head) % 32:
            break
    path.write_bytes(head + data[begin:])
    with pytest.raises(og.ModelLoadError, match="cannot be mapped"):
        og.Model(path)
    with og.Model(path, load_mode="none", lazy_mode="off") as model:
        assert logits(model).shape == (len(TOKENS), 61)


def test_one_file_in_several_threads(tiny: og.Model) -> None:
    """Threads that load from one open file do not disturb each other's reading."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                with og.Model(file) as model:
                    assert model.fingerprint() == tiny.fingerprint()
        except BaseException as error:
            failures.append(error)
            raise

    with tiny.path.open("rb") as file:
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


def test_a_system_without_a_second_position(tiny: og.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where an open file cannot be opened again, its own position is used and put back, a buffered reader's too."""
    path = tmp_path / "larger"
    path.write_bytes(b"x" * 64 + tiny.path.read_bytes() + b"y" * 1000)

    def refuse(name: object, flags: int) -> int:
        raise FileNotFoundError(name)

    with path.open("rb") as file:
        file.read(64)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", refuse)
            model = og.Model(file)
        with model:
            np.testing.assert_array_equal(logits(model), logits(tiny))
        assert file.tell() == 64
        assert file.read() == path.read_bytes()[64:]


def test_descriptors_are_closed(tiny: og.Model) -> None:
    """A load leaves no descriptor open, whether it works or fails."""
    with tiny.path.open("rb") as file:
        before = len(os.listdir("/dev/fd"))
        og.Model(file).close()
        with pytest.raises(og.ModelLoadError):
            og.Model(file, kv_overrides={"general.architecture": "no-such"})
        assert len(os.listdir("/dev/fd")) == before


def test_things_that_are_no_such_file(tiny: og.Model, tmp_path: Path) -> None:
    """A file that llama.cpp could not read is refused with the way out; other contents are a GGUFError."""
    with pytest.raises(TypeError, match="BytesIO is no file"):
        og.Model(io.BytesIO(tiny.path.read_bytes()))
    with tiny.path.open(encoding="latin-1") as text, pytest.raises(TypeError, match='"rb"'):
        og.Model(text)  # type: ignore[arg-type]
    reader, writer = os.pipe()
    with (
        open(reader, "rb") as pipe,
        open(writer, "wb"),
        pytest.raises(TypeError, match="no file of the operating system"),
    ):
        og.Model(pipe)
    with gzip.open(tmp_path / "x.gz", "wb") as packed:
        packed.write(tiny.path.read_bytes())
    with gzip.open(tmp_path / "x.gz") as packed, pytest.raises(og.GGUFError, match="no GGUF"):
        og.Model(packed)  # type: ignore[arg-type]
    with tempfile.TemporaryFile() as file:
        file.write(tiny.path.read_bytes())
        file.seek(0)
        og.Model(file).close()
    with write_splits(tmp_path, NAMES)[0].open("rb") as first, pytest.raises(og.GGUFError, match="first of 3 splits"):
        og.Model(first)
