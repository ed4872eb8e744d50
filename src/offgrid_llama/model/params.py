"""The parameter structs of llama.h, as frozen dataclasses that check themselves, and the keywords that they are made of.

Names, and defaults where none is given below, are llama.h's own. A keyword of Model or Context has its place here, in the
dataclass and in the TypedDict beside it, and in the signature of the class; ``tests/model/test_params.py`` compares them.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from offgrid_llama._capi import ffi, lib
from offgrid_llama.native.backend import Device, default_threads, pointer
from offgrid_llama.native.check import number, real
from offgrid_llama.native.enums import (
    KV_TYPES,
    AttentionName,
    AttentionType,
    FlashAttention,
    FlashAttentionName,
    KVType,
    LazyMode,
    LazyModeName,
    LoadMode,
    LoadModeName,
    PoolingName,
    PoolingType,
    RopeScaling,
    RopeScalingName,
    SplitMode,
    SplitModeName,
    member,
)
from offgrid_llama.native.kinds import instance, listed
from offgrid_llama.native.threadpool import ThreadPool

if TYPE_CHECKING:
    from offgrid_llama.files.overrides import Override
    from offgrid_llama.store.consent import Download

__all__ = ["ContextOptions", "ContextParams", "ModelOptions", "ModelParams", "SizedContextOptions", "default_n_ctx"]

MAX_POSITIONS = 2**26
"""Most positions of one context: no machine has memory for more."""

DEFAULT_POSITIONS = 4096
"""Most positions of a context that was made without ``n_ctx``."""


def default_n_ctx(n_ctx_train: int) -> int:
    """Return the positions of a context made without ``n_ctx``: the model's training length, 4,096 at most."""
    return min(n_ctx_train or DEFAULT_POSITIONS, DEFAULT_POSITIONS)


