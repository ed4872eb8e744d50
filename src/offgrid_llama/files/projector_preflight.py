"""The rules that refuse a projector's file (an mmproj) that libmtmd cannot read, or that a kernel would abort on.

Most of what libmtmd asserts while it loads is caught as it fails (``_capi/assertions.cpp``). These rules are for the rest: a
division by zero, a pointer that is null, memory without end, an assertion in a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from offgrid_llama.errors import GGUFError

from .gguf_header import Metadata, Tensor
from .gguf_preflight import TYPES_WITHOUT_PRODUCT

__all__ = ["MIN_SAMPLES", "check", "encoder_types"]

MIN_SAMPLES = 2
"""Samples of a sound: libmtmd aborts on a sound of one."""

_ENCODERS = {
    "vision": "clip.has_vision_encoder",
    "audio": "clip.has_audio_encoder",
    "gen.audio": "clip.has_gen_audio_encoder",
}
_RANGES = {
    "block_count": (1, 512), "embedding_length": (1, 2**16), "feed_forward_length": (0, 2**20),
    "projection_dim": (1, 2**20), "attention.head_count": (1, 2**12), "attention.head_count_kv": (1, 2**12),
    "attention.head_dim": (0, 2**12),
}  # fmt: skip
"""The least and the most of numbers that libmtmd divides by, or makes room for as many of as it reads."""
_DEPEND_ON_PROMPT = ("deepseek4v", "hunyuanvl")
_WITHOUT_LAYERS = ("gemma4uv", "gemma4ua", "gemma3nv", "pockettts_gen")
_OWN_EMBEDDING = ("gemma3nv", "deepseekocr", "deepseekocr2")
"""Encoders that make patches of a picture in their own ways."""
_NEEDED = {
    "v.patch_embd.weight.1": (
        "qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o", "qwen3vl_merger", "ling3vl", "exaone4_5", "glm4v", "mimovl",
        "minimax_m3",
    ),
    "a.position_embd.weight": ("ultravox", "qwen2a", "qwen2.5o", "glma", "voxtral", "meralion", "musicflamingo"),
}  # fmt: skip
"""Tensors that libmtmd takes for optional, and does not look for before it reads them."""
_BIASED = ("qwen2vl_merger", "qwen2.5vl_merger", "qwen2.5o")
"""Encoders whose queries, keys and values all have biases."""
_F32_ENDINGS = (".bias", "norm.weight", "ln1.weight", "ln2.weight", "ls1.weight", "ls2.weight")
_F32_ENDINGS_OF_SPEECH = (".alpha", ".beta", ".gamma")
_CODES_IN, _CODES_OUT = "a.gen.code.embd.weight", "a.gen.code.head.weight"
_CONVOLUTION = frozenset({"f32", "f16"})
_GEMMA4_MAX_TOKENS = 1120
"""Tokens of a picture that libmtmd allows for Gemma 4, unless it is told otherwise."""


class _File(NamedTuple):
    metadata: Metadata
    tensors: Sequence[Tensor]
    types: Mapping[str, str]
    image_max_tokens: int | None


def encoder_types(metadata: Metadata) -> dict[str, str]:
    """Return the kind of each encoder of a file, such as {"vision": "gemma3"}."""
    found = {}
    for name, key in _ENCODERS.items():
        if metadata.get(key) is True:
            kind = metadata.get("clip.projector_type") or metadata.get(f"clip.{name}.projector_type")
            found[name] = kind if isinstance(kind, str) else ""
    return found


def check(
    path: Path, metadata: Metadata, tensors: Sequence[Tensor], image_max_tokens: int | None = None
) -> dict[str, str]:
    """Raise GGUFError for a file that breaks one of the rules; return its ``encoder_types``.

    ``image_max_tokens`` is the most tokens of a picture, if the load names it.
    """
    types = encoder_types(metadata)
    if not types:
        kind = metadata.architecture or "unknown"
        raise GGUFError(f"{path} is no projector (mmproj): it has no encoder. Its architecture is {kind!r}")
    file = _File(metadata, tensors, types, image_max_tokens)
    for rule in _RULES:
        if offence := rule(file):
            raise GGUFError(f"{path}: {offence}")
    return types


def _impossible_number(file: _File) -> str | None:
    for encoder in file.types:
        without_layers = file.types[encoder] in _WITHOUT_LAYERS
        for name, (low, most) in _RANGES.items():
            key = f"clip.{encoder}.{name}"
            value = file.metadata.get(key, most)
            least = 0 if name == "block_count" and without_layers else low
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
                return f"{key} = {value!r} is not possible. libmtmd takes a whole number from {least} to {most:,}"
    return None


def _impossible_float(file: _File) -> str | None:
    for key, value in file.metadata.items():
        numbers = value if isinstance(value, list) else [value]
        if key.startswith("clip.") and any(isinstance(each, float) and not math.isfinite(each) for each in numbers):
            return f"{key} = {value} is not possible"
        if key.endswith("epsilon") and isinstance(value, float) and value < 0:
            return f"{key} = {value} is not possible. ggml computes norms with an epsilon of 0 or more"
    return None


def _depends_on_prompt(file: _File) -> str | None:
    if file.types.get("vision") in _DEPEND_ON_PROMPT:
        return f"{file.types['vision']} is not supported yet: what its pictures are depends on the prompt before them"
    return None


def _no_spread(file: _File) -> str | None:
    spread = file.metadata.get("clip.vision.image_std")
    if isinstance(spread, list) and not all(isinstance(value, float) and value > 0 for value in spread):
        return f"clip.vision.image_std = {spread} is not possible. Colours are divided by it"
    return None


def _wrong_type(file: _File) -> str | None:
    for tensor in file.tensors:
        if tensor.type in TYPES_WITHOUT_PRODUCT:
            return f"{tensor.name} has the type {tensor.type}. ggml aborts on a product with it"
        if tensor.type != "f32" and tensor.name.endswith(_F32_ENDINGS + _F32_ENDINGS_OF_SPEECH):
            return f"{tensor.name} has the type {tensor.type}. ggml aborts where it adds or scales by what is not f32"
        if "patch_embd" in tensor.name and tensor.type not in _CONVOLUTION:
            return f"{tensor.name} has the type {tensor.type}. ggml aborts on a convolution with it"
    return None


def _missing_tensor(file: _File) -> str | None:
    """Some tensors are optional for libmtmd as it loads a file, and a null pointer as it computes."""
    names = {tensor.name for tensor in file.tensors}
    encoders = {"v": file.types.get("vision"), "a": file.types.get("audio")}
    needed = [name for name, kinds in _NEEDED.items() if encoders[name[0]] in kinds]
    if file.types.get("vision", _OWN_EMBEDDING[0]) not in _OWN_EMBEDDING:
        needed.append("v.patch_embd.weight")
    for name in sorted(names):
        block, found, ending = name.partition("attn_out.weight")
        if found and not ending and f"{block}attn_qkv.weight" not in names:
            needed += [f"{block}attn_{part}.weight" for part in "qkv"]
            if file.types.get("vision") in _BIASED and block.startswith("v."):
                needed += [f"{block}attn_{part}.bias" for part in "qkv"]
    missing = [name for name in needed if name not in names]
    return f"it lacks the tensor {missing[0]}" if missing else None


def _short_table(file: _File) -> str | None:
    """Gemma 4 looks positions up in a table: a kernel aborts on one behind its end."""
    if file.types.get("vision") not in ("gemma4v", "gemma4uv"):
        return None
    most = file.image_max_tokens or _GEMMA4_MAX_TOKENS
    for tensor in file.tensors:
        if tensor.name == "v.position_embd.weight" and (len(tensor.shape) < 2 or tensor.shape[1] < most):
            return f"{tensor.name} has the shape {tensor.shape}: it has no position for each of {most} tokens in a row"
    return None


def _codes_without_embedding(file: _File) -> str | None:
    """A code that is drawn from the head is looked up in a table: a kernel aborts on one behind its end."""
    shapes = {tensor.name: tensor.shape for tensor in file.tensors}
    table, head = shapes.get(_CODES_IN), shapes.get(_CODES_OUT)
    if table is None or head is None or file.types.get("gen.audio") != "qwen3tts_gen":
        return None
    if len(table) < 2 or len(head) < 2 or table[1] < head[1]:
        return f"{_CODES_IN} has the shape {table}: it has no row for each of the codes of {_CODES_OUT}, {head}"
    return None


_RULES: tuple[Callable[[_File], str | None], ...] = (
    _depends_on_prompt, _impossible_number, _impossible_float, _no_spread, _wrong_type, _missing_tensor, _short_table,
    _codes_without_embedding,
)  # fmt: skip
