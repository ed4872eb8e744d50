"""The table of samplers against llama.h: names, numbers and defaults, and the range of each argument."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import offgrid_llama as og
from helpers.candidates import INF
from helpers.twin import N_VOCAB
from offgrid_llama import samplers
from offgrid_llama._capi import ffi, lib
from offgrid_llama.sampling.sampler import MAX_FLOAT

# The table ---------------------------------------------------------------------------------------------------------


def all_samplers(vocab: og.Vocab) -> list[og.Sampler]:
    return [
        samplers.adaptive_p(), samplers.dist(), samplers.dry(vocab), samplers.greedy(), samplers.logit_bias(vocab, {1: 1.0}),
        samplers.min_p(), samplers.mirostat(vocab), samplers.mirostat_v2(), samplers.penalties(vocab), samplers.temp(),
        samplers.temp_ext(), samplers.top_k(), samplers.top_n_sigma(), samplers.top_p(), samplers.typical(), samplers.xtc(),
        samplers.infill(vocab),
    ]  # fmt: skip


def test_every_sampler_has_llama_cpps_name(smollm2: og.Model) -> None:
    """A sampler's name is the one that llama.cpp gives it."""
    made = all_samplers(smollm2.vocab)
    makers = {name.replace("-", "_") for name in samplers.TABLE} - {"custom", "grammar"}
    assert {sampler.name.replace("-", "_") for sampler in made} == makers
    for sampler in made:
        with sampler, sampler.handle as ptr:
            name = ffi.string(lib.llama_sampler_name(ptr)).decode()
            assert name.lstrip("+?") in (sampler.name, sampler.name.replace("-", "_"))


def declared_in_llama_h(header: str) -> dict[str, list[str]]:
    """Return the sampler constructors of llama.h that are not deprecated, with the types of their arguments."""
    text = re.sub(r"//[^\n]*", "", header)
    text = re.sub(r"DEPRECATED\(.*?\);", "", text, flags=re.DOTALL)
    found = re.findall(r"llama_sampler_init_(\w+)\s*\(([^;]*)\);", text)
    return {
        name: [re.sub(r"\s*\w+$", "", part.strip()) for part in arguments.split(",") if part.strip() != "void"]
        for name, arguments in found
    }


def test_the_table_has_every_sampler_of_llama_h(llama_cpp_dir: Path) -> None:
    """Every constructor of llama.h is a row, with as many numbers of the same type in the same order; and no other is."""
    declared = declared_in_llama_h((llama_cpp_dir / "include" / "llama.h").read_text(encoding="utf-8"))
    # It runs a regular expression over all text so far for each token; triggers are for the caller to match.
    del declared["grammar_lazy_patterns"]
    assert len(declared) > 15
    assert {name.replace("-", "_") for name in samplers.TABLE} == {*declared, "custom"}
    for name, types in declared.items():
        kind = samplers.TABLE[name.replace("_", "-")]
        assert kind.needs_vocab == bool({"const struct llama_vocab *", "int32_t"} & set(types[:1]) and name != "top_k")
        numbers = [c_type for c_type in types[kind.needs_vocab :] if "*" not in c_type]
        numbers = numbers[: len(kind.arguments)]  # lengths of arrays follow
        whole = {"float": float, "int32_t": int, "uint32_t": int, "size_t": int}
        assert [argument.type for argument in kind.arguments.values()] == [whole[c_type] for c_type in numbers]


def test_what_selects_and_what_truncates() -> None:
    """The rows say which samplers choose the token, and which throw tokens away."""
    rows = samplers.TABLE.values()
    assert {kind.name for kind in rows if kind.selects} == {"greedy", "dist", "mirostat", "mirostat-v2", "adaptive-p"}
    truncating = {"top-k", "top-p", "min-p", "typical", "xtc", "top-n-sigma", "infill"}
    assert {kind.name for kind in rows if kind.truncates} == truncating


