"""Enums and parameter structs: llama.h's own values and defaults, and each argument's range."""

from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError, fields
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import pytest

from offgrid_llama import params
from offgrid_llama._capi import ffi, lib
from offgrid_llama.backend import default_threads
from offgrid_llama.params import MAX_CONTEXT, ContextParams, ModelParams, member


def context(**values: Any) -> ContextParams:
    return ContextParams(**values)


def model(**values: Any) -> ModelParams:
    return ModelParams(**values)


ENUMS: dict[str, tuple[type[IntEnum | IntFlag], str]] = {
    "llama_split_mode": (params.SplitMode, "LLAMA_SPLIT_MODE_"),
    "llama_load_mode": (params.LoadMode, "LLAMA_LOAD_MODE_"),
    "llama_lazy_mode": (params.LazyMode, "LLAMA_LAZY_MODE_"),
    "llama_rope_type": (params.RopeType, "LLAMA_ROPE_TYPE_"),
    "llama_rope_scaling_type": (params.RopeScaling, "LLAMA_ROPE_SCALING_TYPE_"),
    "llama_pooling_type": (params.PoolingType, "LLAMA_POOLING_TYPE_"),
    "llama_attention_type": (params.AttentionType, "LLAMA_ATTENTION_TYPE_"),
    "llama_flash_attn_type": (params.FlashAttention, "LLAMA_FLASH_ATTN_TYPE_"),
    "llama_vocab_type": (params.VocabType, "LLAMA_VOCAB_TYPE_"),
    "llama_token_attr": (params.TokenAttr, "LLAMA_TOKEN_ATTR_"),
}
# Names for the end of a list, and for no flag at all, which a flag enum has by itself; RoPE's bounds are no kinds.
NO_MEMBERS = {"LLAMA_ROPE_SCALING_TYPE_MAX_VALUE", "LLAMA_TOKEN_ATTR_UNDEFINED"}


@pytest.mark.parametrize("name", ENUMS)
def test_enums_have_llama_hs_members(name: str, llama_cpp_dir: Path) -> None:
    """An enum has exactly the members of llama.h's, under the same names, with the compiler's values."""
    enum, prefix = ENUMS[name]
    header = re.sub(r"//[^\n]*", "", (llama_cpp_dir / "include" / "llama.h").read_text(encoding="utf-8"))
    match = re.search(rf"enum {name} {{(.*?)}}", header, re.DOTALL)
    assert match
    constants = set(re.findall(r"\bLLAMA_\w+(?=\s*(?:=|,|$))", match[1], re.MULTILINE)) - NO_MEMBERS
    assert {f"{prefix}{member}" for member in enum.__members__} == constants
    for key, value in enum.__members__.items():
        assert int(value) == getattr(lib, prefix + key)


def test_every_enum_is_tried() -> None:
    """The table above has every enum of params."""
    there = {
        thing for thing in vars(params).values() if isinstance(thing, type) and issubclass(thing, (IntEnum, IntFlag))
    }
    assert there - {IntEnum, IntFlag} == {enum for enum, _ in ENUMS.values()}


def test_members_by_name() -> None:
    """A member's name in any case stands for it; other values are refused with the list of names."""
    flash = params.FlashAttention
    for value in ("enabled", "ENABLED", "Enabled", flash.ENABLED):
        assert member("flash_attn_type", value, flash) is flash.ENABLED
    with pytest.raises(ValueError, match=r"flash_attn_type must be one of 'auto', 'disabled', 'enabled', not 'on'"):
        member("flash_attn_type", "on", flash)
    for wrong in (1, None, True, b"auto", params.PoolingType.CLS):
        with pytest.raises(TypeError, match="flash_attn_type"):
            member("flash_attn_type", wrong, flash)


# Defaults -------------------------------------------------------------------------------------------------------------

# Ours differ where llama.h's are for its own examples: 512 positions and four threads.
OUR_OWN = {"n_ctx", "n_threads", "n_threads_batch"}
KV_NAMES = {value: name for name, value in params.KV_TYPES.items()}


