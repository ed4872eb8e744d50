"""A tiny llama with random float32 weights, and its twin in NumPy, which knows nothing of cells, streams and shifts of keys.

llama.cpp and the twin share their results to 1e-5, where a real model's quantized weights and 8-bit activations differ
by whole units between two kernels. The fixtures ``tiny`` and ``weights`` of conftest.py are made by ``write_tiny_llama``.
"""

from __future__ import annotations

import string
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import offgrid_llama as og

Array = npt.NDArray[Any]
Weights = dict[str, Array]

N_VOCAB, N_EMBD, N_FF, N_HEAD, N_LAYER, HEAD = 61, 64, 96, 2, 2, 32
EPSILON = 1e-5
EXACT: dict[str, Any] = {"type_k": "f32", "type_v": "f32", "flash_attn_type": "disabled", "n_threads": 1}
"""Options of a context that computes in float32 throughout."""
CLOSE = 1e-3
"""How far float32 may be from the twin's float64: 6e-6 was measured, and a wrong position or token gives at least 0.1."""
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 53, 58, 9, 7, 32, 38, 46, 26]


Value = str | bool | int | float | list[str] | list[int] | list[float]


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


_LISTS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    str: (8, _text),
    int: (5, struct.Struct("<i").pack),
    float: (6, struct.Struct("<f").pack),
}


def write_gguf(path: Path, keys: Mapping[str, Value], tensors: Weights) -> None:
    """Write a GGUF file: strings, bools, uint32, float32, lists of str, int32, float32; tensors of float32 and float16."""
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for key, value in keys.items():
        header += _text(key)
        if isinstance(value, str):
            header += struct.pack("<I", 8) + _text(value)
        elif isinstance(value, bool):
            header += struct.pack("<IB", 7, value)
        elif isinstance(value, list):
            kind, packed = _LISTS[type(value[0])]
            header += struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(packed, value))
        elif isinstance(value, float):
            header += struct.pack("<If", 6, value)
        else:
            header += struct.pack("<II", 4, value)
    data = b""
    for name, array in tensors.items():
        kind = {"float32": 0, "float16": 1}[array.dtype.name]
        header += _text(name) + struct.pack(f"<I{array.ndim}QIQ", array.ndim, *array.shape[::-1], kind, len(data))
        data += array.tobytes() + bytes(-array.nbytes % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)


LETTERS: dict[str, Value] = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "<A>", "<B>", "<C>", "▁", *string.ascii_letters, "<", ">"],
    "tokenizer.ggml.token_type": [2, 3, 3, 3, 3, 3, *[1] * 55],
    "tokenizer.ggml.scores": [0.0] * N_VOCAB,
    "tokenizer.ggml.add_space_prefix": False,
}
"""A vocabulary for the tiny llama: a token for each letter."""


def write_tiny_llama(path: Path, n_head: int = N_HEAD, more: Mapping[str, Value] | None = None) -> Weights:
    """Write a GGUF file of a llama with random weights and no tokenizer, or with ``more`` keys; return the weights."""
    keys, weights = tiny_llama(n_head)
    write_gguf(path, {**keys, **(more or {})}, weights)
    return weights


def tiny_llama(n_head: int = N_HEAD) -> tuple[dict[str, Value], Weights]:
    """Return the keys and the weights of such a file."""
    rng = np.random.default_rng(7)
    head = N_EMBD // n_head

    def matrix(rows: int, columns: int, scale: float = 1.5) -> Array:
        return np.asarray(rng.standard_normal((rows, columns)) * scale / np.sqrt(columns), np.float32)

    weights: Weights = {
        "token_embd.weight": matrix(N_VOCAB, N_EMBD, 8.0),
        "output_norm.weight": np.ones(N_EMBD, np.float32),
        "output.weight": matrix(N_VOCAB, N_EMBD, 3.0),
    }
    for layer in range(N_LAYER):
        for name, rows, columns in [
            ("attn_q", N_EMBD, N_EMBD),
            ("attn_k", head, N_EMBD),
            ("attn_v", head, N_EMBD),
            ("attn_output", N_EMBD, N_EMBD),
            ("ffn_gate", N_FF, N_EMBD),
            ("ffn_up", N_FF, N_EMBD),
            ("ffn_down", N_EMBD, N_FF),
        ]:
            weights[f"blk.{layer}.{name}.weight"] = matrix(rows, columns)
        for name in ("attn_norm", "ffn_norm"):
            weights[f"blk.{layer}.{name}.weight"] = 1 + 0.1 * rng.standard_normal(N_EMBD).astype(np.float32)

    keys: dict[str, Value] = {
        "general.architecture": "llama",
        "llama.context_length": 4096,
        "llama.embedding_length": N_EMBD,
        "llama.block_count": N_LAYER,
        "llama.feed_forward_length": N_FF,
        "llama.attention.head_count": n_head,
        "llama.attention.head_count_kv": 1,
        "llama.rope.dimension_count": head,
        "llama.attention.layer_norm_rms_epsilon": EPSILON,
        "llama.vocab_size": N_VOCAB,
        "tokenizer.ggml.model": "none",
    }
    return keys, weights


class Cell:
    """One token of the twin's memory: its position, the sequences that have it, and keys and values of each layer."""

    def __init__(self, pos: int, seqs: Iterable[int]) -> None:
        self.pos = pos
        self.seqs = set(seqs)
        self.keys: list[Array] = []
        self.values: list[Array] = []


