"""GGUF headers: every key and tensor, held against llama.cpp's own Python reader; damaged files are typed errors."""

from __future__ import annotations

import importlib
import math
import random
import struct
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offgrid_llama as og
from helpers.twin import Value, write_gguf, write_tiny_llama

# Numbers of GGUF's value types, and how Python's struct spells them.
TYPES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


@pytest.fixture
def reader(llama_cpp_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The GGUFReader of llama.cpp's gguf-py: written apart from the C code. It needs NumPy only, its package more."""
    package = types.ModuleType("gguf")
    package.__path__ = [str(llama_cpp_dir / "gguf-py" / "gguf")]
    others = {name for name in sys.modules if name.split(".")[0] == "gguf"}
    for name in others:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", package)
    yield importlib.import_module("gguf.gguf_reader").GGUFReader
    for name in [name for name in sys.modules if name.startswith("gguf.")]:
        del sys.modules[name]


def string(text: bytes | str) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(data)) + data


def header(keys: list[tuple[str, bytes]], n_tensors: int = 0) -> bytes:
    """Return a GGUF header of keys with their values in bytes, as GGUF writes them: the type, then the value."""
    data = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, len(keys))
    for key, value in keys:
        data += string(key) + value
    return data + bytes(-len(data) % 32)


def scalar(kind: int, value: float) -> bytes:
    return struct.pack(f"<I{TYPES[kind]}", kind, value)


def array(kind: int, values: list[Any]) -> bytes:
    data = struct.pack("<IIQ", ARRAY, kind, len(values))
    if kind == STRING:
        return data + b"".join(map(string, values))
    return data + struct.pack(f"<{len(values)}{TYPES[kind]}", *values)


def same(one: object, two: object) -> bool:
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, float) and isinstance(two, float) and math.isnan(one):
        return math.isnan(two)
    return type(one) is type(two) and one == two


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-spm", "bert-bge", "smollm2"])
def test_all_keys_and_tensors_agree_with_gguf_py(
    name: str, request: pytest.FixtureRequest, llama_cpp_dir: Path, reader: Any
) -> None:
    """Each key, each array and each line of the table of tensors is what llama.cpp's Python reader reads."""
    path: Path = llama_cpp_dir / "models" / f"ggml-vocab-{name}.gguf"
    if name == "smollm2":
        path = request.getfixturevalue("smollm2_path")
    other = reader(path)
    fields = {key: field for key, field in other.fields.items() if not key.startswith("GGUF.")}
    with og.GGUF(path) as file:
        assert list(file) == list(fields)
        assert len(file) == len(fields)
        assert file.version == other.fields["GGUF.version"].contents()
        for key, field in fields.items():
            value = file[key]
            assert same(value, field.contents()), key
            assert file.array_length(key) == (len(value) if isinstance(value, list) else None)
        tensors = file.tensors()
        assert file.n_tensors == len(tensors) == len(other.tensors)
        for tensor, expected in zip(tensors, other.tensors, strict=True):
            assert tensor.name == expected.name
            assert tensor.type.lower() == expected.tensor_type.name.lower()
            assert tensor.shape == tuple(int(size) for size in expected.shape)
            assert (tensor.n_bytes, tensor.offset) == (expected.n_bytes, expected.data_offset)
            assert tensor.n_elements == expected.n_elements
    del other  # it maps the file


def test_every_type_of_value(tmp_path: Path) -> None:
    """All types of scalars and arrays come as the Python values that were written."""
    extremes: dict[int, list[Any]] = {
        0: [0, 255],
        1: [-128, 127],
        2: [0, 65535],
        3: [-32768, 32767],
        4: [0, 2**32 - 1],
        5: [-(2**31), 2**31 - 1],
        6: [-1.5, 0.0, math.inf, math.nan],
        7: [True, False],
        10: [0, 2**64 - 1],
        11: [-(2**63), 2**63 - 1],
        12: [1e300, -0.1, math.nan],
    }
    keys, expected = [], {}
    for kind, values in extremes.items():
        for i, value in enumerate(values):
            keys.append((f"s{kind}.{i}", scalar(kind, value)))
            expected[f"s{kind}.{i}"] = value
        for i, many in enumerate([values, []]):
            keys.append((f"a{kind}.{i}", array(kind, many)))
            expected[f"a{kind}.{i}"] = many
    for key, text in [("empty", ""), ("text", "Grüße, 世界 🦙"), ("long", "x" * 100_000)]:
        keys.append((key, struct.pack("<I", STRING) + string(text)))
        expected[key] = text
    texts = ["", "a", "日本", "b" * 5000]
    keys.append(("texts", array(STRING, texts)))
    expected["texts"] = texts
    path = tmp_path / "types.gguf"
    path.write_bytes(header(keys))
    with og.GGUF(path) as file:
        assert list(file) == list(expected)
        for key, value in expected.items():
            assert same(file[key], value), key
        assert dict(file).keys() == expected.keys()
        assert file.array_length("a4.0") == 2
        assert file.array_length("a4.1") == 0
        assert file.array_length("s4.0") is None


