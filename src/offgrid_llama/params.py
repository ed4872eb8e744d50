"""The enums of llama.h, and its parameter structs as frozen dataclasses that check themselves.

Names, and defaults where none is given below, are llama.h's own. A string may stand for an enum's member:
``flash_attn_type="enabled"`` and ``FlashAttention.ENABLED`` are the same.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Any, TypeVar

from ._capi import ffi, lib
from ._check import number, real
from .backend import Device, default_threads, pointer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "KV_TYPES", "AttentionType", "ContextParams", "FlashAttention", "LazyMode", "LoadMode", "ModelParams", "PoolingType",
    "RopeScaling", "RopeType", "SplitMode", "TokenAttr", "VocabType",
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
    """What a token is, apart from its text (``llama_token_attr``)."""

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


KV_TYPES = {
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
"""The types that llama.cpp has KV cache kernels for; any other type crashes or aborts."""

MAX_CONTEXT = 2**26
"""Positions of one context, at most: above that no memory could hold them."""

_E = TypeVar("_E", bound=IntEnum)


def member(name: str, value: object, enum: type[_E]) -> _E:
    """Return the member of ``enum`` that ``value``, a member or its name in any case, stands for."""
    if isinstance(value, enum):
        return value
    if isinstance(value, str) and value.upper() in enum.__members__:
        return enum[value.upper()]
    allowed = ", ".join(repr(key.lower()) for key in enum.__members__)
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"{name} must be one of {allowed}, not {value!r}")


def _set(params: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(params, name, value)  # frozen for everybody else


def _switches(params: Any) -> None:
    for field in fields(params):
        if field.type == "bool" and not isinstance(value := getattr(params, field.name), bool):
            raise TypeError(f"{field.name} must be True or False, not {type(value).__name__}")


@dataclass(frozen=True)
class ModelParams:
    """``llama_model_params``: how to load a model. See Model for what each means."""

    n_gpu_layers: int = -1
    devices: tuple[Device, ...] | None = None
    split_mode: SplitMode = SplitMode.LAYER
    tensor_split: tuple[float, ...] | None = None
    main_gpu: int = 0
    load_mode: LoadMode = LoadMode.AUTO
    lazy_mode: LazyMode = LazyMode.AUTO
    vocab_only: bool = False
    check_tensors: bool = False
    use_extra_bufts: bool = True
    no_host: bool = False
    load_mtp: bool = False

    def __post_init__(self) -> None:
        _switches(self)
        _set(
            self,
            n_gpu_layers=number("n_gpu_layers", self.n_gpu_layers, -1),
            main_gpu=number("main_gpu", self.main_gpu, 0, lib.llama_max_devices() - 1),
        )
        if self.tensor_split is not None:
            _set(self, tensor_split=_shares(self.tensor_split, self.devices))

    def to_c(self) -> Any:
        """Return a ``llama_model_params`` with these values and llama.h's defaults for the rest."""
        c = _filled(lib.llama_model_default_params(), self, skip=("devices", "tensor_split"))
        arrays = []
        if self.devices is not None:
            arrays.append(ffi.new("ggml_backend_dev_t[]", [*map(pointer, self.devices), ffi.NULL]))
            c.devices = arrays[-1]
        if self.tensor_split is not None:
            arrays.append(ffi.new("float[]", lib.llama_max_devices()))  # which llama.cpp copies whole
            arrays[-1][0 : len(self.tensor_split)] = self.tensor_split
            c.tensor_split = arrays[-1]
        _arrays[c] = arrays
        return c


_arrays: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
"""What the pointers in a ``llama_model_params`` point to, for as long as that is there."""


def _shares(tensor_split: Sequence[float], devices: tuple[Device, ...] | None) -> tuple[float, ...]:
    shares = tuple(real(f"tensor_split[{i}]", share, 0) for i, share in enumerate(tensor_split))
    most = lib.llama_max_devices() if devices is None else len(devices)
    if len(shares) > most or (devices is not None and len(shares) < most):
        raise ValueError(f"tensor_split has {len(shares)} shares for {most} devices")
    if not any(shares):
        raise ValueError("tensor_split must have a share above 0")
    return shares


