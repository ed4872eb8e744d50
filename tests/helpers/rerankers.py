"""Tiny rerankers with random weights: a BERT, which is read by its first token, and a Qwen3 with a template, by its last."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.twin import Array, Value, Weights, write_gguf

N_EMBD, N_FF, N_HEAD, N_CTX = 32, 64, 2, 64
NORMAL, CONTROL = 1, 3
CLOSE = 1e-4
TEMPLATE = (
    "<|im_start|>judge<|im_end|>\n<|im_start|>user\n<Query>: {query}\n<Document>: {document}!<|im_end|>\nyes or no?"
)
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "mat",
    "rug",
    "sat",
    "lay",
    "on",
    "in",
    "who",
    "what",
    "where",
    "is",
    "was",
    "home",
    "red",
]
QUERY = "where was the cat"
DOCUMENTS = ["the cat sat on the mat", "a dog lay in the red rug", "home", "", "the cat " * 9, "who is red"]


def matrix(rng: np.random.Generator, *shape: int) -> Array:
    return np.asarray(rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1]), np.float32)


def write_bert(path: Path, change: dict[str, Value | Array | None] | None = None) -> Weights:
    """Write a BERT with a classifier of one dense layer and one output; ``change`` adds keys and tensors, None drops."""
    rng = np.random.default_rng(11)
    special = {"[PAD]": "padding", "[UNK]": "unknown", "[CLS]": "bos", "[SEP]": "seperator", "[MASK]": "mask"}
    tokens = [*special, *(f"▁{word}" for word in WORDS)]
    tensors: dict[str, Any] = {
        "token_embd.weight": matrix(rng, len(tokens), N_EMBD) * 4,
        "position_embd.weight": matrix(rng, N_CTX, N_EMBD),
        "token_types.weight": matrix(rng, 2, N_EMBD),
        "cls.weight": matrix(rng, N_EMBD, N_EMBD),
        "cls.bias": matrix(rng, N_EMBD),
        "cls.output.weight": matrix(rng, 1, N_EMBD),
        "cls.output.bias": matrix(rng, 1),
    }
    sizes = {
        "attn_q": N_EMBD,
        "attn_k": N_EMBD,
        "attn_v": N_EMBD,
        "attn_output": N_EMBD,
        "ffn_up": N_FF,
        "ffn_down": N_EMBD,
    }
    for name, rows in sizes.items():
        tensors[f"blk.0.{name}.weight"] = matrix(rng, rows, N_FF if name == "ffn_down" else N_EMBD)
        tensors[f"blk.0.{name}.bias"] = matrix(rng, rows)
    for name in ("token_embd_norm", "blk.0.attn_output_norm", "blk.0.layer_output_norm"):
        tensors[f"{name}.weight"] = 1 + matrix(rng, N_EMBD)
        tensors[f"{name}.bias"] = matrix(rng, N_EMBD)
    keys: dict[str, Any] = {
        "general.architecture": "bert",
        "bert.context_length": N_CTX,
        "bert.embedding_length": N_EMBD,
        "bert.feed_forward_length": N_FF,
        "bert.block_count": 1,
        "bert.attention.head_count": N_HEAD,
        "bert.attention.layer_norm_epsilon": 1e-12,
        "bert.attention.causal": False,
        "bert.pooling_type": 4,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * len(special) + [NORMAL] * len(WORDS),
    }
    keys |= {f"tokenizer.ggml.{name}_token_id": i for i, name in enumerate(special.values())}
    return _write(path, keys, tensors, change)


def write_qwen3(path: Path, change: dict[str, Value | Array | None] | None = None) -> Weights:
    """Write a Qwen3 with the classes "yes" and "no", a template, bytes for tokens, and one merge: a space with an h."""
    rng = np.random.default_rng(12)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokens = [*(letters[byte] for byte in range(256)), "Ġh", "<|im_start|>", "<|im_end|>"]
    tensors: dict[str, Any] = {
        "token_embd.weight": matrix(rng, len(tokens), N_EMBD) * 4,
        "output_norm.weight": 1 + matrix(rng, N_EMBD),
        "cls.output.weight": matrix(rng, 2, N_EMBD),
    }
    head = N_EMBD // N_HEAD
    for name, rows, columns in [
        ("attn_q", N_EMBD, N_EMBD), ("attn_k", N_EMBD, N_EMBD), ("attn_v", N_EMBD, N_EMBD), ("attn_output", N_EMBD, N_EMBD),
        ("ffn_gate", N_FF, N_EMBD), ("ffn_up", N_FF, N_EMBD), ("ffn_down", N_EMBD, N_FF),
    ]:  # fmt: skip
        tensors[f"blk.0.{name}.weight"] = matrix(rng, rows, columns)
    for name, size in [("attn_norm", N_EMBD), ("ffn_norm", N_EMBD), ("attn_q_norm", head), ("attn_k_norm", head)]:
        tensors[f"blk.0.{name}.weight"] = 1 + matrix(rng, size)
    keys: dict[str, Any] = {
        "general.architecture": "qwen3",
        "qwen3.context_length": 512,
        "qwen3.embedding_length": N_EMBD,
        "qwen3.feed_forward_length": N_FF,
        "qwen3.block_count": 1,
        "qwen3.attention.head_count": N_HEAD,
        "qwen3.attention.head_count_kv": N_HEAD,
        "qwen3.attention.key_length": head,
        "qwen3.attention.value_length": head,
        "qwen3.attention.layer_norm_rms_epsilon": 1e-6,
        "qwen3.pooling_type": 4,
        "qwen3.classifier.output_labels": ["yes", "no"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * 257 + [CONTROL] * 2,
        "tokenizer.ggml.merges": ["Ġ h"],
        "tokenizer.ggml.eos_token_id": 258,
        "tokenizer.chat_template.rerank": TEMPLATE,
    }
    return _write(path, keys, tensors, change)


def _write(
    path: Path, keys: dict[str, Any], tensors: dict[str, Any], change: dict[str, Value | Array | None] | None
) -> Weights:
    for name, value in (change or {}).items():
        if value is None:
            (keys if name in keys else tensors).pop(name)
        else:
            (tensors if isinstance(value, np.ndarray) else keys)[name] = value
    write_gguf(path, keys, tensors)
    return tensors