class Twin:
    """The tiny llama in NumPy, with a memory that does what llama.h says of its own, in float64."""

    def __init__(self, weights: Weights, *, unified: bool = False) -> None:
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.unified = unified
        self.cells: list[Cell] = []

    def norm(self, x: Array, name: str) -> Array:
        return np.asarray(
            x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPSILON) * self.weights[f"{name}.weight"]
        )

    @staticmethod
    def _rope(x: Array, pos: int | Array) -> Array:
        angle = pos * 10000.0 ** (-2 * np.arange(HEAD // 2) / HEAD)
        turned = np.empty_like(x)
        turned[..., ::2] = x[..., ::2] * np.cos(angle) - x[..., 1::2] * np.sin(angle)
        turned[..., 1::2] = x[..., ::2] * np.sin(angle) + x[..., 1::2] * np.cos(angle)
        return turned

    def batch(self, rows: Sequence[tuple[int, int, Sequence[int]]]) -> Array:
        """Add (token, position, sequences) of each row, and return the logits of each."""
        new = [Cell(pos, seqs) for _, pos, seqs in rows]
        self.cells = cells = self.cells + new
        places = np.array([cell.pos for cell in cells])
        owners = np.array([sum(1 << seq for seq in cell.seqs) for cell in cells])
        begin = len(cells) - len(new)
        seen = (places <= places[begin:, None]) & (owners & owners[begin:, None] != 0)
        x = self.weights["token_embd.weight"][[token for token, _, _ in rows]]
        for layer in range(N_LAYER):

            def times(h: Array, name: str, layer: int = layer) -> Array:
                return np.asarray(h @ self.weights[f"blk.{layer}.{name}.weight"].T)

            h = self.norm(x, f"blk.{layer}.attn_norm")
            for cell, key, value in zip(new, times(h, "attn_k"), times(h, "attn_v"), strict=True):
                cell.keys.append(key)
                cell.values.append(value)
            query = self._rope(times(h, "attn_q").reshape(len(rows), N_HEAD, HEAD), places[begin:, None, None])
            keys = self._rope(np.array([cell.keys[layer] for cell in cells]), places[:, None])
            values = np.array([cell.values[layer] for cell in cells])
            score = np.where(seen[:, None], query @ keys.T / np.sqrt(HEAD), -np.inf)
            score = np.exp(score - score.max(axis=-1, keepdims=True))
            mixed = score / score.sum(axis=-1, keepdims=True) @ values
            x = x + times(mixed.reshape(len(rows), -1), "attn_output")
            h = self.norm(x, f"blk.{layer}.ffn_norm")
            gate = times(h, "ffn_gate")
            x = x + times(gate / (1 + np.exp(-gate)) * times(h, "ffn_up"), "ffn_down")
        return np.asarray(self.norm(x, "output_norm") @ self.weights["output.weight"].T)

    def decode(self, token: int, pos: int, seqs: Sequence[int] = (0,)) -> Array:
        """Add a token and return its logits."""
        return np.asarray(self.batch([(token, pos, seqs)])[0])

    def sequence(self, tokens: Sequence[int], pos: int = 0, seq_id: int = 0) -> Array:
        """Add the tokens of one sequence and return the logits of each."""
        return self.batch([(token, pos + i, [seq_id]) for i, token in enumerate(tokens)])

    def positions(self, seq_id: int) -> range:
        there = [cell.pos for cell in self.cells if seq_id in cell.seqs]
        return range(min(there), max(there) + 1) if there else range(0)

    def _in(self, p0: int, p1: int, seq_id: int) -> list[Cell]:
        cells = [cell for cell in self.cells if seq_id == -1 or seq_id in cell.seqs]
        return [cell for cell in cells if cell.pos >= p0 and (p1 == -1 or cell.pos < p1)]

    def _drop(self) -> None:
        self.cells = [cell for cell in self.cells if cell.seqs and cell.pos >= 0]

    def remove(self, seq_id: int, p0: int = -1, p1: int = -1) -> None:
        for cell in self._in(p0, p1, seq_id):
            cell.seqs -= cell.seqs if seq_id == -1 else {seq_id}
        self._drop()

    def keep(self, seq_id: int) -> None:
        for cell in self.cells:
            cell.seqs &= {seq_id}
        self._drop()

    def clear(self) -> None:
        self.cells = []

    def copy(self, src: int, dst: int, p0: int = -1, p1: int = -1) -> None:
        if src == dst:
            return
        self.remove(dst, p0, p1)
        if self.unified:
            for cell in self._in(p0, p1, src):
                cell.seqs.add(dst)
            return
        for cell in self._in(p0, p1, src):
            copy = Cell(cell.pos, [dst])
            copy.keys, copy.values = cell.keys, cell.values
            self.cells.append(copy)

    def shift(self, seq_id: int, p0: int, p1: int, delta: int) -> None:
        for cell in self._in(p0, p1, seq_id):
            cell.pos += delta
        self._drop()

    def divide(self, seq_id: int, p0: int, p1: int, d: int) -> None:
        for cell in self._in(p0, p1, seq_id):
            cell.pos //= d


def decode(context: og.Context, tokens: Sequence[int], pos: int = 0, seq_id: int = 0) -> npt.NDArray[np.float32]:
    """Decode the tokens of one sequence in one batch and return the logits of each."""
    batch = og.Batch(len(tokens))
    rows = batch.add_sequence(tokens, pos, seq_id, logits="all")
    context.decode(batch)
    return np.array([context.logits(row).copy() for row in rows])
