"""Plans of quantize, made up: the ones that are refused, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offgrid_llama.errors import ModelSaveError
from offgrid_llama.files.gguf_header import Tensor
from offgrid_llama.files.quantize_params import QuantizeParams
from offgrid_llama.files.quantize_plan import PlannedTensor, check_plan, check_tensors, has_layers_elsewhere

SOURCE = Path("x.gguf")


def planned(kind: str, name: str = "blk.0.attn_q.weight", source: str = "f16", **other: Any) -> PlannedTensor:
    """Return the plan for one tensor of 256 columns."""
    return PlannedTensor(
        **{"name": name, "source_name": name, "shape": (256, 4, 1, 1)} | other, source_type=source, type=kind
    )


def tensor(name: str, *shape: int) -> Tensor:
    """Return a row of the table of tensors."""
    return Tensor(name, "f16", shape, 0, 0)


ONES = {"blk.0.attn_q.weight": np.ones(256, np.float32)}


@pytest.mark.parametrize(
    ("plan", "options", "importance", "message"),
    [
        (planned("q4_K"), {}, {}, ""),
        (planned("q4_K", shape=(256, 2, 1, 2)), {}, {}, "four dimensions"),
        (planned("q4_K", source="q8_0"), {}, {}, "of type q8_0 already: use allow_requantize=True"),
        (planned("q4_K", source="q8_0"), {"allow_requantize": True}, {}, ""),
        (planned("q8_0", source="q8_0"), {}, {}, ""),  # stays as it is
        (planned("iq2_xs"), {}, {}, "cannot be made iq2_xs without an imatrix"),
        (planned("iq2_xs"), {}, ONES, ""),
        (planned("iq2_xs", shape=(256, 4, 2, 1)), {}, ONES, "must have 512 values, not 256"),
        (planned("q4_K", shape=(256, 4, 2, 1)), {}, ONES, "must have 512 values, not 256"),
        (planned("iq3_xxs", "token_embd.weight"), {}, {}, ""),  # of the tables llama.cpp asks none for 3 bits
        (planned("iq2_xs", "token_embd.weight"), {}, {}, "without an imatrix"),  # it says so, and aborts
        (planned("q4_K", "token_embd.weight"), {}, {"token_embd.weight": np.ones(1, np.float32)}, ""),
        (planned("q2_K"), {"ftype": "Q2_K"}, {}, ""),
        (planned("q2_K"), {"ftype": "Q2_K_S"}, {}, "without an imatrix"),
        (planned("iq2_xs", "blk.0.attn_q.weight", source_name="blk.1.attn_q.weight"), {}, ONES, "blk.1.attn_q.weight"),
    ],
)
def test_a_plan(plan: PlannedTensor, options: dict[str, Any], importance: dict[str, Any], message: str) -> None:
    """A plan on which llama.cpp would abort is refused with the tensor's name; any other is not."""
    params = QuantizeParams(**options)
    if not message:
        check_plan([plan], params, importance)
        return
    with pytest.raises((ValueError, ModelSaveError), match=message):
        check_plan([plan], params, importance)


def test_bytes_of_a_planned_tensor() -> None:
    """A tensor's bytes are those of its rows in the type."""
    assert planned("q8_0").n_bytes("f16") == 256 * 4 * 2
    assert planned("q8_0").n_bytes("q8_0") == 256 // 32 * 34 * 4


@pytest.mark.parametrize("name", ["", "a b", "a\n", "a\x07"])
def test_names_that_a_log_cannot_carry(name: str) -> None:
    """A name that would end a line or a word of the log is refused, and so is a tensor without elements."""
    with pytest.raises(ModelSaveError, match="not printable"):
        check_tensors(SOURCE, [tensor(name, 32)], {})
    with pytest.raises(ModelSaveError, match="no elements"):
        check_tensors(SOURCE, [tensor("a", 32, 0)], {})


def test_rows_of_tables() -> None:
    """The type of a table of tokens has blocks that fit its rows; the types of others are llama.cpp's choice."""
    tables = {"token_embedding_type": "q4_K", "output_tensor_type": "q8_0"}
    check_tensors(SOURCE, [tensor("token_embd.weight", 512, 9), tensor("output.weight", 32, 9), tensor("x", 7)], tables)
    with pytest.raises(ValueError, match=r"token_embedding_type must not be q4_K: .* 64 columns, no multiple of 256"):
        check_tensors(SOURCE, [tensor("token_embd.weight", 64, 9)], tables)
    with pytest.raises(ValueError, match="output_tensor_type must not be q8_0"):
        check_tensors(SOURCE, [tensor("output.weight", 40, 9)], tables)
    check_tensors(SOURCE, [tensor("output.weight", 40, 9)], {})


def test_layers_behind_another_word() -> None:
    """Layers of an encoder are a second row of layers."""
    assert not has_layers_elsewhere([tensor("blk.0.attn_q.weight", 1), tensor("output.weight", 1)])
    assert has_layers_elsewhere([tensor("enc.blk.0.attn_q.weight", 1)])
