"""Changed copies of GGUF files: what changes does, all else stays to the byte, and what cannot be is named."""

from __future__ import annotations

import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.splits import logits, with_keys
from offgrid_llama.files.gguf_encoding import TYPES


@pytest.fixture
def path(tiny: og.Model, tmp_path: Path) -> Path:
    """The tiny llama with a key of each type, and an array of each."""
    path = tmp_path / "all.gguf"
    path.write_bytes(tiny.path.read_bytes())
    values: dict[str, Any] = dict.fromkeys(TYPES, 1) | {"bool": True, "str": "ü", "f32": 0.5, "f64": 0.1}
    keys = {kind: (kind, value) for kind, value in values.items()}
    with_keys(path, **keys, **{f"{kind}s": (kind, [value] * 3) for kind, (_, value) in keys.items()})
    return path


def weights(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    with og.GGUF(path) as file:
        return {t.name: data[t.offset : t.offset + t.n_bytes] for t in file.tensors()}


def test_a_copy_without_changes_is_the_same_file(smollm2_path: Path, path: Path, tmp_path: Path) -> None:
    """Nothing changed, nothing differs, in a real model with its arrays either."""
    for source in (path, smollm2_path):
        with og.GGUF(source) as file:
            file.copy(tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_values_of_each_type(path: Path, tmp_path: Path) -> None:
    """A changed key keeps its type, a scalar may become a list and the other way round, and the tensors stay."""
    low = {f"i{n}": -(2 ** (n - 1)) for n in (8, 16, 32, 64)}
    high = {f"u{n}": 2**n - 1 for n in (8, 16, 32, 64)}
    other: dict[str, Any] = {"bool": False, "str": "日本\n", "f32": -1.5, "f64": 1e300, **low, **high}
    changes = {**other, **{f"{kind}s": [value, value] for kind, value in other.items()}}
    with og.GGUF(path) as file:
        file.copy(tmp_path / "copy.gguf", changes)
        file.copy(tmp_path / "turned.gguf", {"u8": [1, 2], "strs": "one", "f32": 3, "i16s": []})
    with og.GGUF(tmp_path / "copy.gguf") as copy, og.GGUF(path) as file:
        assert {key: copy[key] for key in changes} == changes
        assert {key: copy.value_type(key) for key in copy} == {key: file.value_type(key) for key in file}
        assert {key: copy[key] for key in copy if key not in changes} == {
            key: file[key] for key in file if key not in changes
        }
    with og.GGUF(tmp_path / "turned.gguf") as turned:
        assert [turned[key] for key in ("u8", "strs", "f32", "i16s")] == [[1, 2], "one", 3.0, []]
    assert weights(tmp_path / "copy.gguf") == weights(path)


def test_new_keys(path: Path, tmp_path: Path) -> None:
    """A new key gets the type that llama.cpp reads its own values as, or the one that is asked for."""
    new: dict[str, tuple[Any, str]] = {
        "n.bool": (True, "bool"), "n.str": ("x", "str"), "n.float": (0.5, "f32"), "n.nan": (math.nan, "f32"),
        "n.int": (2**32 - 1, "u32"), "n.minus": (-1, "i32"), "n.long": (2**32, "u64"), "n.least": (-(2**31) - 1, "i64"),
        "n.ints": ([1, -1], "i32"), "n.large": ([2**31], "u32"), "n.larger": ([2**63], "u64"), "n.strs": (["", "a"], "str"),
        "n.bools": ([True, False], "bool"),
    }  # fmt: skip
    asked = {"t.int": (5, "u8"), "t.float": (5, "f64"), "t.none": ([], "str"), "u32": (7, "i64")}
    with og.GGUF(path) as file:
        file.copy(
            tmp_path / "copy.gguf",
            {key: value for key, (value, _) in (new | asked).items()},
            types={key: kind for key, (_, kind) in asked.items()},
            remove=["str", "i8s"],
        )
        expected = set(file) | new.keys() | asked.keys()
    with og.GGUF(tmp_path / "copy.gguf") as copy:
        for key, (value, kind) in (new | asked).items():
            assert copy.value_type(key) == kind, key
            assert copy[key] == value or key == "n.nan", key
        assert set(copy) == expected - {"str", "i8s"}


def test_a_changed_copy_loads(tiny: og.Model, tmp_path: Path) -> None:
    """A copy is a model with what was changed, and has a fingerprint of its own."""
    with og.GGUF(tiny.path) as file:
        file.copy(tmp_path / "copy.gguf", {"llama.context_length": 99, "tokenizer.chat_template": "{{ x }}"})
    with og.Model(tmp_path / "copy.gguf") as model:
        assert (model.n_ctx_train, model.chat_template()) == (99, "{{ x }}")
        assert model.fingerprint() != tiny.fingerprint()
        np.testing.assert_array_equal(logits(model), logits(tiny))


def test_what_lies_around_is_left_behind(tiny: og.Model, tmp_path: Path) -> None:
    """Of an open file the GGUF is copied, not what is before and after it; another alignment is kept."""
    larger = tmp_path / "larger"
    larger.write_bytes(b"x" * 100 + tiny.path.read_bytes() + b"y" * 5000)
    with larger.open("rb") as opened:
        opened.seek(100)
        with og.GGUF(opened) as file:
            file.copy(tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == tiny.path.read_bytes()
    data = b"GGUF" + struct.pack("<IQQ", 3, 2, 1)
    key = b"general.alignment"
    data += struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, 256)
    for name, offset in ((b"a", 0), (b"b", 256)):
        data += struct.pack("<Qs", 1, name) + struct.pack("<IQIQ", 1, 3, 0, offset)
    data += bytes(-len(data) % 256) + b"aaaabbbbcccc" + bytes(244) + b"ddddeeeeffff"
    (tmp_path / "wide.gguf").write_bytes(data + bytes(244))
    with og.GGUF(tmp_path / "wide.gguf") as file:
        file.copy(tmp_path / "same.gguf")
        assert (tmp_path / "same.gguf").read_bytes() == data + bytes(244)
        file.copy(tmp_path / "copy.gguf", {"key": "x" * 500})
    assert weights(tmp_path / "copy.gguf") == {"a": b"aaaabbbbcccc", "b": b"ddddeeeeffff"}


def test_text_that_is_no_utf8_stays(tmp_path: Path) -> None:
    """Bytes that Python cannot read as text are copied as they are, and can be removed."""
    string = struct.pack("<Q", 2) + b"k\xff"
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string + struct.pack("<I", 8) + struct.pack("<Q", 3) + b"a\xff\0"
    (tmp_path / "odd.gguf").write_bytes(data)
    with og.GGUF(tmp_path / "odd.gguf") as file:
        file.copy(tmp_path / "copy.gguf", {"n": 1})
        file.copy(tmp_path / "less.gguf", {"n": 1}, remove=list(file))
    assert b"a\xff\0" in (tmp_path / "copy.gguf").read_bytes()
    with og.GGUF(tmp_path / "less.gguf") as file:
        assert dict(file) == {"n": 1}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"changes": {"u8": 256}}, ValueError, "'u8': 256 does not fit into u8"),
        ({"changes": {"u8": -1}}, ValueError, "'u8'"),
        ({"changes": {"u8": 1.0}}, TypeError, "'u8'.*type u8"),
        ({"changes": {"u8": True}}, TypeError, "'u8'.*type u8"),
        ({"changes": {"u8": "1"}}, TypeError, "'u8'.*type u8"),
        ({"changes": {"u8": None}}, TypeError, "'u8'"),
        ({"changes": {"u8": [1, [2]]}}, TypeError, "'u8'"),
        ({"changes": {"f32": 1e39}}, ValueError, "'f32'"),
        ({"changes": {"f32": "x"}}, TypeError, "'f32'"),
        ({"changes": {"f64": 10**400}}, ValueError, "'f64'"),
        ({"changes": {"bool": 1}}, TypeError, "'bool'"),
        ({"changes": {"str": 1}}, TypeError, "'str'"),
        ({"changes": {"str": "a\0b"}}, ValueError, "zero byte"),
        ({"changes": {"strs": ["\ud800"]}}, ValueError, "'strs': is no text"),
        ({"changes": {"n": 2**64}}, TypeError, "'n'"),
        ({"changes": {"n": []}}, TypeError, "'n'.*types="),
        ({"changes": {"n": [1, 0.5]}}, TypeError, "'n'.*types="),
        ({"changes": {"n": None}}, TypeError, "'n'"),
        ({"changes": {"n": b"x"}}, TypeError, "'n'"),
        ({"changes": {"": 1}}, ValueError, "a key must have a name"),
        ({"changes": {"a\0": 1}}, ValueError, "zero byte"),
        ({"changes": {"n": 1}, "types": {"n": "u128"}}, ValueError, "types must be of u8, .*'u128'"),
        ({"types": {"u8": "u8"}}, KeyError, "types: there is no 'u8'"),
        ({"remove": ["none"]}, KeyError, "remove: there is no 'none'"),
        ({"remove": ["u8"], "changes": {"u8": 1}}, ValueError, "both"),
        ({"changes": {"general.alignment": 64}}, ValueError, "general.alignment"),
        (
            {"changes": {"general.alignment": 32}, "types": {"general.alignment": "str"}},
            ValueError,
            "general.alignment",
        ),
        ({"remove": ["general.alignment"]}, ValueError, "general.alignment"),
    ],
)
def test_changes_that_cannot_be(arguments: dict[str, Any], error: type[Exception], message: str, path: Path) -> None:
    """A value that does not fit is refused by its key, and no file is left."""
    with og.GGUF(path) as file, pytest.raises(error, match=message):
        file.copy(path.with_name("copy.gguf"), **arguments)
    assert os.listdir(path.parent) == [path.name]


