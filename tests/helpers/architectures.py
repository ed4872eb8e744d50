"""Tiny models with random weights, one for each kind of network and of memory that llama.cpp has.

A model is a row of a table: its hyperparameters. Which tensors it needs, and of what shapes, llama.cpp says itself:
``llama_model_init_from_user`` makes a model from metadata alone and hands each of its tensors to a callback.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from helpers.twin import Array, Value, write_gguf
from offgrid_llama._capi import ffi, lib

N_VOCAB, N_EMBD, HEAD = 61, 64, 32

BASE: dict[str, Value] = {
    "vocab_size": N_VOCAB, "context_length": 512, "embedding_length": N_EMBD, "block_count": 2,
    "feed_forward_length": 96, "attention.head_count": 2,
    "attention.layer_norm_epsilon": 1e-5, "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
GQA: dict[str, Value] = {"attention.head_count_kv": 1}
SWA: dict[str, Value] = {"attention.sliding_window": 8, "attention.sliding_window_pattern": 2}
MOE: dict[str, Value] = {
    "expert_count": 4, "expert_used_count": 2, "expert_shared_count": 1, "expert_gating_func": 2,
    "expert_feed_forward_length": 32, "expert_shared_feed_forward_length": 48,
    "leading_dense_block_count": 1, "interleave_moe_layer_step": 2,
}  # fmt: skip
MLA: dict[str, Value] = {
    "attention.head_count_kv": 1, "attention.key_length": 48, "attention.value_length": 32, "rope.dimension_count": 16,
    "attention.key_length_mla": 40, "attention.value_length_mla": 24,
    "attention.q_lora_rank": 32, "attention.kv_lora_rank": 32,
}  # fmt: skip
INDEXER: dict[str, Value] = {
    "attention.indexer.head_count": 2, "attention.indexer.key_length": 64, "attention.indexer.top_k": 64,
    "attention.indexer.block_size": 4, "attention.indexer.local_blocks": 1,
}  # fmt: skip
SSM: dict[str, Value] = {
    "ssm.conv_kernel": 4, "ssm.inner_size": 2 * N_EMBD, "ssm.state_size": 16, "ssm.time_step_rank": 4, "ssm.group_count": 1,
}  # fmt: skip
DELTA: dict[str, Value] = SSM | {"ssm.state_size": 32, "ssm.group_count": 2}
EVERY_OTHER: dict[str, Value] = {"attention.head_count_kv": [0, 1]}
"""A layer without heads for keys is recurrent."""

TABLE: dict[str, dict[str, dict[str, Value]]] = {
    "attention": {
        "llama": GQA,
        "qwen2": GQA,
        "qwen2vl": GQA | {"rope.dimension_sections": [4, 6, 6, 0]},
        "qwen3": GQA,
        "qwen3moe": GQA | MOE,
        "gemma": GQA,
        "gemma2": GQA | SWA,
        "gemma3": GQA | SWA,
        "cohere2": GQA | SWA | {"logit_scale": 1.0},
        "olmo2": GQA | SWA,
        "gpt-oss": GQA | SWA | MOE,
        "llama4": GQA | MOE | {"block_count": 4},
        "phi2": {},
        "phi3": GQA,
        "gpt2": {},
        "gptneox": {"use_parallel_residual": True},
        "falcon": GQA,
        "starcoder2": GQA,
        "bloom": {},
        "command-r": GQA,
        "stablelm": GQA,
        "exaone": GQA,
        "minicpm": GQA,
        "minicpm3": MLA | {"attention.head_count_kv": 2, "attention.key_length": 40, "attention.value_length": 24},
        "granite": GQA | {"logit_scale": 1.0},
        "deepseek2": MLA | MOE,
        "deepseek32": MLA | MOE | INDEXER,
        "minimax-m3": GQA | MOE | INDEXER | {"attention.indexer.head_count": 1, "rope.dimension_count": 16},
        "olmoe": MOE,
        "glm4": GQA,
        "hunyuan-dense": GQA,
        "smollm3": GQA | {"block_count": 4},
    },
    "recurrent": {
        "mamba": SSM | {"attention.head_count": 0},
        "mamba2": SSM | {"attention.head_count": 0},
        "rwkv6": {
            "attention.head_count": 0, "wkv.head_size": HEAD, "time_mix_extra_dim": 8, "time_decay_extra_dim": 16,
        },
        "rwkv7": {
            "attention.head_count": 0, "wkv.head_size": 64, "attention.decay_lora_rank": 8,
            "attention.iclr_lora_rank": 8, "attention.value_residual_mix_lora_rank": 8, "attention.gate_lora_rank": 8,
        },
    },
    "hybrid": {
        "jamba": SSM | EVERY_OTHER | MOE,
        "falcon-h1": SSM | GQA,
        "granitehybrid": SSM | EVERY_OTHER,
        "nemotron_h": SSM | {
            "block_count": 3, "attention.head_count_kv": [0, 1, 0], "feed_forward_length": [0, 0, 96],
        },
        "lfm2": EVERY_OTHER | {"shortconv.l_cache": 3, "attention.sliding_window": 8},
        "lfm2moe": EVERY_OTHER | MOE | {"shortconv.l_cache": 3},
        "qwen3next": DELTA | GQA | MOE | {"full_attention_interval": 2},
        "qwen35": DELTA | GQA | {"full_attention_interval": 2, "rope.dimension_sections": [4, 6, 6, 0]},
        "kimi-linear": SSM | MLA | MOE | {"kda.head_dim": 32, "attention.head_count_kv": [0, 1]},
        "deepseek4": GQA | MOE | INDEXER | {
            "block_count": 4, "attention.sliding_window": 8, "attention.compress_ratios": [0, 0, 4, 128],
            "attention.key_length": 32, "attention.value_length": 32, "rope.dimension_count": 16,
            "attention.q_lora_rank": 32, "attention.output_group_count": 2, "attention.output_lora_rank": 16,
            "attention.compress_rope_freq_base": 160000.0, "hyper_connection.count": 4,
            "hyper_connection.sinkhorn_iterations": 2, "hyper_connection.epsilon": 1e-6, "hash_layer_count": 0,
            "swiglu_clamp_exp": 10.0, "expert_weights_scale": 1.0, "expert_weights_norm": True, "expert_gating_func": 4,
        },
    },
    "hybrid, one sequence": {"plamo2": SSM | EVERY_OTHER | {"ssm.group_count": 0}},
    "encoder": {
        "bert": {"tokenizer.ggml.token_type_count": 2},
        "nomic-bert": {"tokenizer.ggml.token_type_count": 2},
        "modern-bert": SWA,
        "neo-bert": {},
        "jina-bert-v2": {"tokenizer.ggml.token_type_count": 2},
        "eurobert": {},
        "gemma-embedding": GQA | SWA,
        "t5encoder": {"attention.relative_buckets_count": 8},
    },
    "diffusion": {"dream": GQA, "llada": GQA},
    "encoder-decoder": {"t5": {"attention.relative_buckets_count": 8, "decoder_start_token_id": 0}},
}  # fmt: skip

OUTPUTS = ("attn_o", "attn_out", "ssm_out", "time_mix_output", "out_proj")
"""Names of what brings the past into a row."""


@dataclass(frozen=True)
class Architecture:
    """A row of the table: the name that llama.cpp has for it, what kind of network it is, its hyperparameters."""

    name: str
    kind: str
    hparams: dict[str, Value]

    def keys(self) -> dict[str, Value]:
        """Return the metadata of a file of this architecture; there is no tokenizer."""
        prefixed = {
            key if "." in key and key.startswith("tokenizer") else f"{self.name}.{key}": value
            for key, value in (BASE | self.hparams).items()
        }
        return {"general.architecture": self.name, "tokenizer.ggml.model": "none"} | prefixed

    def write(self, path: Path, more: Mapping[str, Value] | None = None) -> None:
        """Write the GGUF file; ``more`` may be a tokenizer."""
        keys = {**self.keys(), **(more or {})}
        write_gguf(path, keys, {})
        write_gguf(path, keys, {name: tensor(name, shape) for name, shape in shapes(path).items()})


ARCHITECTURES = {
    name: Architecture(name, kind, hparams) for kind, rows in TABLE.items() for name, hparams in rows.items()
}


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the tensors that llama.cpp wants for the metadata of a file, with their shapes in NumPy's order."""
    metadata = lib.gguf_init_from_file(bytes(path), {"no_alloc": True, "ctx": ffi.NULL})
    seen = lib.gguf_init_empty()

    def note(tensor: Any, _: Any) -> None:
        name = lib.ggml_get_name(tensor)
        if (
            not ffi.string(name).endswith(b"scale") and lib.gguf_find_tensor(seen, name) < 0
        ):  # those are for quantized ones
            lib.gguf_add_tensor(seen, tensor)

    callback = ffi.callback("void(struct ggml_tensor *, void *)", note)
    try:
        model = lib.llama_model_init_from_user(metadata, callback, ffi.NULL, lib.llama_model_default_params())
        assert model, path
        lib.llama_model_free(model)
        return {
            ffi.string(lib.gguf_get_tensor_name(seen, i)).decode(): _shape(lib.gguf_get_tensor_ne(seen, i))
            for i in range(lib.gguf_get_n_tensors(seen))
        }
    finally:
        lib.gguf_free(seen)
        lib.gguf_free(metadata)


def _shape(ne: Any) -> tuple[int, ...]:
    sizes = ffi.unpack(ne, lib.GGML_MAX_DIMS)
    while len(sizes) > 1 and sizes[-1] == 1:
        sizes.pop()
    return tuple(reversed(sizes))


def tensor(name: str, shape: tuple[int, ...]) -> Array:
    """Return random numbers for a tensor of this name, the same at each call: such that every token of the past is felt."""
    noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if "ssm_a" in name:
        noise = -0.1 * np.exp(noise)
    elif "time_mix_decay.weight" in name or "time_mix_w0" in name:
        noise = noise - 4  # slow decays
    elif name.endswith(("norm.weight", "ln.weight")) or "rope" in name:
        noise = 1 + 0.1 * noise
    elif len(shape) == 1:
        noise = 0.1 * noise
    elif name.startswith("token_embd"):
        noise = 0.3 * noise
    else:
        gain = 4.0 if any(part in name for part in OUTPUTS) else 1.2
        noise = gain * noise / np.sqrt(shape[-1])
    return noise.astype(np.float32)
