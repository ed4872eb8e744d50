"""Perf: what llama.cpp measures of itself (``llama_perf_*``)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ContextPerf", "SamplerPerf"]


@dataclass(frozen=True)
class ContextPerf:
    """``llama_perf_context_data``: what a context has computed since it was made, or since ``perf_reset()``.

    Attributes:
        t_start_ms: when it began, on a clock of llama.cpp's own.
        t_load_ms: from the beginning to the first result.
        t_p_eval_ms, t_eval_ms: time in decodes of several tokens (prompts), and of one.
        n_p_eval, n_eval: how many tokens that were; llama.cpp says 1 for none.
        n_reused: graphs that were used again.
    """

    t_start_ms: float
    t_load_ms: float
    t_p_eval_ms: float
    t_eval_ms: float
    n_p_eval: int
    n_eval: int
    n_reused: int


@dataclass(frozen=True)
class SamplerPerf:
    """``llama_perf_sampler_data``: what a chain has done since it was made, or since ``perf_reset()``.

    Attributes:
        t_sample_ms: time in the samplers.
        n_sample: tokens that they accepted.
    """

    t_sample_ms: float
    n_sample: int
