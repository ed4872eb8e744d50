"""Models of several files, and models read from open files: the same weights, and nothing missing goes unnamed."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from twin import EXACT, TOKENS, Weights, decode, write_gguf, write_tiny_llama

import offgrid_llama as og
from offgrid_llama._capi import ffi, lib
from offgrid_llama.gguf_bytes import encoded, positions
from offgrid_llama.splits import split_path


def with_keys(path: Path, **keys: tuple[str, Any]) -> None:
    """Add keys of any type to a GGUF file."""
    with og.GGUF(path) as file:
        begin = file.data_offset
    data = path.read_bytes()
    places, (table, end) = positions(data[:begin])
    n_tensors, n_keys = struct.unpack_from("<QQ", data, 8)
    added = b"".join(encoded(key.replace("_", "."), *value) for key, value in keys.items())
    head = (
        data[:8]
        + struct.pack("<QQ", n_tensors, n_keys + len(keys))
        + data[24 : places[-1][1]]
        + added
        + data[table:end]
    )
    path.write_bytes(head + bytes(-len(head) % 32) + data[begin:])


def write_splits(folder: Path, names: list[str]) -> list[Path]:
    """Write the tiny llama as one file with all metadata and some tensors, and others with the rest."""
    weights = write_tiny_llama(folder / "whole.gguf")
    with og.GGUF(folder / "whole.gguf") as file:
        keys: dict[str, Any] = dict(file)
    paths, left = [], list(weights)
    for number, name in enumerate(names):
        mine = left[number :: len(names)]
        write_gguf(folder / name, keys if number == 0 else {}, {tensor: weights[tensor] for tensor in mine})
        split: dict[str, tuple[str, Any]] = {
            "split_no": ("u16", number), "split_count": ("u16", len(names)), "split_tensors_count": ("i32", len(weights))
        }  # fmt: skip
        if number:
            write_gguf(folder / name, {"x": 1}, {tensor: weights[tensor] for tensor in mine})
        with_keys(folder / name, **split)
        paths.append(folder / name)
    return paths


def logits(model: og.Model) -> np.ndarray[Any, Any]:
    with og.Context(model, n_ctx=256, **EXACT) as context:
        return decode(context, TOKENS)


NAMES = ["m-00001-of-00003.gguf", "m-00002-of-00003.gguf", "m-00003-of-00003.gguf"]


def test_a_split_model_is_found_by_its_first_file(tiny: og.Model, tmp_path: Path) -> None:
    """The first file of a split model loads all of them, and has a fingerprint of all."""
    paths = write_splits(tmp_path, NAMES)
    with og.Model(paths[0]) as model:
        np.testing.assert_array_equal(logits(model), logits(tiny))
        assert (model.n_params, model.path) == (tiny.n_params, paths[0])
        before = model.fingerprint()
    data = bytearray(paths[2].read_bytes())
    data[-40] ^= 1
    paths[2].write_bytes(data)
    with og.Model(paths[0]) as model:
        assert model.fingerprint() != before


def test_splits_of_any_name(tiny: og.Model, tmp_path: Path) -> None:
    """A list of paths, in the right order, may have any names."""
    paths = write_splits(tmp_path, ["a.gguf", "ü b", "c.bin"])
    with og.Model([str(paths[0]), *paths[1:]]) as model:
        np.testing.assert_array_equal(logits(model), logits(tiny))
    with og.Model([tmp_path / "whole.gguf"]) as model:
        assert model.n_params == tiny.n_params


def test_splits_that_do_not_make_a_model(tmp_path: Path) -> None:
    """A missing, surplus, repeated or damaged split is a GGUFError that names the file."""
    paths = write_splits(tmp_path, NAMES)
    wrong: list[tuple[list[Path], str]] = [
        ([paths[1]], "split 1"),
        (paths[:2], "one of 3 splits, and 2 files"),
        ([*paths, paths[0]], "one of 3 splits, and 4 files"),
        ([paths[0], paths[2], paths[1]], r"m-00003-of-00003\.gguf says that it is split 2"),
        ([tmp_path / "whole.gguf", paths[1]], "one of 1 splits"),
        ([paths[0], tmp_path / "whole.gguf", paths[2]], r"whole\.gguf says"),
    ]
    for given, message in wrong:
        with pytest.raises(og.GGUFError, match=message):
            og.Model(given if len(given) > 1 else given[0])
    with pytest.raises(ValueError, match="at least one"):
        og.Model([])
    with pytest.raises(FileNotFoundError, match="none"):
        og.Model([paths[0], tmp_path / "none"])
    odd = paths[0].rename(tmp_path / "odd.gguf")
    with pytest.raises(og.GGUFError, match="give the paths of all"):
        og.Model(odd)
    odd.rename(paths[0])
    paths[2].write_bytes(paths[2].read_bytes()[:-3000])
    with pytest.raises(og.GGUFError, match=r"m-00003-of-00003\.gguf is cut off"):
        og.Model(paths[0])
    paths[2].unlink()
    for call in (og.Model, og.memory_plan):
        with pytest.raises(og.GGUFError, match=r"m-00003-of-00003\.gguf is missing"):
            call(paths[0])


def test_a_number_of_another_type(tmp_path: Path) -> None:
    """A split whose number has a type over which llama.cpp ends the process is refused."""
    paths = write_splits(tmp_path, NAMES)
    write_gguf(paths[1], {"x": 1}, {})
    with_keys(paths[1], split_no=("u32", 1))
    with pytest.raises(og.GGUFError, match=r"00002.*split\.no must be of type u16"):
        og.Model(paths[0])


def test_split_path_is_llama_cpps() -> None:
    """Splits are named as llama.cpp names them."""
    buffer = ffi.new("char[]", 200)
    for prefix, number, count in [("a", 0, 1), ("/x y/b", 7, 12), ("ü", 99998, 99999)]:
        assert lib.llama_split_path(buffer, 200, prefix.encode(), number, count)
        assert os.fspath(split_path(prefix, number, count)) == ffi.string(buffer).decode()
        assert lib.llama_split_prefix(buffer, 200, os.fsencode(split_path(prefix, number, count)), number, count)
        assert ffi.string(buffer).decode() == prefix


def test_an_adapter_is_checked_against_all_splits(tmp_path: Path) -> None:
    """The weights that an adapter changes may be in any of the files."""
    paths = write_splits(tmp_path, NAMES)
    with og.Model(paths[0]) as model, og.GGUF(tmp_path / "whole.gguf") as whole:
        assert model._tensors.keys() == {tensor.name for tensor in whole.tensors()}


# Open files ------------------------------------------------------------------------------------------------------------


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
    """Tensors at odd addresses, over which llama.cpp ends the process, are read into memory or refused."""
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
    """What llama.cpp could not read is refused with the way out; other contents are a GGUFError."""
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
