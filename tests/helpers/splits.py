"""The tiny llama in several files."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np

import offgrid_llama as og
from helpers.twin import EXACT, TOKENS, decode, write_gguf, write_tiny_llama
from offgrid_llama.files.gguf_encoding import encoded, positions


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
