"""Ranges of sampling parameters in settings, for the process that never loads libllama (pure).

A test compares them with those of SamplingParams, which a worker checks again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import msgspec

from offgrid_llama.worker.generation import Sampling

from .setting_checks import SettingsError

__all__ = ["RANGES", "SAMPLERS", "check_sampling"]

_INT = 2**31 - 1
_FLOAT = (2 - 2**-23) * 2.0**127

RANGES: Mapping[str, tuple[float, float]] = {
    "temperature": (0, _FLOAT), "dynatemp_range": (0, _FLOAT), "dynatemp_exponent": (0, _FLOAT), "top_k": (0, _INT),
    "top_p": (0, 1), "min_p": (0, 1), "typical_p": (0, 1), "top_n_sigma": (0, _FLOAT), "xtc_probability": (0, 1),
    "xtc_threshold": (0, 1), "min_keep": (0, _INT), "repeat_last_n": (0, 2**20), "repeat_penalty": (1e-6, _FLOAT),
    "frequency_penalty": (-_FLOAT, _FLOAT), "presence_penalty": (-_FLOAT, _FLOAT), "dry_multiplier": (0, _FLOAT),
    "dry_base": (1, _FLOAT), "dry_allowed_length": (0, _INT), "dry_penalty_last_n": (0, 2**20), "mirostat": (0, 2),
    "mirostat_tau": (0, _FLOAT), "mirostat_eta": (0, _FLOAT), "adaptive_target": (0, 1), "adaptive_decay": (0, 0.99),
    "seed": (0, 2**32 - 2),
}  # fmt: skip
"""The smallest and the largest value of each number. A ``repeat_last_n`` below 0 is the whole sequence."""
SAMPLERS = ("penalties", "dry", "top_n_sigma", "top_k", "typical", "top_p", "min_p", "xtc", "temp_ext", "infill")
"""The names in ``samplers``."""
MAX_BREAKERS = 256


def check_sampling(given: Mapping[str, Any], where: str) -> None:
    """Raise SettingsError for a parameter that is not known, of another type, or out of range."""
    try:
        sampling = msgspec.convert(given, Sampling, strict=False)  # tokens of biases are texts in TOML
    except msgspec.ValidationError as error:
        raise SettingsError(f"{where}: sampling: {str(error)[:1].lower()}{str(error)[1:]}") from None
    problem = next(chain(_numbers(sampling), _others(sampling)), None)
    if problem is not None:
        raise SettingsError(f"{where}: sampling: {problem}")


def _numbers(sampling: Sampling) -> Iterator[str]:
    """Yield which numbers SamplingParams would refuse."""
    for name, (low, high) in RANGES.items():
        value = getattr(sampling, name)
        if value is not None and not low <= value <= high and not (name == "repeat_last_n" and value < 0):
            yield f"{name} must be {_told(low, high)}, not {value}"


def _others(sampling: Sampling) -> Iterator[str]:
    """Yield which other parameters it would refuse."""
    for token, bias in (sampling.logit_bias or {}).items():
        if token < 0 or math.isnan(bias) or bias > _FLOAT:
            yield f"logit_bias must have token ids with numbers, not {token} with {bias}"
    if len(sampling.dry_sequence_breakers or ()) > MAX_BREAKERS:
        yield f"dry_sequence_breakers must be at most {MAX_BREAKERS} strings"
    wrong = [name for name in sampling.samplers or () if name not in SAMPLERS]
    if wrong:
        yield f"samplers must be of {', '.join(SAMPLERS)}, not {wrong[0]!r}"


def _told(low: float, high: float) -> str:
    if low <= -_FLOAT:
        return "a finite number"
    return f"{low:g} or more, and finite" if high >= _FLOAT else f"from {low:.10g} to {high:.10g}"
