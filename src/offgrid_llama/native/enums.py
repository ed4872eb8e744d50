"""The enums of llama.h, and the types that a KV cache can have.

A name may stand for a member: ``flash_attn_type="enabled"`` and ``FlashAttention.ENABLED`` are the same. For type checkers
the names of each enum are a ``Literal``, in lower case; ``member`` takes any case.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Literal, TypeVar

from offgrid_llama._capi import lib

__all__ = [
    "KV_TYPES", "AttentionName", "AttentionType", "FlashAttention", "FlashAttentionName", "KVType", "LazyMode",
    "LazyModeName", "LoadMode", "LoadModeName", "PoolingName", "PoolingType", "RopeScaling", "RopeScalingName", "RopeType",
    "SplitMode", "SplitModeName", "TokenAttr", "VocabType", "member",
]  # fmt: skip


class SplitMode(IntEnum):
    """How a model is spread over several GPUs (``llama_split_mode``)."""

    NONE = lib.LLAMA_SPLIT_MODE_NONE
    LAYER = lib.LLAMA_SPLIT_MODE_LAYER
    ROW = lib.LLAMA_SPLIT_MODE_ROW
    TENSOR = lib.LLAMA_SPLIT_MODE_TENSOR


class LoadMode(IntEnum):
    """How the file's weights come into memory (``llama_load_mode``); AUTO maps it where the device can."""

    AUTO = lib.LLAMA_LOAD_MODE_AUTO
    NONE = lib.LLAMA_LOAD_MODE_NONE
    MMAP = lib.LLAMA_LOAD_MODE_MMAP
    MLOCK = lib.LLAMA_LOAD_MODE_MLOCK
    MMAP_MLOCK = lib.LLAMA_LOAD_MODE_MMAP_MLOCK
    DIRECT_IO = lib.LLAMA_LOAD_MODE_DIRECT_IO


class LazyMode(IntEnum):
    """Whether rows of the large tensors that an architecture marks are read on demand (``llama_lazy_mode``).

    AUTO does it for those of more than 4 GiB, ON for all that are marked.
    """

    OFF = lib.LLAMA_LAZY_MODE_OFF
    AUTO = lib.LLAMA_LAZY_MODE_AUTO
    ON = lib.LLAMA_LAZY_MODE_ON


class RopeType(IntEnum):
    """The kind of rotary position embedding of a model (``llama_rope_type``)."""

    NONE = lib.LLAMA_ROPE_TYPE_NONE
    NORM = lib.LLAMA_ROPE_TYPE_NORM
    NEOX = lib.LLAMA_ROPE_TYPE_NEOX
    MROPE = lib.LLAMA_ROPE_TYPE_MROPE
    IMROPE = lib.LLAMA_ROPE_TYPE_IMROPE
    VISION = lib.LLAMA_ROPE_TYPE_VISION


class RopeScaling(IntEnum):
    """How RoPE is stretched beyond the training length (``llama_rope_scaling_type``)."""

    UNSPECIFIED = lib.LLAMA_ROPE_SCALING_TYPE_UNSPECIFIED
    NONE = lib.LLAMA_ROPE_SCALING_TYPE_NONE
    LINEAR = lib.LLAMA_ROPE_SCALING_TYPE_LINEAR
    YARN = lib.LLAMA_ROPE_SCALING_TYPE_YARN
    LONGROPE = lib.LLAMA_ROPE_SCALING_TYPE_LONGROPE


class PoolingType(IntEnum):
    """How the embeddings of a sequence's tokens become one (``llama_pooling_type``)."""

    UNSPECIFIED = lib.LLAMA_POOLING_TYPE_UNSPECIFIED
    NONE = lib.LLAMA_POOLING_TYPE_NONE
    MEAN = lib.LLAMA_POOLING_TYPE_MEAN
    CLS = lib.LLAMA_POOLING_TYPE_CLS
    LAST = lib.LLAMA_POOLING_TYPE_LAST
    RANK = lib.LLAMA_POOLING_TYPE_RANK