def test_the_table_is_the_signatures() -> None:
    """A row has the defaults of its function, every number among its arguments, and a seed that may be None."""
    for name, kind in samplers.TABLE.items():
        if name == "grammar":
            continue
        signature = inspect.signature(getattr(samplers, name.replace("-", "_")))
        numbers = {key: p.default for key, p in signature.parameters.items() if type(p.default) in (int, float)}
        assert {key: a.default for key, a in kind.arguments.items() if key != "seed"} == numbers
        assert ("seed" in kind.arguments) == ("seed" in signature.parameters)
        for key, argument in kind.arguments.items():
            assert (
                argument.default is None if key == "seed" else argument.low <= (argument.default or 0) <= argument.high
            )


ARGUMENTS = [(name, key) for name, kind in samplers.TABLE.items() for key in kind.arguments]


@pytest.mark.parametrize(("name", "key"), ARGUMENTS)
def test_ranges_are_kept(name: str, key: str, smollm2: og.Model) -> None:
    """The ends of a range are taken and what lies beyond is refused, with the argument's name; so is another type."""
    kind = samplers.TABLE[name]
    argument = kind.arguments[key]
    vocab = [smollm2.vocab] if kind.needs_vocab else []

    def make(value: object) -> None:
        getattr(samplers, name.replace("-", "_"))(*vocab, **{key: value}).close()

    step: float = 1 if argument.type is int else max(abs(argument.low), abs(argument.high)) * 1e-6
    high = min(argument.high, len(smollm2.vocab)) if key == "m" else argument.high
    make(argument.low)
    make(high)
    for value in (argument.low - step, high + step, 10**400 if argument.type is int else 1e300, -1e300, "1", [1], 1j):
        with pytest.raises((ValueError, TypeError), match=rf"^{key}\b"):
            make(value)
    if argument.type is float:
        for value in (math.nan, INF, -INF, True):
            with pytest.raises((ValueError, TypeError), match=rf"^{key}\b"):
                make(value)


# Arguments ------------------------------------------------------------------------------------------------------------

BAD: list[tuple[str, Callable[..., og.Sampler], dict[str, Any]]] = [
    ("k", samplers.top_k, {"k": -1}),
    ("k", samplers.top_k, {"k": 1.5}),
    ("p", samplers.top_p, {"p": -0.1}),
    ("p", samplers.top_p, {"p": 1.1}),
    ("p", samplers.top_p, {"p": math.nan}),
    ("min_keep", samplers.top_p, {"min_keep": -1}),
    ("p", samplers.min_p, {"p": 2}),
    ("p", samplers.typical, {"p": -1}),
    ("temperature", samplers.temp, {"temperature": -0.1}),
    ("temperature", samplers.temp, {"temperature": math.inf}),
    ("temperature", samplers.temp, {"temperature": "hot"}),
    ("delta", samplers.temp_ext, {"delta": -1}),
    ("exponent", samplers.temp_ext, {"exponent": math.nan}),
    ("probability", samplers.xtc, {"probability": 1.5}),
    ("threshold", samplers.xtc, {"threshold": -1}),
    ("n", samplers.top_n_sigma, {"n": -1}),
    ("tau", samplers.mirostat_v2, {"tau": -1}),
    ("eta", samplers.mirostat_v2, {"eta": math.nan}),
    ("target", samplers.adaptive_p, {"target": 2}),
    ("decay", samplers.adaptive_p, {"decay": 1.0}),
]
BAD_WITH_VOCAB: list[tuple[str, Callable[..., og.Sampler], dict[str, Any]]] = [
    ("m", samplers.mirostat, {"m": 1}),
    ("m", samplers.mirostat, {"m": 10**6}),
    ("last_n", samplers.penalties, {"last_n": -1}),
    ("last_n", samplers.penalties, {"last_n": 2**31 - 1}),
    ("repeat", samplers.penalties, {"repeat": 0}),
    ("freq", samplers.penalties, {"freq": math.inf}),
    ("multiplier", samplers.dry, {"multiplier": -1}),
    ("base", samplers.dry, {"base": 0.5}),
    ("allowed_length", samplers.dry, {"allowed_length": -1}),
    ("last_n", samplers.dry, {"last_n": 2**21}),
    ("breakers", samplers.dry, {"breakers": ["x"] * 257}),
    ("bias", samplers.logit_bias, {"bias": {-1: 0.0}}),
    ("bias", samplers.logit_bias, {"bias": {49152: 0.0}}),
    ("bias", samplers.logit_bias, {"bias": {1: math.nan}}),
    ("bias", samplers.logit_bias, {"bias": {1: math.inf}}),
    ("bias", samplers.logit_bias, {"bias": {1: 1e300}}),
    ("bias", samplers.logit_bias, {"bias": {1: "much"}}),
    ("bias", samplers.logit_bias, {"bias": {"a": 1.0}}),
]