@dataclass(frozen=True)
class ContextParams:
    """``llama_context_params``: how to make a context. See Context for what each means."""

    n_ctx: int = 4096
    n_batch: int = 2048
    n_ubatch: int = 512
    n_seq_max: int = 1
    n_outputs_max: int = 0
    n_threads: int | None = None
    n_threads_batch: int | None = None
    rope_scaling_type: RopeScaling = RopeScaling.UNSPECIFIED
    pooling_type: PoolingType = PoolingType.UNSPECIFIED
    attention_type: AttentionType = AttentionType.UNSPECIFIED
    flash_attn_type: FlashAttention = FlashAttention.AUTO
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    type_k: str = "f16"
    type_v: str = "f16"
    embeddings: bool = False
    offload_kqv: bool = True
    op_offload: bool = True
    swa_full: bool = True
    kv_unified: bool = False
    no_perf: bool = True

    def __post_init__(self) -> None:
        _switches(self)
        threads = default_threads() if self.n_threads is None else self.n_threads
        n_threads = number("n_threads", threads, 1)
        batch_threads = n_threads if self.n_threads_batch is None else self.n_threads_batch
        limit = os.cpu_count() or 1  # llama.cpp starts what it is told, and dies of 100,000
        _set(
            self,
            n_ctx=number("n_ctx", self.n_ctx, 1, MAX_CONTEXT),
            n_batch=number("n_batch", self.n_batch, 1, MAX_CONTEXT),
            n_ubatch=number("n_ubatch", self.n_ubatch, 1, MAX_CONTEXT),
            n_seq_max=number("n_seq_max", self.n_seq_max, 1, lib.llama_max_parallel_sequences()),
            n_outputs_max=number("n_outputs_max", self.n_outputs_max, 0, MAX_CONTEXT),
            n_threads=min(n_threads, limit),
            n_threads_batch=min(number("n_threads_batch", batch_threads, 1), limit),
            rope_freq_base=real("rope_freq_base", self.rope_freq_base, 0),
            rope_freq_scale=real("rope_freq_scale", self.rope_freq_scale, 0),
        )
        for name in ("type_k", "type_v"):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in KV_TYPES:
                raise ValueError(f"{name} must be one of {', '.join(KV_TYPES)}, not {value!r}")
        if 0 < self.n_outputs_max < self.n_seq_max:
            raise ValueError(
                f"n_outputs_max must be 0 or at least n_seq_max ({self.n_seq_max}), not {self.n_outputs_max}"
            )
        if self.embeddings and self.pooling_type is not PoolingType.NONE:
            self._fit_pooling()

    def _fit_pooling(self) -> None:
        """Refuse or mend what llama.cpp pools wrongly, or aborts on.

        Sequences that are cut, that are not all of the output, or whose number does not divide the micro-batch.
        """
        if self.n_seq_max > 1 and not self.kv_unified:
            raise ValueError('kv_unified must be True for embeddings of several sequences, or pooling_type "none"')
        if 0 < self.n_outputs_max < self.n_batch:
            raise ValueError(f"n_outputs_max must be 0, or n_batch, with pooled embeddings, not {self.n_outputs_max}")
        n_ubatch = min(self.n_ubatch, self.n_batch, self.n_ctx)
        if n_ubatch < self.n_seq_max:
            raise ValueError(f"n_ubatch must be at least n_seq_max ({self.n_seq_max}) for embeddings, not {n_ubatch}")
        _set(self, n_ubatch=n_ubatch - n_ubatch % self.n_seq_max)

    def to_c(self) -> Any:
        """Return a ``llama_context_params`` with these values and llama.h's defaults for the rest."""
        c = _filled(lib.llama_context_default_params(), self, skip=("type_k", "type_v"))
        c.type_k, c.type_v = KV_TYPES[self.type_k], KV_TYPES[self.type_v]
        return c


def _filled(c: Any, params: Any, skip: tuple[str, ...] = ()) -> Any:
    for field in fields(params):
        if field.name not in skip:
            setattr(c, field.name, getattr(params, field.name))
    return c
