"""Perf: llama.cpp's own measurements (``llama_perf_*``)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from offgrid_llama._capi import lib

__all__ = ["ContextPerf", "SamplerPerf", "context_perf"]


@dataclass(frozen=True)
class ContextPerf:
    """``llama_perf_context_data``: what a context has computed since it was made, or since ``perf_reset()``.

    Attributes:
        t_start_ms: its beginning, in milliseconds on a clock of llama.cpp's own.
        t_load_ms: milliseconds from the beginning to the first result.
        t_p_eval_ms, t_eval_ms: milliseconds in decodes of several tokens (prompts), and in decodes of one.
        n_p_eval, n_eval: the tokens of these; llama.cpp says 1 for none.
        n_reused: graphs that were used again.
    """

    t_start_ms: float
    t_load_ms: float
    t_p_eval_ms: float
    t_eval_ms: float
    n_p_eval: int
    n_eval: int
    n_reused: int


def context_perf(ptr: Any) -> ContextPerf:
    """Return the measurements of a ``llama_context *``."""
    data = lib.llama_perf_context(ptr)
    return ContextPerf(**{field.name: getattr(data, field.name) for field in fields(ContextPerf)})


@dataclass(frozen=True)
class SamplerPerf:
    """``llama_perf_sampler_data``: what a chain has done since it was made, or since ``perf_reset()``.

    Attributes:
        t_sample_ms: milliseconds in the samplers.
        n_sample: tokens that they accepted.
    """

    t_sample_ms: float
    n_sample: int