@pytest.mark.parametrize("seed", [-1, 2**32 - 1, 2**32, 2**64])
def test_seeds_out_of_range(seed: int) -> None:
    """Seeds are 0 to 2**32 - 2: llama.h takes 2**32 - 1 for a random one, which only None stands for."""
    for make in (samplers.dist, samplers.mirostat_v2, lambda seed: samplers.xtc(seed=seed)):
        with pytest.raises(ValueError, match="seed"):
            make(seed)


@pytest.mark.parametrize(("name", "make", "arguments"), BAD)
def test_arguments_out_of_range(name: str, make: Callable[..., og.Sampler], arguments: dict[str, Any]) -> None:
    """An argument out of its range, or of another type, is named."""
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        make(**arguments)


@pytest.mark.parametrize(("name", "make", "arguments"), BAD_WITH_VOCAB)
def test_arguments_with_a_vocabulary_out_of_range(
    name: str, make: Callable[..., og.Sampler], arguments: dict[str, Any], smollm2: og.Model
) -> None:
    """An argument out of its range is named, for the samplers that know a vocabulary, too."""
    with pytest.raises((ValueError, TypeError), match=rf"^{name}\b"):
        make(smollm2.vocab, **arguments)


def test_breakers_that_are_no_text(smollm2: og.Model) -> None:
    """Breakers are strings of whole characters, each named in the error; one string is not a list of letters."""
    with pytest.raises(UnicodeEncodeError):
        samplers.dry(smollm2.vocab, breakers=["\ud800"])
    with pytest.raises(TypeError, match="breakers"):
        samplers.dry(smollm2.vocab, breakers=[5])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="breakers"):
        samplers.dry(smollm2.vocab, breakers=b"ab")  # type: ignore[arg-type]


def test_extreme_arguments_do_no_harm(context: og.Context, tiny: og.Model) -> None:
    """Values at the ends of the ranges draw a token, or raise SamplerError."""
    tiny_vocab = tiny.vocab
    extremes: list[Callable[[], og.Sampler]] = [
        lambda: samplers.temp(1e-45),
        lambda: samplers.temp(MAX_FLOAT),
        lambda: samplers.temp_ext(0, MAX_FLOAT, MAX_FLOAT),
        lambda: samplers.top_k(2**31 - 1),
        lambda: samplers.top_p(0.0, 2**31 - 1),
        lambda: samplers.min_p(1.0, 2**31 - 1),
        lambda: samplers.typical(0.0, 2**31 - 1),
        lambda: samplers.xtc(1.0, 0.0, 0, 1),
        lambda: samplers.top_n_sigma(0.0),
        lambda: samplers.top_n_sigma(MAX_FLOAT),
        lambda: samplers.penalties(tiny_vocab, 2**20, 1e-6, 1e38, -1e38),
        lambda: samplers.logit_bias(tiny_vocab, {0: MAX_FLOAT, 1: -MAX_FLOAT}),
    ]
    lasts: list[Callable[[], og.Sampler]] = [
        samplers.greedy,
        lambda: samplers.dist(1),
        lambda: samplers.mirostat(tiny_vocab, 1, MAX_FLOAT, MAX_FLOAT, N_VOCAB),
        lambda: samplers.mirostat(tiny_vocab, 1, 0, 0, 2),
        lambda: samplers.mirostat_v2(1, 0.0, MAX_FLOAT),
        lambda: samplers.adaptive_p(0.0, 0.99, 1),
        lambda: samplers.adaptive_p(1.0, 0.0, 1),
    ]
    for extreme in extremes:
        for last in lasts:
            with og.SamplerChain([extreme(), last()]) as chain:
                for row in (0, 3, 5):
                    with contextlib.suppress(og.SamplerError):
                        assert 0 <= chain.sample(context, row) < N_VOCAB