def test_places_of_copies(path: Path, tmp_path: Path) -> None:
    """A copy takes the place of another file, never its source's; a source that has changed is not copied."""
    target = tmp_path / "copy.gguf"
    target.write_text("before")
    with og.GGUF(path) as file:
        with pytest.raises(ValueError, match="must not be the file that is copied"):
            file.copy(path)
        with pytest.raises(FileNotFoundError):
            file.copy(tmp_path / "none" / "x")
        file.copy(target)
        assert target.stat().st_mode == path.stat().st_mode
        os.utime(path, (1, 1))
        for call in (lambda: file.copy(target), file.fingerprint):
            with pytest.raises(og.GGUFError, match="has changed"):
                call()
    with pytest.raises(og.ClosedError):
        file.copy(target)
    assert sorted(os.listdir(tmp_path)) == ["all.gguf", "copy.gguf"]


def test_random_changes(path: Path, tmp_path: Path) -> None:
    """A value that fits its type is read back as it was written; any other is a TypeError or a ValueError."""
    rng = random.Random(3)
    values: list[Any] = [
        0, 1, -1, 255, 2**31, 2**63, 2**64, 0.0, 1e39, math.inf, True, "", "日本", "\0", "\ud800", None, b"", [], [1], [0.5],
        ["a", ""], [True], [1, "a"], [[1]], [None], (1,), {}, object(),
    ]  # fmt: skip
    written = 0
    with og.GGUF(path) as file:
        keys = [*TYPES, *(f"{kind}s" for kind in TYPES), "new", "general.name", "llama.block_count"]
        for _ in range(300):
            changes = {key: rng.choice(values) for key in rng.sample(keys, 2)}
            types = {key: rng.choice(list(TYPES)) for key in changes if rng.random() < 0.3}
            try:
                file.copy(tmp_path / "copy.gguf", changes, types=types)
            except (TypeError, ValueError):
                continue
            written += 1
            with og.GGUF(tmp_path / "copy.gguf") as copy:
                assert len(copy) == len(file.keys() | changes.keys())
                for key, value in changes.items():
                    assert copy[key] == value, key
    assert written > 20