def test_context_defaults_are_llama_hs() -> None:
    """A default is llama.h's own, except for those in OUR_OWN."""
    ours, theirs = ContextParams(), lib.llama_context_default_params()
    differ = set()
    for field in fields(ContextParams):
        value, default = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name in ("type_k", "type_v"):
            default = KV_NAMES[default]
        if value != default:
            differ.add(field.name)
    assert differ <= OUR_OWN
    assert {"n_ctx"} <= differ
    assert (ours.n_ctx, ours.n_threads, ours.n_threads_batch) == (4096, default_threads(), default_threads())


def plain(value: Any) -> Any:
    """Return None for NULL, and any other value as it is."""
    return None if isinstance(value, ffi.CData) and not value else value


def test_model_defaults_are_llama_hs() -> None:
    """Every default of ModelParams is llama.h's own."""
    theirs = lib.llama_model_default_params()
    for field in fields(ModelParams):
        assert getattr(ModelParams(), field.name) == plain(getattr(theirs, field.name)), field.name


def test_what_goes_to_c() -> None:
    """to_c() carries each value over and leaves llama.h's defaults in the fields that are not ours."""
    ours = ContextParams(
        n_ctx=100, n_batch=50, n_ubatch=20, n_seq_max=3, n_outputs_max=51, n_threads=1, type_k="q8_0", type_v="bf16",
        embeddings=True, offload_kqv=False, op_offload=False, swa_full=False, kv_unified=True, rope_freq_base=5.0,
        rope_freq_scale=0.5, flash_attn_type=params.FlashAttention.ENABLED, pooling_type=params.PoolingType.CLS,
    )  # fmt: skip
    c, default = ours.to_c(), lib.llama_context_default_params()
    for field in fields(ContextParams):
        value = getattr(ours, field.name)
        assert getattr(c, field.name) == params.KV_TYPES.get(value, value), field.name
    assert c.yarn_ext_factor == default.yarn_ext_factor
    assert c.no_perf == default.no_perf
    loading = ModelParams(n_gpu_layers=3, load_mode=params.LoadMode.NONE, vocab_only=True, check_tensors=True)
    c = loading.to_c()
    for field in fields(ModelParams):
        assert plain(getattr(c, field.name)) == getattr(loading, field.name), field.name
    c = ModelParams(tensor_split=(3, 0.5), devices=None).to_c()
    assert ffi.unpack(c.tensor_split, lib.llama_max_devices()) == [3, 0.5] + [0] * (lib.llama_max_devices() - 2)
    assert ModelParams(devices=()).to_c().devices[0] == ffi.NULL


def test_params_are_frozen() -> None:
    """Parameters say what an object was made with, and do not change."""
    for frozen, name in [(ContextParams(), "n_ctx"), (ModelParams(), "vocab_only")]:
        with pytest.raises(FrozenInstanceError):
            setattr(frozen, name, 1)


# Ranges ---------------------------------------------------------------------------------------------------------------

CONTEXT_RANGES: list[tuple[str, int, int]] = [
    ("n_ctx", 1, MAX_CONTEXT),
    ("n_batch", 1, MAX_CONTEXT),
    ("n_ubatch", 1, MAX_CONTEXT),
    ("n_seq_max", 1, 256),
    ("n_outputs_max", 0, MAX_CONTEXT),
]


@pytest.mark.parametrize(("name", "low", "high"), CONTEXT_RANGES)
def test_ranges(name: str, low: int, high: int) -> None:
    """The ends of a range are taken, what lies beyond is refused with the argument's name and range."""
    for value in (low, high):
        assert getattr(context(**{name: value}), name) == value
    for value in (low - 1, high + 1, -(2**63), 2**63):
        with pytest.raises(ValueError, match=f"{name} must be from {low} to {high}, not {value}"):
            context(**{name: value})
    for wrong in (None, "5", 1.0, [5]):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            context(**{name: wrong})