def test_booleans_are_true_or_false(tmp_path: Path) -> None:
    """A byte other than 0 and 1 is a bool all the same."""
    path = tmp_path / "bools.gguf"
    path.write_bytes(
        header([("one", struct.pack("<IB", 7, 255)), ("many", struct.pack("<IIQ3B", ARRAY, 7, 3, 0, 2, 255))])
    )
    with og.GGUF(path) as file:
        assert file["one"] is True
        assert file["many"] == [False, True, True]


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 become U+FFFD, in keys, values and arrays."""
    path = tmp_path / "bytes.gguf"
    data = b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + string(b"k\xff") + struct.pack("<I", STRING) + string(b"a\xffb")
    path.write_bytes(data + string("list") + array(STRING, [b"\xc3", b"ok"]))
    with og.GGUF(path) as file:
        assert dict(file) == {"k\ufffd": "a\ufffdb", "list": ["\ufffd", "ok"]}


def test_a_mapping(smollm2_path: Path) -> None:
    """A GGUF is a mapping: in, get, items and KeyError are a dict's."""
    with og.GGUF(smollm2_path) as file:
        assert "general.architecture" in file
        assert file.get("no.such.key") is None
        assert file.get("no.such.key", 5) == 5
        with pytest.raises(KeyError):
            file["no.such.key"]
        with pytest.raises(KeyError):
            file.array_length("no.such.key")
        assert dict(file.items())["general.architecture"] == "llama"
        assert file == file  # noqa: PLR0124 - by identity
        assert hash(file) == hash(file)
        assert file.architecture == "llama"
        assert file.hparam("block_count") == 30
        assert file.hparam("no.such", 7) == 7


def test_hparam_of_an_array(tmp_path: Path) -> None:
    """A number for each layer counts as the largest of them."""
    path = tmp_path / "array.gguf"
    path.write_bytes(
        header(
            [
                ("general.architecture", struct.pack("<I", STRING) + string("x")),
                ("x.many", array(4, [3, 9, 4])),
                ("x.none", array(4, [])),
                ("x.text", struct.pack("<I", STRING) + string("5")),
            ]
        )
    )
    with og.GGUF(path) as file:
        assert [file.hparam(name, 1) for name in ("many", "none", "text")] == [9, 1, 1]


def test_a_file_without_an_architecture(tmp_path: Path) -> None:
    """A GGUF need not be a model."""
    path = tmp_path / "empty.gguf"
    path.write_bytes(header([]))
    with og.GGUF(path) as file:
        assert (len(file), file.n_tensors, file.tensors(), file.architecture) == (0, 0, [], "")


def test_the_memory_is_not_read(smollm2_path: Path) -> None:
    """The table of tensors tells offsets at which the file has the weights."""
    with og.GGUF(smollm2_path) as file:
        norms = [tensor for tensor in file.tensors() if tensor.name == "output_norm.weight"]
        (norm,) = norms
        assert (norm.type, norm.n_elements * 4) == ("f32", norm.n_bytes)
    values = np.fromfile(smollm2_path, np.float32, count=norm.n_elements, offset=norm.offset)
    assert np.isfinite(values).all()
    assert 0.01 < np.abs(values).mean() < 100


# Damaged files --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small model file."""
    path = tmp_path_factory.mktemp("intact") / "tiny.gguf"
    write_tiny_llama(path)
    return path.read_bytes()


