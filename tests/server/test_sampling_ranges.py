"""Sampling parameters in settings: what SamplingParams would refuse at the first request is refused at the start."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from offgrid_llama.sampling.sampling_params import SamplingParams
from offgrid_llama.server import SettingsError
from offgrid_llama.server.sampling_ranges import RANGES, SAMPLERS, check_sampling


def test_the_ranges_are_those_of_sampling_params() -> None:
    """Each number has its range, and there are no further ones."""
    theirs = {each.name: each.metadata["argument"] for each in fields(SamplingParams) if "argument" in each.metadata}
    assert {name: RANGES[name] for name in theirs} == {name: (each.low, each.high) for name, each in theirs.items()}
    assert RANGES.keys() - theirs.keys() == {"mirostat"}
    SamplingParams(samplers=SAMPLERS)


@pytest.mark.parametrize(
    "sampling",
    [
        {}, {"temperature": 0, "seed": 2**32 - 2}, {"logit_bias": {"5": -math.inf, "6": 1}}, {"mirostat": 2},
        {"samplers": ["infill", "top_k"]}, {"frequency_penalty": -3}, {"dry_sequence_breakers": ["x"]},
    ],
)  # fmt: skip
def test_what_is_possible(sampling: dict[str, Any]) -> None:
    """Nothing is said of it, here and by SamplingParams."""
    check_sampling(sampling, "presets.a")
    biases = {int(token): bias for token, bias in sampling.get("logit_bias", {}).items()}
    SamplingParams(**{**sampling, "logit_bias": biases})
    check_sampling({"repeat_last_n": -1}, "presets.a")


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": -0.1}, {"temperature": math.inf}, {"temperature": math.nan}, {"top_k": -1}, {"mirostat": 3},
        {"repeat_penalty": 0}, {"adaptive_decay": 1}, {"seed": -1}, {"logit_bias": {"-1": 0}}, {"min_keep": 0.5},
        {"logit_bias": {"1": math.nan}}, {"logit_bias": {"1": math.inf}}, {"samplers": ["top_k", "top"]}, {"dry_base": 0.5},
        {"frequency_penalty": math.inf}, {"dry_sequence_breakers": ["x"] * 257},
    ],
)  # fmt: skip
def test_what_is_refused(sampling: dict[str, Any]) -> None:
    """The error names the preset and the parameter; SamplingParams refuses it, too."""
    (name,) = sampling
    with pytest.raises(SettingsError, match=rf"^presets\.a: sampling: .*{name}"):
        check_sampling(sampling, "presets.a")
    biases = {int(token): bias for token, bias in sampling.get("logit_bias", {}).items()}
    with pytest.raises((ValueError, TypeError), match=name):
        SamplingParams(**{**sampling, "logit_bias": biases})