def test_numpy_ints_are_ints() -> None:
    """Any int type will do, and becomes int."""
    import numpy as np

    made = context(n_ctx=np.int64(300), n_seq_max=np.uint8(2))
    assert (type(made.n_ctx), made.n_ctx, type(made.n_seq_max)) == (int, 300, int)


def test_threads() -> None:
    """Threads are at least 1, and at most the machine's, as llama.cpp starts what it is told."""
    import os

    assert ContextParams(n_threads=100_000).n_threads == os.cpu_count()
    made = ContextParams(n_threads=1)
    assert (made.n_threads, made.n_threads_batch) == (1, 1)
    made = ContextParams(n_threads_batch=1)
    assert (made.n_threads, made.n_threads_batch) == (default_threads(), 1)
    for name in ("n_threads", "n_threads_batch"):
        for value in (0, -1):
            with pytest.raises(ValueError, match=f"{name} must be from 1"):
                context(**{name: value})


@pytest.mark.parametrize("name", ["rope_freq_base", "rope_freq_scale"])
def test_numbers(name: str) -> None:
    """Frequencies are finite and not negative; 0 is the model's own."""
    for value in (0, 0.5, 1e6):
        assert getattr(context(**{name: value}), name) == value
    for value in (-0.1, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=name):
            context(**{name: value})
    for wrong in (None, "x", True):
        with pytest.raises(TypeError, match=name):
            context(**{name: wrong})


@pytest.mark.parametrize("name", ["type_k", "type_v"])
def test_kv_types(name: str) -> None:
    """Types of the KV cache are those that llama.cpp has kernels for; any other crashes it."""
    for kind in params.KV_TYPES:
        assert getattr(context(**{name: kind}), name) == kind
    wrong: Any
    for wrong in ("q3_k", "i8", "F16", "", None, 9999, 1, []):
        with pytest.raises((ValueError, TypeError), match=name):
            context(**{name: wrong})


@pytest.mark.parametrize("name", ["embeddings", "offload_kqv", "op_offload", "swa_full", "kv_unified"])
def test_switches_of_a_context(name: str) -> None:
    """A switch is True or False; "no" is not False."""
    for value in (True, False):
        assert getattr(context(**{name: value}), name) is value
    for wrong in ("no", None, 1, 2):
        with pytest.raises(TypeError, match=f"{name} must be True or False"):
            context(**{name: wrong})


@pytest.mark.parametrize("name", ["vocab_only", "check_tensors", "use_extra_bufts"])
def test_switches_of_a_model(name: str) -> None:
    """The same for models."""
    for value in (True, False):
        assert getattr(model(**{name: value}), name) is value
    for wrong in ("no", None, 0):
        with pytest.raises(TypeError, match=f"{name} must be True or False"):
            model(**{name: wrong})


def test_outputs_for_each_sequence() -> None:
    """n_outputs_max is 0, for n_batch, or at least one row for each sequence."""
    for n in (0, 4, 5):
        assert ContextParams(n_seq_max=4, n_outputs_max=n).n_outputs_max == n
    with pytest.raises(ValueError, match=r"n_outputs_max must be 0 or at least n_seq_max \(4\)"):
        ContextParams(n_seq_max=4, n_outputs_max=3)


@pytest.mark.parametrize(("name", "low", "high"), [("n_gpu_layers", -1, 2**31 - 1), ("main_gpu", 0, None)])
def test_ranges_of_a_model(name: str, low: int, high: int | None) -> None:
    """The same for models."""
    high = lib.llama_max_devices() - 1 if high is None else high
    for value in (low, high):
        assert getattr(model(**{name: value}), name) == value
    for value in (low - 1, high + 1):
        with pytest.raises(ValueError, match=f"{name} must be from {low} to {high}"):
            model(**{name: value})
    wrong: Any
    for wrong in (None, "1", 1.0):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            model(**{name: wrong})
