"""Perf: llama.cpp's own measurements of a context. Those of a chain are in tests/sampling/test_chain.py."""

from __future__ import annotations

import pytest

import offgrid_llama as og
from helpers.twin import TOKENS, decode


def test_perf(tiny: og.Model) -> None:
    """A context that measures counts the tokens of prompts and single ones apart, with their times."""
    with og.Context(tiny, n_ctx=256, n_threads=1, perf=True) as context:
        decode(context, TOKENS)
        for i in range(3):
            decode(context, [7], pos=len(TOKENS) + i)
        perf = context.perf()
        assert (perf.n_p_eval, perf.n_eval) == (len(TOKENS), 3)
        assert min(perf.t_p_eval_ms, perf.t_eval_ms, perf.t_load_ms, perf.t_start_ms) > 0
        context.perf_reset()
        again = context.perf()
        assert (again.t_p_eval_ms, again.t_eval_ms, again.n_reused) == (0, 0, 0)
        assert again.t_start_ms > perf.t_start_ms


def test_perf_unasked(tiny: og.Model) -> None:
    """A context that does not measure says how to make one that does; perf is True or False."""
    with og.Context(tiny, n_ctx=256) as context, pytest.raises(og.ContextError, match="perf=True"):
        context.perf()
    with pytest.raises(TypeError, match=r"^perf must be True or False"):
        og.Context(tiny, perf=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^no_perf must be True or False"):
        og.Context(tiny, no_perf=0)  # type: ignore[arg-type]


def test_no_perf_is_deprecated(tiny: og.Model) -> None:
    """The old name, which is the opposite, works with a warning that points at the caller."""
    for no_perf in (False, True):
        with pytest.warns(DeprecationWarning, match=f"no_perf={no_perf} is deprecated") as caught:
            context = og.Context(tiny, n_ctx=256, no_perf=no_perf)
        assert caught[0].filename == __file__
        with context:
            assert context.params.no_perf is no_perf
