"""The rules that refuse a GGUF file before llama.cpp aborts the process on it: one hazard each, in ``RULES``.

``check`` applies them in order. A file with 0 blocks, for instance, is refused by the rule ``block_count``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from offgrid_llama._capi import lib
from offgrid_llama.errors import GGUFError

from .architecture import WKV7_HEAD_MULTIPLE, wkv_head_multiple
from .gguf_header import Metadata, Tensor

__all__ = ["RULES", "TYPES_WITHOUT_PRODUCT", "Header", "Rule", "check"]

MAX_LAYERS = 512
"""Layers of a model: ``LLAMA_MAX_LAYERS`` of llama-hparams.h, the length of arrays there."""
MAX_EXPERTS = 1024
"""Experts of a layer: ``LLAMA_MAX_EXPERTS`` of llama-hparams.h."""
MAX_VOCAB_TOKENS = 2**24
"""Tokens of a model without a tokenizer: llama.cpp makes up each of them, in some 100 bytes."""
MAX_HEADS = 2**16 - 1
"""Heads of a layer, and values in a head: llama.cpp multiplies the two in 32 bits."""
UNSPECIFIED_POOLING = 2**32 - 1
"""``LLAMA_POOLING_TYPE_UNSPECIFIED``, -1, as llama.cpp saves it in 32 bits."""

_POOLING_TYPES = {*range(lib.LLAMA_POOLING_TYPE_RANK + 1), UNSPECIFIED_POOLING}
_ROPE_SCALING_TYPES = ("none", "linear", "yarn", "longrope")
TYPES_WITHOUT_PRODUCT = frozenset({"i8", "i16", "i32", "i64", "f64", "q8_1", "q8_K"})
_ID_TABLES = ("d2t", "d2t.weight", "tid2eid.weight")  # tensors of token or expert ids, which are integers
_F32_TENSORS = ("norm.weight", ".bias")  # added, or multiplied element by element


@dataclass(frozen=True)
class Header:
    """The parts of a GGUF header that the rules look at.

    Attributes:
        metadata: with the values that a load overrides.
        tensors: the table of tensors.
        repeated_token: the id of the first token whose text another token has; None where all differ.
    """

    metadata: Metadata
    tensors: Sequence[Tensor]
    repeated_token: int | None = None


@dataclass(frozen=True)
class Rule:
    """One hazard.

    Attributes:
        name: unique, and after the key that the rule looks at.
        reason: what llama.cpp does, or cannot do; a sentence of the error's message.
        offence: returns what breaks the rule, such as "llama.block_count = 0 is not possible"; None where nothing does.
    """

    name: str
    reason: str
    offence: Callable[[Header], str | None]


def _impossible(metadata: Metadata, name: str, value: object) -> str:
    return f"{metadata.architecture}.{name} = {value} is not possible"


def _hparam(name: str, reason: str, allowed: Callable[[int, Metadata], bool], default: int = 0) -> Rule:
    """Return the rule that a hyperparameter has an allowed value; ``default`` is its value where the key is missing."""

    def offence(header: Header) -> str | None:
        value = header.metadata.hparam(name, default)
        return None if allowed(value, header.metadata) else _impossible(header.metadata, name, value)

    return Rule(name, reason, offence)


def _between(low: int, high: int) -> Callable[[int, Metadata], bool]:
    return lambda value, _: low <= value <= high


def _nextn_layers_fit(count: int, metadata: Metadata) -> bool:
    return 0 <= count <= metadata.hparam("block_count", 1)


def _used_experts_fit(used: int, metadata: Metadata) -> bool:
    experts = metadata.hparam("expert_count")
    return 0 < used <= experts if experts > 0 else used == 0


def _expert_groups_fit(groups: int, metadata: Metadata) -> bool:
    experts = metadata.hparam("expert_count")
    if experts <= 0:
        return groups == 0
    return 0 <= groups < experts and (groups <= 1 or experts % groups == 0)


def _used_groups_fit(used: int, metadata: Metadata) -> bool:
    groups = metadata.hparam("expert_group_count")
    return groups <= 1 or 0 < used < groups


def _wkv_head_fits(size: int, metadata: Metadata) -> bool:
    multiple = wkv_head_multiple(metadata.architecture)
    return not multiple or (size > 0 and size % multiple == 0)


def _unknown_rope_scaling(header: Header) -> str | None:
    scaling = header.metadata.get(f"{header.metadata.architecture}.rope.scaling.type")
    if not isinstance(scaling, str) or scaling in _ROPE_SCALING_TYPES:
        return None
    return _impossible(header.metadata, "rope.scaling.type", scaling)


def _window_without_layers(header: Header) -> str | None:
    name = "attention.sliding_window_pattern"
    if not header.metadata.hparam("attention.sliding_window", 1):
        return None
    pattern = header.metadata.get(f"{header.metadata.architecture}.{name}")
    used = any(pattern) if isinstance(pattern, list) else pattern != 1  # of 1 layer in a row the last has none
    return None if used else _impossible(header.metadata, name, pattern)


def _weights_without_product(header: Header) -> str | None:
    for tensor in header.tensors:
        if tensor.type in TYPES_WITHOUT_PRODUCT and not tensor.name.endswith(_ID_TABLES):
            return f"{tensor.name} has the type {tensor.type}"
    return None


def _norm_of_other_type(header: Header) -> str | None:
    for tensor in header.tensors:
        if tensor.type != "f32" and tensor.name.endswith(_F32_TENSORS):
            return f"{tensor.name} has the type {tensor.type}"
    return None


def _repeated_token(header: Header) -> str | None:
    if header.repeated_token is None:
        return None
    return f"token {header.repeated_token} of tokenizer.ggml.tokens has the text of another token"


def _byte_token_of_bert(header: Header) -> str | None:
    if header.metadata.get("tokenizer.ggml.model") != "bert":
        return None
    types = header.metadata.get("tokenizer.ggml.token_type")
    if not isinstance(types, list) or lib.LLAMA_TOKEN_TYPE_BYTE not in types:
        return None
    return "tokenizer.ggml.model is bert, and tokenizer.ggml.token_type has tokens for bytes"


def _impossible_epsilon(header: Header) -> str | None:
    for key in header.metadata:
        if key.endswith("epsilon"):
            value = header.metadata[key]
            if isinstance(value, float) and not 0 <= value < math.inf:
                return f"{key} = {value} is not possible"
    return None


RULES: tuple[Rule, ...] = (
    _hparam(
        "block_count", f"llama.cpp aborts on a number of layers that is not from 1 to {MAX_LAYERS}.",
        _between(1, MAX_LAYERS), default=1,
    ),
    _hparam(
        "nextn_predict_layers", "llama.cpp aborts where more layers predict further tokens than the model has.",
        _nextn_layers_fit,
    ),
    _hparam(
        "vocab_size", f"llama.cpp makes up so large a vocabulary in memory; {MAX_VOCAB_TOKENS:,} tokens are the limit.",
        _between(0, MAX_VOCAB_TOKENS),
    ),
    _hparam("expert_count", f"llama.cpp aborts on more than {MAX_EXPERTS:,} experts.", _between(0, MAX_EXPERTS)),
    _hparam(
        "expert_used_count", "llama.cpp aborts where a token uses more experts than the model has, or none of some.",
        _used_experts_fit,
    ),
    _hparam(
        "expert_group_count", "llama.cpp aborts on groups of experts that are not of one size, or of one expert each.",
        _expert_groups_fit,
    ),
    _hparam(
        "expert_group_used_count", "llama.cpp aborts where a token uses all groups of experts, or none.",
        _used_groups_fit,
    ),
    *(
        _hparam(
            f"attention.{name}", f"llama.cpp multiplies heads by their size in 32 bits; {MAX_HEADS:,} is the limit.",
            _between(0, MAX_HEADS),
        )
        for name in ("head_count", "head_count_kv", "key_length", "value_length")
    ),
    _hparam(
        "pooling_type", "llama.cpp aborts in the first decode on a kind of pooling that it does not know.",
        lambda value, _: value in _POOLING_TYPES,
    ),
    _hparam(
        "wkv.head_size", f"llama.cpp divides by it, and reads past the end of a head of RWKV-7 that is no multiple of "
        f"{WKV7_HEAD_MULTIPLE}.",
        _wkv_head_fits,
    ),
    Rule("rope.scaling.type", "llama.cpp aborts on a scaling that it does not know.", _unknown_rope_scaling),
    Rule(
        "attention.sliding_window_pattern", "llama.cpp aborts on a sliding window that no layer has.",
        _window_without_layers,
    ),
    Rule("weight types", "ggml aborts on a product with weights of this type.", _weights_without_product),
    Rule("norm types", "ggml aborts where it adds or scales by a tensor that is not f32.", _norm_of_other_type),
    Rule("repeated token", "llama.cpp aborts on a vocabulary of which two tokens have one text.", _repeated_token),
    Rule("byte token of bert", "llama.cpp aborts while it caches the pieces of such a vocabulary.", _byte_token_of_bert),
    Rule("epsilon", "ggml computes norms with a finite epsilon of 0 or more only.", _impossible_epsilon),
)  # fmt: skip


def check(path: Path, header: Header) -> None:
    """Raise GGUFError for the first of ``RULES`` that a header breaks."""
    for rule in RULES:
        if offence := rule.offence(header):
            raise GGUFError(f"{path}: {offence}. {rule.reason}")