class AttentionType(IntEnum):
    """Whether a token sees the later ones too (``llama_attention_type``)."""

    UNSPECIFIED = lib.LLAMA_ATTENTION_TYPE_UNSPECIFIED
    CAUSAL = lib.LLAMA_ATTENTION_TYPE_CAUSAL
    NON_CAUSAL = lib.LLAMA_ATTENTION_TYPE_NON_CAUSAL


class FlashAttention(IntEnum):
    """When to use the flash attention kernel (``llama_flash_attn_type``)."""

    AUTO = lib.LLAMA_FLASH_ATTN_TYPE_AUTO
    DISABLED = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
    ENABLED = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED


class VocabType(IntEnum):
    """The tokenizer's algorithm (``llama_vocab_type``)."""

    NONE = lib.LLAMA_VOCAB_TYPE_NONE
    SPM = lib.LLAMA_VOCAB_TYPE_SPM
    BPE = lib.LLAMA_VOCAB_TYPE_BPE
    WPM = lib.LLAMA_VOCAB_TYPE_WPM
    UGM = lib.LLAMA_VOCAB_TYPE_UGM
    RWKV = lib.LLAMA_VOCAB_TYPE_RWKV
    PLAMO2 = lib.LLAMA_VOCAB_TYPE_PLAMO2
    TEST = lib.LLAMA_VOCAB_TYPE_TEST


class TokenAttr(IntFlag):
    """Properties of a token beside its text (``llama_token_attr``)."""

    UNKNOWN = lib.LLAMA_TOKEN_ATTR_UNKNOWN
    UNUSED = lib.LLAMA_TOKEN_ATTR_UNUSED
    NORMAL = lib.LLAMA_TOKEN_ATTR_NORMAL
    CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL
    USER_DEFINED = lib.LLAMA_TOKEN_ATTR_USER_DEFINED
    BYTE = lib.LLAMA_TOKEN_ATTR_BYTE
    NORMALIZED = lib.LLAMA_TOKEN_ATTR_NORMALIZED
    LSTRIP = lib.LLAMA_TOKEN_ATTR_LSTRIP
    RSTRIP = lib.LLAMA_TOKEN_ATTR_RSTRIP
    SINGLE_WORD = lib.LLAMA_TOKEN_ATTR_SINGLE_WORD


SplitModeName = Literal["none", "layer", "row", "tensor"]
LoadModeName = Literal["auto", "none", "mmap", "mlock", "mmap_mlock", "direct_io"]
LazyModeName = Literal["off", "auto", "on"]
RopeScalingName = Literal["unspecified", "none", "linear", "yarn", "longrope"]
PoolingName = Literal["unspecified", "none", "mean", "cls", "last", "rank"]
AttentionName = Literal["unspecified", "causal", "non_causal"]
FlashAttentionName = Literal["auto", "disabled", "enabled"]

KVType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
"""The types that llama.cpp has KV cache kernels for; with any other it crashes or aborts."""

KV_TYPES: dict[str, int] = {
    "f32": lib.GGML_TYPE_F32,
    "f16": lib.GGML_TYPE_F16,
    "bf16": lib.GGML_TYPE_BF16,
    "q8_0": lib.GGML_TYPE_Q8_0,
    "q5_1": lib.GGML_TYPE_Q5_1,
    "q5_0": lib.GGML_TYPE_Q5_0,
    "q4_1": lib.GGML_TYPE_Q4_1,
    "q4_0": lib.GGML_TYPE_Q4_0,
    "iq4_nl": lib.GGML_TYPE_IQ4_NL,
}
"""The ``ggml_type`` of each KVType."""

_E = TypeVar("_E", bound=IntEnum)


def member(name: str, value: object, enum: type[_E]) -> _E:
    """Return the member of ``enum`` that ``value`` stands for: a member, or a name in any case.

    Raises ValueError for another str, TypeError for another type; both list the names.
    """
    if isinstance(value, enum):
        return value
    if isinstance(value, str) and value.upper() in enum.__members__:
        return enum[value.upper()]
    allowed = ", ".join(repr(key.lower()) for key in enum.__members__)
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name} must be one of {allowed}, not {value!r}")