def test_files_cut_off_anywhere(intact: bytes, tmp_path: Path) -> None:
    """A file that ends too early, wherever it is cut, is a GGUFError with its path, for GGUF and for Model."""
    path = tmp_path / "cut.gguf"
    path.write_bytes(intact)
    with og.GGUF(path) as file:
        begin = min(tensor.offset for tensor in file.tensors())
        end = max(tensor.offset + tensor.n_bytes for tensor in file.tensors())
    rng = random.Random(1)
    cuts = {
        *range(0, 40),
        *(rng.randrange(40, begin) for _ in range(200)),
        begin - 1,
        begin,
        begin + 1,
        end // 2,
        end - 1,
    }
    for cut in sorted(cuts):
        path.write_bytes(intact[:cut])
        with pytest.raises(og.GGUFError, match=r"cut\.gguf"):
            og.GGUF(path)
        if cut % 7 == 0 or cut > begin - 2:
            with pytest.raises(og.GGUFError, match=r"cut\.gguf"):
                og.Model(path)
    path.write_bytes(intact[:end])
    og.Model(path).close()


def test_a_cut_file_says_how_much_is_missing(intact: bytes, tmp_path: Path) -> None:
    """A download that broke off is told from a damaged header."""
    path = tmp_path / "short.gguf"
    path.write_bytes(intact[:-5000])
    with pytest.raises(og.GGUFError, match=f"cut off: it has {len(intact) - 5000:,} bytes of"):
        og.GGUF(path)


@pytest.mark.parametrize("data", [b"", b"GGU", b"GGML\x03\0\0\0", b"PK\x03\x04 a zip file", b"<html>", bytes(1000)])
def test_files_of_another_kind(data: bytes, tmp_path: Path) -> None:
    """A file of another kind is a GGUFError that shows its first bytes."""
    path = tmp_path / "other.bin"
    path.write_bytes(data)
    for make in (og.GGUF, og.Model):
        with pytest.raises(og.GGUFError, match="is no GGUF"):
            make(path)


@pytest.mark.parametrize(
    "data",
    [
        b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60) + b"key",
        header([("key", struct.pack("<I", 99))]),
        header([("key", struct.pack("<IIQ", ARRAY, 4, 2**60))]),
        header([("key", struct.pack("<IIQ", ARRAY, ARRAY, 1))]),
        header([("key", struct.pack("<IIQ", ARRAY, STRING, 2**40))]),
        header([("key", scalar(4, 1)), ("key", scalar(4, 2))]),
        header([("general.alignment", scalar(4, 0))]),
        header([("general.alignment", scalar(4, 7))]),
        header([], 1) + string("t") + struct.pack("<I4QIQ", 4, 2**40, 2**40, 2**40, 2**40, 0, 0),
        header([], 1) + string("t") + struct.pack("<IQIQ", 1, 8, 999, 0),
        header([], 1) + string("t" * 100) + struct.pack("<IQIQ", 1, 8, 0, 0),
        header([], 1) + string("t") + struct.pack("<IQIQ", 1, 8, 0, 1),
    ],
)
def test_headers_that_make_no_sense(data: bytes, tmp_path: Path) -> None:
    """A header that no writer would write is a GGUFError."""
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    with pytest.raises(og.GGUFError, match=r"odd\.gguf"):
        og.GGUF(path)


def test_no_such_file(tmp_path: Path) -> None:
    """A missing file and a directory are Python's own errors."""
    with pytest.raises(FileNotFoundError):
        og.GGUF(tmp_path / "none.gguf")
    with pytest.raises(IsADirectoryError):
        og.GGUF(tmp_path)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"llama.block_count": 0}, "block_count"),
        ({"llama.block_count": 100_000}, "block_count"),
        ({"llama.expert_count": 5000}, "expert_count"),
        ({"llama.expert_count": 4, "llama.expert_used_count": 9}, "expert_used_count"),
        ({"llama.attention.sliding_window_pattern": 1}, "sliding_window_pattern"),
        ({"llama.attention.sliding_window_pattern": [0, 0]}, "sliding_window_pattern"),
    ],
)
def test_counts_that_llama_cpp_would_abort_on(keys: dict[str, Value], name: str, tmp_path: Path) -> None:
    """check() refuses counts on which llama.cpp aborts; reading the header is still allowed."""
    path = tmp_path / "counts.gguf"
    write_gguf(path, {"general.architecture": "llama", "llama.block_count": 2, **keys}, {})
    with og.GGUF(path) as file, pytest.raises(og.GGUFError, match=name):
        file.check()
    with pytest.raises(og.GGUFError, match=name):
        og.Model(path)


def test_after_close(smollm2_path: Path) -> None:
    """A closed file has no values."""
    file = og.GGUF(smollm2_path)
    file.close()
    for call in (
        lambda: file["general.architecture"],
        file.tensors,
        lambda: file.array_length("tokenizer.ggml.tokens"),
    ):
        with pytest.raises(og.ClosedError, match="GGUF"):
            call()
