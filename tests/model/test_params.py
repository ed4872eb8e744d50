"""Parameter structs: llama.h's own defaults, and each argument's range."""

from __future__ import annotations

import inspect
import math
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest

import offgrid_llama as og
from offgrid_llama._capi import ffi, lib
from offgrid_llama.model.params import (
    MAX_POSITIONS,
    ContextOptions,
    ContextParams,
    ModelOptions,
    ModelParams,
    SizedContextOptions,
    default_n_ctx,
)
from offgrid_llama.native.backend import default_threads
from offgrid_llama.native.enums import KV_TYPES, FlashAttention, LoadMode, PoolingType


def context(**values: Any) -> ContextParams:
    return ContextParams(**values)


def model(**values: Any) -> ModelParams:
    return ModelParams(**values)


# Defaults -------------------------------------------------------------------------------------------------------------

# Ours differ where llama.h's are for its own examples: 512 positions and four threads.
OUR_OWN = {"n_ctx", "n_threads", "n_threads_batch"}
KV_NAMES = {value: name for name, value in KV_TYPES.items()}


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
        rope_freq_scale=0.5, flash_attn_type=FlashAttention.ENABLED, pooling_type=PoolingType.CLS,
    )  # fmt: skip
    c, default = ours.to_c(), lib.llama_context_default_params()
    for field in fields(ContextParams):
        value = getattr(ours, field.name)
        assert getattr(c, field.name) == KV_TYPES.get(value, value), field.name
    assert c.yarn_ext_factor == default.yarn_ext_factor
    assert c.no_perf == default.no_perf
    loading = ModelParams(n_gpu_layers=3, load_mode=LoadMode.NONE, vocab_only=True, check_tensors=True)
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


# Keywords -------------------------------------------------------------------------------------------------------------


def keywords(kind: Any) -> dict[str, str]:
    """Return the keywords of a class's constructor, with their annotations."""
    parameters = inspect.signature(kind).parameters.values()
    return {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}


def entries(options: Any) -> dict[str, str]:
    """Return the keys of a TypedDict, with their annotations."""
    return {name: kind.__forward_arg__ for name, kind in options.__annotations__.items()}


@pytest.mark.parametrize(("kind", "options"), [(og.Context, SizedContextOptions), (og.Model, ModelOptions)])
def test_options_are_the_keywords_of_the_class(kind: type, options: type) -> None:
    """ContextOptions and ModelOptions have the names and types of the constructor's keywords, and no others."""
    assert entries(options) == keywords(kind)


def test_an_engine_has_sizes_of_its_own() -> None:
    """ContextOptions are the keywords of a Context but its sizes, which an Engine names or finds itself."""
    assert entries(SizedContextOptions).keys() - entries(ContextOptions).keys() == {
        "n_ctx",
        "n_batch",
        "n_ubatch",
        "n_seq_max",
    }


@pytest.mark.parametrize(
    ("kind", "params", "others"),
    [
        (og.Context, ContextParams, {"threadpool", "perf"}),
        (og.Model, ModelParams, {"fit_margin", "kv_overrides", "tensor_buft_overrides", "progress", "download"}),
    ],
)
def test_keywords_become_params(kind: type, params: Any, others: set[str]) -> None:
    """Each keyword is a field of the class's params, but for the others, which are no part of llama.h's struct."""
    assert {field.name for field in fields(params)} == keywords(kind).keys() - others


def test_the_default_length() -> None:
    """Without n_ctx a context has as many positions as its model was trained for, 4,096 at most."""
    assert [default_n_ctx(n) for n in (512, 4096, 131_072, 0)] == [512, 4096, 4096, 4096]
    assert [ContextParams.of(512, {"n_ctx": n}).n_ctx for n in (None, 100, 5000)] == [512, 100, 5000]


# Ranges ---------------------------------------------------------------------------------------------------------------

CONTEXT_RANGES: list[tuple[str, int, int]] = [
    ("n_ctx", 1, MAX_POSITIONS),
    ("n_batch", 1, MAX_POSITIONS),
    ("n_ubatch", 1, MAX_POSITIONS),
    ("n_seq_max", 1, 256),
    ("n_outputs_max", 0, MAX_POSITIONS),
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
            with pytest.raises(ValueError, match=f"{name} must be 1 or more"):
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
    for kind in KV_TYPES:
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
        with pytest.raises(ValueError, match=f"{name} must be (from {low} to {high}|{low} or more)"):
            model(**{name: value})
    wrong: Any
    for wrong in (None, "1", 1.0):
        with pytest.raises(TypeError, match=f"{name} must be an int"):
            model(**{name: wrong})
