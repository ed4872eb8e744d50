"""From Llama's arguments to the keywords of Model, Context and Embedder."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from offgrid_llama.native.enums import KV_TYPES, AttentionType, LoadMode, RopeScaling, SplitMode

__all__ = ["context_options", "model_options", "padded"]

YARN = {
    "yarn_ext_factor": -1.0, "yarn_attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_orig_ctx": 0,
}  # fmt: skip
"""Arguments that Context does not have, with the values that change nothing."""


def model_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of Model.

    Raises ValueError for a ``model_path`` that is not there, as llama-cpp-python does.
    """
    path = given["model_path"]
    if not os.path.exists(path):
        raise ValueError(f"Model path does not exist: {path}")
    use_mmap = given["use_mmap"] and given["lora_path"] is None
    load_mode = {
        (True, True): LoadMode.MMAP_MLOCK, (False, True): LoadMode.MLOCK, (True, False): LoadMode.MMAP,
        (False, False): LoadMode.NONE,
    }[bool(use_mmap), bool(given["use_mlock"])]  # fmt: skip
    layers = given["n_gpu_layers"]
    return {
        "n_gpu_layers": -1 if layers < 0 else layers,
        "split_mode": SplitMode(given["split_mode"]),
        "main_gpu": given["main_gpu"],
        "tensor_split": given["tensor_split"],
        "vocab_only": given["vocab_only"],
        "load_mode": load_mode,
        "kv_overrides": given["kv_overrides"],
        "download": "never",
    }


def context_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of Context, without its sizes.

    Raises ValueError for values that this package's Context does not have.
    """
    for name, off in YARN.items():
        if given[name] not in (off, 0):
            raise ValueError(
                f"{name} must be {off}: rope_scaling_type, rope_freq_base and rope_freq_scale stretch RoPE"
            )
    if given["numa"]:
        warnings.warn("numa does nothing: offgrid_llama leaves the memory's place to the system", stacklevel=4)
    options = {
        "n_threads": given["n_threads"] or None,
        "n_threads_batch": given["n_threads_batch"] or None,
        "rope_scaling_type": RopeScaling(-1 if given["rope_scaling_type"] is None else given["rope_scaling_type"]),
        "attention_type": AttentionType(given["attention_type"]),
        "rope_freq_base": given["rope_freq_base"],
        "rope_freq_scale": given["rope_freq_scale"],
        "offload_kqv": given["offload_kqv"],
        "flash_attn_type": "enabled" if given["flash_attn"] else "disabled",
        "perf": not given["no_perf"],
        "type_k": _kv_type("type_k", given["type_k"]),
        "type_v": _kv_type("type_v", given["type_v"]),
    }
    for name in ("op_offload", "swa_full"):
        if given[name] is not None:
            options[name] = bool(given[name])
    return options


def padded(n_ctx: int) -> int:
    """Return the positions of a context, which llama.cpp rounds up."""
    return -(-n_ctx // 256) * 256


def _kv_type(name: str, number: int | None) -> str:
    if number is None:
        return "f16"
    for kv_type, each in KV_TYPES.items():
        if each == number:
            return kv_type
    raise ValueError(f"{name} must be the ggml_type of {', '.join(KV_TYPES)}, not {number}")
