"""Models of several files: the same weights, and nothing missing goes unnamed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import offgrid_llama as og
from helpers.splits import NAMES, logits, with_keys, write_splits
from helpers.twin import write_gguf
from offgrid_llama._capi import ffi, lib
from offgrid_llama.files.model_files import ModelFiles, split_path


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
    """A split whose number has a type on which llama.cpp aborts is refused."""
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
        assert model.files.tensors.keys() == {tensor.name for tensor in whole.tensors()}


def test_files_know_what_they_were(tmp_path: Path) -> None:
    """Tensors are those of all splits; a file that has changed since it was opened first has no fingerprint."""
    paths = write_splits(tmp_path, NAMES)
    files = ModelFiles(str(paths[0]))
    with files.opened() as headers:
        assert (files.path, len(headers), files.unchanged(headers)) == (paths[0], 3, True)
    with og.GGUF(tmp_path / "whole.gguf") as whole:
        assert files.sizes() == {tensor.name: tensor.n_bytes for tensor in whole.tensors()}
    plain = ModelFiles(paths[0]).fingerprint({})
    assert ModelFiles(paths[0]).fingerprint({"x": 1}) != plain
    paths[1].write_bytes(paths[1].read_bytes())
    with files.opened() as headers:
        assert not files.unchanged(headers)
    with pytest.raises(og.ModelLoadError, match="has changed since"):
        files.fingerprint({})
    assert ModelFiles(paths).fingerprint({}) == plain