def _set(params: Any, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(params, name, value)  # the dataclass is frozen


def _check_switches(params: Any) -> None:
    for field in fields(params):
        if field.type == "bool" and not isinstance(value := getattr(params, field.name), bool):
            raise TypeError(f"{field.name} must be True or False, not {type(value).__name__}")


def _fields_of(kind: type[Any], options: Mapping[str, Any], enums: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that are fields of a dataclass, with members of enums in place of their names."""
    values = {field.name: options[field.name] for field in fields(kind) if field.name in options}
    return {name: member(name, value, enums[name]) if name in enums else value for name, value in values.items()}


def _copy_fields(c: Any, params: Any, skip: tuple[str, ...] = ()) -> Any:
    for field in fields(params):
        if field.name not in skip:
            setattr(c, field.name, getattr(params, field.name))
    return c


class ModelOptions(TypedDict, total=False):
    """The keywords of Model, for ``Unpack``. See Model for what each means."""

    n_gpu_layers: int | Literal["auto"]
    devices: Sequence[Device | str] | None
    split_mode: SplitMode | SplitModeName
    tensor_split: Sequence[float] | None
    main_gpu: int
    fit_margin: int
    load_mode: LoadMode | LoadModeName
    lazy_mode: LazyMode | LazyModeName
    kv_overrides: Mapping[str, Override] | None
    tensor_buft_overrides: Mapping[str, str] | None
    vocab_only: bool
    check_tensors: bool
    use_extra_bufts: bool
    no_host: bool
    load_mtp: bool
    progress: Callable[[float], object] | None
    download: Download


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

    @classmethod
    def of(cls, devices: tuple[Device, ...] | None, options: Mapping[str, Any]) -> ModelParams:
        """Return what ModelOptions stand for, all layers on the devices. ``placement.choose`` finds the devices."""
        enums = {"split_mode": SplitMode, "load_mode": LoadMode, "lazy_mode": LazyMode}
        shares = options.get("tensor_split")
        tensor_split = None if shares is None else listed("tensor_split", shares, "numbers")
        chosen = {"n_gpu_layers": -1, "devices": devices, "tensor_split": tensor_split}
        return cls(**_fields_of(cls, {**options, **chosen}, enums))

    def __post_init__(self) -> None:
        _check_switches(self)
        _set(
            self,
            n_gpu_layers=number("n_gpu_layers", self.n_gpu_layers, -1),
            main_gpu=number("main_gpu", self.main_gpu, 0, lib.llama_max_devices() - 1),
        )
        if self.tensor_split is not None:
            _set(self, tensor_split=_checked_shares(self.tensor_split, self.devices))

    def to_c(self) -> Any:
        """Return a ``llama_model_params`` with these values and llama.h's defaults for the rest."""
        c = _copy_fields(lib.llama_model_default_params(), self, skip=("devices", "tensor_split"))
        arrays = []
        if self.devices is not None:
            arrays.append(ffi.new("ggml_backend_dev_t[]", [*map(pointer, self.devices), ffi.NULL]))
            c.devices = arrays[-1]
        if self.tensor_split is not None:
            arrays.append(ffi.new("float[]", lib.llama_max_devices()))  # llama.cpp copies all of it
            arrays[-1][0 : len(self.tensor_split)] = self.tensor_split
            c.tensor_split = arrays[-1]
        _arrays[c] = arrays
        return c


_arrays: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
"""The arrays that a ``llama_model_params`` points to. They live as long as it does."""


def _checked_shares(tensor_split: Sequence[float], devices: tuple[Device, ...] | None) -> tuple[float, ...]:
    shares = tuple(real(f"tensor_split[{i}]", share, 0) for i, share in enumerate(tensor_split))
    n_devices = lib.llama_max_devices() if devices is None else len(devices)
    if len(shares) > n_devices or (devices is not None and len(shares) < n_devices):
        raise ValueError(f"tensor_split has {len(shares)} shares for {n_devices} devices")
    if not any(shares):
        raise ValueError("tensor_split must have a share above 0")
    return shares


class ContextOptions(TypedDict, total=False):
    """The keywords of Context that an Engine takes as well, for ``Unpack``. See Context for what each means."""

    n_outputs_max: int
    n_threads: int | None
    n_threads_batch: int | None
    threadpool: ThreadPool | None
    type_k: KVType
    type_v: KVType
    flash_attn_type: FlashAttention | FlashAttentionName
    kv_unified: bool
    swa_full: bool
    embeddings: bool
    pooling_type: PoolingType | PoolingName
    attention_type: AttentionType | AttentionName
    rope_scaling_type: RopeScaling | RopeScalingName
    rope_freq_base: float
    rope_freq_scale: float
    offload_kqv: bool
    op_offload: bool
    perf: bool
    no_perf: bool | None


class SizedContextOptions(ContextOptions, total=False):
    """All keywords of Context: ContextOptions and the sizes, which an Engine has parameters of its own for."""

    n_ctx: int | None
    n_batch: int
    n_ubatch: int
    n_seq_max: int


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
    type_k: KVType = "f16"
    type_v: KVType = "f16"
    embeddings: bool = False
    offload_kqv: bool = True
    op_offload: bool = True
    swa_full: bool = True
    kv_unified: bool = False
    no_perf: bool = True

    @classmethod
    def of(cls, n_ctx_train: int, options: Mapping[str, Any]) -> ContextParams:
        """Return what SizedContextOptions stand for, on a model that was trained for ``n_ctx_train`` positions."""
        enums = {
            "rope_scaling_type": RopeScaling, "pooling_type": PoolingType, "attention_type": AttentionType,
            "flash_attn_type": FlashAttention,
        }  # fmt: skip
        values = _fields_of(cls, options, enums)
        if values.get("n_ctx") is None:
            values["n_ctx"] = default_n_ctx(n_ctx_train)
        threadpool: ThreadPool | None = options.get("threadpool")
        if threadpool is not None:
            instance("threadpool", threadpool, ThreadPool)
        if threadpool is not None and values.get("n_threads") is None:
            values["n_threads"] = threadpool.n_threads
        return cls(**values)

    def __post_init__(self) -> None:
        _check_switches(self)
        threads = default_threads() if self.n_threads is None else self.n_threads
        n_threads = number("n_threads", threads, 1)
        batch_threads = n_threads if self.n_threads_batch is None else self.n_threads_batch
        n_cpus = os.cpu_count() or 1  # llama.cpp starts as many threads as it is told, and dies of 100,000
        _set(
            self,
            n_ctx=number("n_ctx", self.n_ctx, 1, MAX_POSITIONS),
            n_batch=number("n_batch", self.n_batch, 1, MAX_POSITIONS),
            n_ubatch=number("n_ubatch", self.n_ubatch, 1, MAX_POSITIONS),
            n_seq_max=number("n_seq_max", self.n_seq_max, 1, lib.llama_max_parallel_sequences()),
            n_outputs_max=number("n_outputs_max", self.n_outputs_max, 0, MAX_POSITIONS),
            n_threads=min(n_threads, n_cpus),
            n_threads_batch=min(number("n_threads_batch", batch_threads, 1), n_cpus),
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
        """Refuse or mend sizes with which llama.cpp pools wrongly, or aborts.

        It does for sequences that are split, that are not all of the output, or whose number does not divide the
        micro-batch.
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
        c = _copy_fields(lib.llama_context_default_params(), self, skip=("type_k", "type_v"))
        c.type_k, c.type_v = KV_TYPES[self.type_k], KV_TYPES[self.type_v]
        return c
