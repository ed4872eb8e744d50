"""SamplingParams: llama.cpp's names, defaults and order; what each value makes of a chain."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offgrid_llama as og
from helpers.handles import n_children
from helpers.twin import N_VOCAB, TOKENS, decode
from offgrid_llama import samplers
from offgrid_llama._capi import ffi, lib

INF = math.inf

# The names in llama.cpp's common_params_sampling.
THEIR_NAME = {
    "temperature": "temp", "dynatemp_range": "dynatemp_range", "dynatemp_exponent": "dynatemp_exponent", "top_k": "top_k",
    "top_p": "top_p", "min_p": "min_p", "typical_p": "typ_p", "top_n_sigma": "top_n_sigma",
    "xtc_probability": "xtc_probability", "xtc_threshold": "xtc_threshold", "min_keep": "min_keep",
    "repeat_last_n": "penalty_last_n", "repeat_penalty": "penalty_repeat", "frequency_penalty": "penalty_freq",
    "presence_penalty": "penalty_present", "dry_multiplier": "dry_multiplier", "dry_base": "dry_base",
    "dry_allowed_length": "dry_allowed_length", "dry_penalty_last_n": "dry_penalty_last_n", "mirostat": "mirostat",
    "mirostat_tau": "mirostat_tau", "mirostat_eta": "mirostat_eta", "adaptive_target": "adaptive_target",
    "adaptive_decay": "adaptive_decay",
}  # fmt: skip
THEIR_SAMPLER = {"typical": "TYPICAL_P", "temp_ext": "TEMPERATURE"}


def names(vocab: og.Vocab, **values: Any) -> tuple[str, ...]:
    with og.SamplingParams(**values).chain(vocab) as chain:
        return chain.names


def test_defaults_and_order_are_llama_cpps(llama_cpp_dir: Path) -> None:
    """Every default, and the order of the samplers, is that of common_params_sampling."""
    text = (llama_cpp_dir / "common" / "common.h").read_text(encoding="utf-8")
    text = text[text.index("struct common_params_sampling {") :]
    text = text[: text.index("std::string print")]
    defaults = dict(re.findall(r"(?:int32_t|float)\s+(\w+)\s*=\s*(-?[\d.]+)f?;", text))
    ours = og.SamplingParams()
    for name, theirs in THEIR_NAME.items():
        default: float | None = float(defaults[theirs])
        if name in ("top_n_sigma", "adaptive_target"):  # negative is off
            assert default == -1
            default = 0 if name == "top_n_sigma" else None
        assert getattr(ours, name) == default, name
    order = re.findall(r"COMMON_SAMPLER_TYPE_(\w+),", text)
    assert [THEIR_SAMPLER.get(name, name.upper()) for name in ours.samplers] == order
    assert ours.dry_sequence_breakers == ("\n", ":", '"', "*")
    others = {"dry_sequence_breakers", "logit_bias", "seed", "samplers", "grammar"}
    assert {field.name for field in fields(ours)} == THEIR_NAME.keys() | others


def test_the_chain_by_default(tiny: og.Model) -> None:
    """By default it is what llama.cpp's is without the samplers that do nothing; greedy is greedy alone."""
    assert names(tiny.vocab) == ("top-k", "top-p", "min-p", "temp-ext", "dist")
    assert names(tiny.vocab, temperature=0) == ("greedy",)
    assert names(tiny.vocab, temperature=0, mirostat=2, adaptive_target=0.5) == ("greedy",)
    assert names(tiny.vocab, temperature=1) == ("top-k", "top-p", "min-p", "dist")


