"""A plan says what a real context takes: the figures are compared with those that llama.cpp logs while it allocates."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

import offgrid_llama as og
from offgrid_llama.model.memory_plan import MAX_N_CTX, memory_plan

if TYPE_CHECKING:
    from pathlib import Path

PARAMETERS: list[dict[str, Any]] = [
    {"n_ctx": 512},
    {"n_ctx": 2048, "n_seq_max": 4},
    {"n_ctx": 2048, "n_seq_max": 4, "kv_unified": True},
    {"n_ctx": 4096, "type_k": "q8_0", "type_v": "q8_0", "n_ubatch": 64},
    {"n_ctx": 4096, "swa_full": False, "n_outputs_max": 1},
]


def logged(caplog: pytest.LogCaptureFixture, what: str) -> float:
    """Return the sum in MiB of what llama.cpp logged as the sizes of its real buffers."""
    text = "\n".join(record.getMessage() for record in caplog.records)
    return sum(map(float, re.findall(rf"{what} buffer size = +([\d.]+) MiB", text)))


@pytest.mark.parametrize("name", ["smollm2", "gemma"])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=str)
def test_a_plan_is_what_a_context_takes(
    name: str, parameters: dict[str, Any], request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """KV cache, compute and output buffers are those of a real context with the same parameters, to 0.01 MiB each."""
    model: og.Model = request.getfixturevalue(name)
    plan = memory_plan(model.path, **parameters)
    with caplog.at_level(logging.DEBUG, "offgrid_llama.llama_cpp"), og.Context(model, **parameters) as context:
        assert plan.n_ctx == context.n_ctx
    for size, what in ((plan.kv_cache, "KV"), (plan.compute, "compute"), (plan.output, "output")):
        assert size > 0
        assert size / 2**20 == pytest.approx(logged(caplog, what), abs=0.011)
    assert plan.weights == model.size
    assert plan.total == plan.weights + plan.kv_cache + plan.compute + plan.output


def test_a_plan_needs_no_memory(smollm2_path: Path) -> None:
    """A plan may be larger than this machine; sizes and types that no context has are refused."""
    assert memory_plan(smollm2_path, n_ctx=2**21).kv_cache == 2**21 * 30 * 2 * 3 * 64 * 2
    with pytest.raises(ValueError, match="n_ctx must be from 1 to"):
        memory_plan(smollm2_path, n_ctx=MAX_N_CTX + 1)
    with pytest.raises(ValueError, match="type_k must be one of"):
        memory_plan(smollm2_path, type_k="q9")  # type: ignore[arg-type]


def test_the_log_of_a_plan_is_put_away(smollm2_path: Path, smollm2: og.Model) -> None:
    """A plan leaves nothing behind: the next error's log is its own."""
    memory_plan(smollm2_path, n_ctx=64)
    with pytest.raises(og.ContextError) as caught:
        og.Context(smollm2, n_ctx=64, type_v="q8_0", flash_attn_type="disabled")
    assert len(caught.value.log) < 5