@pytest.mark.parametrize(
    ("values", "name", "reference"),
    [
        ({"top_k": 5}, "top-k", lambda v: samplers.top_k(5)),
        ({"top_p": 0.5, "min_keep": 3}, "top-p", lambda v: samplers.top_p(0.5, 3)),
        ({"min_p": 0.2, "min_keep": 7}, "min-p", lambda v: samplers.min_p(0.2, 7)),
        ({"typical_p": 0.5, "min_keep": 9}, "typical", lambda v: samplers.typical(0.5, 9)),
        ({"top_n_sigma": 1.5}, "top-n-sigma", lambda v: samplers.top_n_sigma(1.5)),
        ({"xtc_probability": 0.5, "xtc_threshold": 0.02}, "xtc", lambda v: samplers.xtc(0.5, 0.02, 0, 7)),
        ({"xtc_probability": 1, "xtc_threshold": 0.01, "min_keep": 55}, "xtc", lambda v: samplers.xtc(1, 0.01, 55, 7)),
        ({"temperature": 0.5}, "temp-ext", lambda v: samplers.temp(0.5)),
        (
            {"dynatemp_range": 0.7, "dynatemp_exponent": 2}, "temp-ext",
            lambda v: samplers.temp_ext(1.0, 0.7, 2.0),
        ),
        (
            {"repeat_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.5, "repeat_last_n": 10}, "penalties",
            lambda v: samplers.penalties(v, 10, 1.2, 0.3, 0.5),
        ),
        (
            {"dry_multiplier": 2, "dry_base": 3, "dry_allowed_length": 1, "dry_penalty_last_n": 20}, "dry",
            lambda v: samplers.dry(v, 2, 3, 1, 20),
        ),
        ({"logit_bias": {4: 3.0, 7: -INF}}, "logit-bias", lambda v: samplers.logit_bias(v, {4: 3.0, 7: -INF})),
    ],
)  # fmt: skip
def test_each_value_reaches_its_sampler(
    values: dict[str, Any], name: str, reference: Callable[[og.Vocab], og.Sampler], tiny: og.Model
) -> None:
    """A value makes the sampler of its name, and with it the same draws as that sampler made by hand."""
    off = {"top_k": 0, "top_p": 1, "min_p": 0, "temperature": 1, "seed": 7}
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        with (
            og.SamplingParams(**{**off, **values}).chain(tiny.vocab) as ours,
            og.SamplerChain([reference(tiny.vocab), samplers.dist(7)]) as theirs,
        ):
            assert ours.names == (name, "dist")
            assert ours.seed == 7
            draws = [[chain.sample(context, i % len(TOKENS)) for i in range(200)] for chain in (ours, theirs)]
        assert draws[0] == draws[1]
        with og.SamplerChain([samplers.dist(7)]) as plain:
            assert [plain.sample(context, i % len(TOKENS)) for i in range(200)] != draws[0]


@pytest.mark.parametrize(
    ("values", "reference"),
    [
        ({"mirostat": 1, "mirostat_tau": 2, "mirostat_eta": 0.3}, lambda v: samplers.mirostat(v, 7, 2, 0.3, N_VOCAB)),
        ({"mirostat": 2, "mirostat_tau": 2, "mirostat_eta": 0.3}, lambda v: samplers.mirostat_v2(7, 2, 0.3)),
        (
            {"adaptive_target": 0.2, "adaptive_decay": 0.5, "top_k": 0, "top_p": 1, "min_p": 0},
            lambda v: samplers.adaptive_p(0.2, 0.5, 7),
        ),
    ],
)
def test_other_ways_to_select(
    values: dict[str, Any], reference: Callable[[og.Vocab], og.Sampler], tiny: og.Model
) -> None:
    """Mirostat comes after the temperature alone, adaptive-p after the usual samplers, each with its own values."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        with (
            og.SamplingParams(temperature=0.9, seed=7, **values).chain(tiny.vocab) as ours,
            og.SamplerChain([samplers.temp(0.9), reference(tiny.vocab)]) as theirs,
        ):
            draws = [[chain.sample(context, i % len(TOKENS)) for i in range(100)] for chain in (ours, theirs)]
            assert draws[0] == draws[1]
            assert ours.names[-1] == theirs.names[-1]


def test_order(smollm2: og.Model) -> None:
    """The grammar comes first, then the biases, then the samplers in the order asked for."""
    everything: dict[str, Any] = {
        "grammar": og.Grammar.gbnf('root ::= "a"'), "logit_bias": {1: 1.0}, "repeat_penalty": 1.1, "dry_multiplier": 1,
        "top_n_sigma": 1, "typical_p": 0.9, "xtc_probability": 0.5,
    }  # fmt: skip
    assert names(smollm2.vocab, **everything) == (
        "grammar", "logit-bias", "penalties", "dry", "top-n-sigma", "top-k", "typical", "top-p", "min-p", "xtc", "temp-ext",
        "dist",
    )  # fmt: skip
    # What cannot throw away the most probable token is not in the way of greedy.
    assert names(smollm2.vocab, **everything, temperature=0) == (
        "grammar", "logit-bias", "penalties", "dry", "typical", "xtc", "greedy",
    )  # fmt: skip
    assert names(smollm2.vocab, samplers=["temp_ext", "top_k"]) == ("temp-ext", "top-k", "dist")
    assert names(smollm2.vocab, samplers="top_k") == ("top-k", "dist")
    assert names(smollm2.vocab, samplers=()) == ("dist",)
    infill = ("top_k", "top_p", "infill")
    assert names(smollm2.vocab, samplers=infill) == ("top-k", "top-p", "infill", "dist")
    assert names(smollm2.vocab, samplers=infill, temperature=0) == ("top-k", "top-p", "infill", "greedy")
    assert names(smollm2.vocab, **everything, mirostat=2) == ("grammar", "logit-bias", "temp", "mirostat-v2")


def test_an_impossible_order_leaves_nothing_open(smollm2: og.Model) -> None:
    """An order that a chain refuses, and a bias for no token, are errors of chain(), and what was made is closed."""
    before = n_children(smollm2)
    params = og.SamplingParams(samplers=("penalties", "infill", "top_k"), repeat_penalty=2)
    with pytest.raises(ValueError, match="put a top_k"):
        params.chain(smollm2.vocab)
    with pytest.raises(ValueError, match="bias token"):
        og.SamplingParams(logit_bias={49152: 1.0}, grammar=og.Grammar.gbnf('root ::= "a"')).chain(smollm2.vocab)
    assert n_children(smollm2) == before


def test_suppressed_tokens(tiny: og.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens that the model wants suppressed never come, with any biases."""
    with og.Context(tiny, n_ctx=256, n_threads=1) as context:
        decode(context, TOKENS)
        order = [int(token) for token in np.argsort(-context.logits(3).copy())]
        monkeypatch.setattr(og.Vocab, "suppress_tokens", lambda _: order[:2])
        with og.SamplingParams(temperature=0, logit_bias={order[0]: 50.0}).chain(tiny.vocab) as chain:
            assert chain.sample(context, 3) == order[2]


BAD: list[tuple[str, Any]] = [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", "hot"), ("temperature", None), ("top_k", -1),
    ("top_k", 1.5), ("top_p", 1.1), ("min_p", -0.1), ("typical_p", 2), ("top_n_sigma", -1), ("xtc_probability", 1.5),
    ("xtc_threshold", -1), ("min_keep", -1), ("repeat_last_n", -1), ("repeat_last_n", 2**31 - 1), ("repeat_penalty", 0),
    ("frequency_penalty", INF), ("presence_penalty", 1e300), ("dry_multiplier", -1), ("dry_base", 0.5),
    ("dry_allowed_length", -1), ("dry_penalty_last_n", -1), ("dry_sequence_breakers", [5]),
    ("dry_sequence_breakers", ["x"] * 257), ("mirostat", 3), ("mirostat", -1), ("mirostat", None), ("mirostat_tau", -1),
    ("mirostat_eta", math.nan), ("adaptive_target", 1.5), ("adaptive_target", -1), ("adaptive_decay", 1.0),
    ("logit_bias", {-1: 1.0}), ("logit_bias", {1: INF}), ("logit_bias", {1: "a"}), ("seed", -1), ("seed", 2**32 - 1),
    ("seed", 1.5), ("samplers", ["top_k", "dist"]), ("samplers", ["nonsense"]), ("samplers", [5]),
    ("grammar", 'root ::= "a"'), ("dynatemp_range", -1), ("dynatemp_exponent", -1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_values_out_of_range(name: str, value: Any) -> None:
    """A value out of its range, or of another type, is named when the SamplingParams are made."""
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        og.SamplingParams(**{name: value})


def test_they_do_not_change() -> None:
    """SamplingParams are frozen, compare by value, and are independent of what they were made from."""
    bias = {1: 2.0}
    params = og.SamplingParams(top_k=3, logit_bias=bias)
    bias[1] = 9.0
    assert params.logit_bias == {1: 2.0}
    assert params == og.SamplingParams(top_k=3, logit_bias={1: 2.0})
    assert replace(params, top_k=4) != params
    with pytest.raises(FrozenInstanceError):
        params.top_k = 5  # type: ignore[misc]


ranged = {field.name: field.metadata["argument"] for field in fields(og.SamplingParams) if "argument" in field.metadata}


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_allowed_gives_a_token(data: st.DataObject, tiny: og.Model) -> None:
    """Any values within the ranges make a chain that gives a token of the model, or says SamplerError."""
    chosen = data.draw(st.sets(st.sampled_from(sorted(ranged)), max_size=6))
    values: dict[str, Any] = {"mirostat": data.draw(st.integers(0, 2))}
    for name in sorted(chosen):
        low, high = ranged[name].low, ranged[name].high
        usual = st.integers(int(low), int(min(high, 100))) if ranged[name].type is int else st.floats(low, min(high, 3))
        values[name] = data.draw(st.one_of(usual, st.sampled_from([ranged[name].type(low), ranged[name].type(high)])))
    order = data.draw(st.permutations(og.SamplingParams().samplers))
    with og.SamplingParams(**values, samplers=order[: data.draw(st.integers(0, 9))]).chain(tiny.vocab) as chain:
        logits = np.random.default_rng(len(values)).standard_normal(N_VOCAB) * data.draw(
            st.sampled_from([0, 1, 30, 1e38])
        )
        for _ in range(3):
            with chain.clone() as clone:
                for each in (chain, clone):
                    token = drawn(each, logits)
                    assert lib.OG_REFUSED <= token < N_VOCAB
                if token >= 0:
                    chain.accept(token)


def drawn(chain: og.SamplerChain, logits: np.typing.NDArray[Any]) -> int:
    """Draw a token, or get one of og_sample's codes, as ``chain.sample`` does, from logits of our own."""
    values = np.ascontiguousarray(logits, np.float32)
    with chain.handle as ptr:
        return int(lib.og_sample(ptr, ffi.from_buffer("float[]", values), len(values)))
